// A convolution of any kernel size, stride and dilation on flat planes.
//
// A plane holds rows of equal length, one after the other, so that a kernel tap is one offset for
// all pixels and a run of pixels need not know where a row ends: whatever the image's width, all
// lanes work. What is computed between the rows is garbage that nobody reads.
#pragma once

#include "activations.h"

namespace bunit::BUNIT_ISA {

// Accumulators that fit the register file beside the weights and one load.
constexpr int kAccumulators = BUNIT_REGISTERS == 32 ? 24 : 12;
constexpr int kBlock = 4;  // output channels at a time
// Of these, those from which conv_rows makes rows in pairs, where there are registers for that. By
// count of instructions pairs of one channel are slower, of two alike, of three and four 1.1 and
// 1.2 times as fast.
constexpr int kLeastPaired = BUNIT_REGISTERS == 32 && BUNIT_VECTOR_BYTES == 64 ? 2 : kBlock + 1;

constexpr int strip_of(int channels) { return kAccumulators / (channels < 2 ? 2 : channels); }

template <int... I>
struct Seq {};
template <int N, int... I>
struct MakeSeq : MakeSeq<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSeq<0, I...> {
  using type = Seq<I...>;
};

template <class T>
__attribute__((noinline)) void activate_in_place(Activation activation, T* values, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    store(values + i, activate<T>(activation, load(values + i)));
  }
}

// `Strip` vectors of `Channels` output channels: out[c][i] = bias[c] + sum over taps.
template <class T, int Channels, int Strip>
struct ConvStrip {
  static void run(const T* in, const int64_t* offsets, int taps, const T* weights, const T* bias,
                  Activation activation, T* out, int64_t out_plane) {
    Vec<T> acc[Channels][Strip];
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < Strip; ++i) acc[c][i] = bias ? splat<T>(bias[c]) : Vec<T>{};
    }
    for (int t = 0; t < taps; ++t) {
      const T* source = in + offsets[t];
      const auto pixels = [&](int i) BUNIT_ALWAYS { return load(source + i * kLanes<T>); };
      const auto weight = [&](int c) BUNIT_ALWAYS { return splat<T>(weights[t * Channels + c]); };
      add_outer(weight, pixels, acc);
    }
    switch (activation) {
      case Activation::identity:
        return finish(acc, out, out_plane, [](Vec<T> v) { return v; });
      case Activation::relu:
        return finish(acc, out, out_plane, [](Vec<T> v) { return max0<T>(v); });
      default:
        finish(acc, out, out_plane, [](Vec<T> v) { return v; });
        for (int c = 0; c < Channels; ++c) {
          activate_in_place(activation, out + c * out_plane, Strip * kLanes<T>);
        }
    }
  }

  template <class F>
  static BUNIT_INLINE void finish(const Vec<T> (&acc)[Channels][Strip], T* out, int64_t out_plane,
                                  F activation) {
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < Strip; ++i) {
        store(out + c * out_plane + i * kLanes<T>, activation(acc[c][i]));
      }
    }
  }
};

template <class T>
using ConvStripFn = void (*)(const T*, const int64_t*, int, const T*, const T*, Activation, T*,
                             int64_t);

template <class T, int Channels, class S>
struct ConvStrips;
template <class T, int Channels, int... I>
struct ConvStrips<T, Channels, Seq<I...>> {
  static constexpr ConvStripFn<T> table[] = {&ConvStrip<T, Channels, I + 1>::run...};
};

template <class T>
BUNIT_INLINE ConvStripFn<T> conv_strip(int channels, int strip) {
  switch (channels) {
    case 1:
      return ConvStrips<T, 1, typename MakeSeq<strip_of(1)>::type>::table[strip - 1];
    case 2:
      return ConvStrips<T, 2, typename MakeSeq<strip_of(2)>::type>::table[strip - 1];
    case 3:
      return ConvStrips<T, 3, typename MakeSeq<strip_of(3)>::type>::table[strip - 1];
    default:
      return ConvStrips<T, 4, typename MakeSeq<strip_of(4)>::type>::table[strip - 1];
  }
}

// out[c][p] = activation(bias[c] + sum_t weights[t][c] * in[offsets[t] + p]) for p < flat rounded
// up to whole vectors. Weights lie in blocks of kBlock channels, the last one narrower.
template <class T>
void conv_flat(const T* in, const int64_t* offsets, int taps, const T* weights, const T* bias,
               int channels, Activation activation, T* out, int64_t out_plane, int64_t flat) {
  const int64_t vectors = (flat + kLanes<T> - 1) / kLanes<T>;
  const int limit = strip_of(channels < kBlock ? channels : kBlock);
  const int64_t strips = (vectors + limit - 1) / limit;
  int64_t done = 0;
  for (int64_t s = 0; s < strips; ++s) {
    const int strip = int((vectors - done) / (strips - s));  // even strips, none a lonely rest
    const int64_t p = done * kLanes<T>;
    for (int c = 0; c < channels; c += kBlock) {
      const int block = channels - c < kBlock ? channels - c : kBlock;
      conv_strip<T>(block, strip)(in + p, offsets, taps, weights + int64_t(c) * taps,
                                  bias ? bias + c : nullptr, activation, out + c * out_plane + p,
                                  out_plane);
    }
    done += strip;
  }
}

}  // namespace bunit::BUNIT_ISA
