// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(2x2, 3x3): a tile of 2x2 outputs
// takes 16 products of a pair of channels, where the sum over taps takes 36 (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016).
//
// With d the 4x4 inputs of a tile and g the kernel: Y = A' [(G g G') . (B' d B)] A, where
// B' d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3) and A' m = (m0 + m1 + m2, m1 - m2 - m3). Tiles lie
// side by side in a vector as their outputs do: two lanes each, in which B' d B's columns 0 and 3
// are one vector and columns 1 and 2 another, so that nothing is moved between lanes but once, in
// the end. The weights of columns 3 are negative: then Y's columns are A' m = (m0 + m1 + m2, m3 +
// m1 - m2), a sum and a difference.
//
// An output's sums take in its own nine inputs and no others, so that NaN stays where it would be;
// infinity may become NaN there, as it may in any sum.
#pragma once

#include "conv_flat.h"
#include "planes.h"

namespace bunit::BUNIT_ISA {

// a in even lanes and b in odd ones.
template <class T>
BUNIT_INLINE Vec<T> take_turns(Vec<T> a, Vec<T> b) {
  Mask<T> odd{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) odd[i] = -(i % 2);
  return odd ? b : a;
}
// Even and odd lanes change places.
template <class T>
BUNIT_INLINE Vec<T> swap_pairs(Vec<T> v) {
#if defined(__clang__)
  T lanes[kLanes<T>], swapped[kLanes<T>];
  store(lanes, v);
  for (int i = 0; i < kLanes<T>; ++i) swapped[i] = lanes[i ^ 1];
  return load(swapped);
#else
  Mask<T> lane{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i ^ 1;
  return __builtin_shuffle(v, lane);
#endif
}
// p[0] in even lanes and p[1] in odd ones.
BUNIT_INLINE Vec<float> splat_pair(const float* p) {
  double pair;
  memcpy(&pair, p, sizeof(pair));
  return (Vec<float>)splat(pair);
}
BUNIT_INLINE Vec<double> splat_pair(const double* p) {
  return take_turns<double>(splat(p[0]), splat(p[1]));
}

// Pixels and those on their left and right. Where a vector is a cache line three of them are read
// and their lanes shifted: `p` being aligned, two loads would straddle lines else.
template <class T>
struct Neighbours {
  Vec<T> left, own, right;

  BUNIT_INLINE explicit Neighbours(const T* p) : own(load(p)) {
#if BUNIT_VECTOR_BYTES == 64 && !defined(__clang__)
    constexpr int kN = kLanes<T>;
    Mask<T> next{};
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) next[i] = i + 1;
    left = __builtin_shuffle(load(p - kN), own, next + (kN - 2));
    right = __builtin_shuffle(own, load(p + kN), next);
#else
    left = load(p - 1);
    right = load(p + 1);
#endif
  }
};

// out[c][y][x] = activation(bias[c] + sum over c_in, ky, kx) for `rows` rows of `width` pixels;
// only pixels are written.
template <class T>
struct Winograd {
  // Planes of rows from row and column -1 of the outputs on; column 0 is best aligned to a vector,
  // as rows and planes are. A row more than the outputs need is read where they are odd in number,
  // a vector before the first row, and kReadsBehind elements behind the last one.
  const T* in;
  int64_t in_row, in_plane;
  int c_in;
  const T* weights;  // [block of output channels][8][c_in][channels of the block][even, odd lanes]
  const T* bias;     // or null
  int c_out;
  Activation activation;
  bool around;
  T* out;
  int64_t out_row, out_plane;
  int64_t rows, width, lanes;  // `lanes` elements a pixel, as in Image
  T* memory;

  static constexpr int kN = kLanes<T>;
  static constexpr int64_t kReadsBehind = 2 * kN;
  // Output channels at a time, and vectors of tiles of which the products are then made at a time.
  static constexpr int kWide = BUNIT_REGISTERS == 32 ? 2 * kBlock : kBlock;
  static constexpr int kVectors = kAccumulators / kBlock;

  void run() const {
    if (lanes > 1) return run_tiles<true>();
    run_tiles<false>();
  }

 private:
  struct Strip {
    int count;
    const T* from[kVectors];
    T* to[kVectors];
    int64_t left[kVectors];  // elements to the end of the row
    bool has_second_row[kVectors];
  };

  int most_vectors() const {
    if (c_out <= kBlock) return kVectors;
    return kAccumulators / kWide;
  }

  // With `Sided`, a vector holds one column of tiles of as many images, and a tile is two vectors.
  template <bool Sided>
  void run_tiles() const {
    const int64_t step = Sided ? 2 : kN;  // pixels of a vector
    const int64_t in_row_of_tiles = (width + step - 1) / step;
    const int64_t vectors = (rows + 1) / 2 * in_row_of_tiles;
    const int most = most_vectors();
    const int64_t strips = (vectors + most - 1) / most;
    int64_t done = 0;
    for (int64_t s = 0; s < strips; ++s) {
      Strip strip;
      strip.count = int((vectors - done) / (strips - s));
      for (int k = 0; k < strip.count; ++k, ++done) {
        const int64_t y = done / in_row_of_tiles * 2, x = done % in_row_of_tiles * step;
        strip.from[k] = in + y * in_row + x * lanes;
        strip.to[k] = out + y * out_row + x * lanes;
        strip.left[k] = (width - x) * lanes;
        strip.has_second_row[k] = y + 1 < rows;
      }
      run_strip<Sided>(strip);
    }
  }

  template <bool Sided>
  void run_strip(const Strip& strip) const {
    T* const transformed = with_aligned(memory, 0);
    // A vector more, or powers of two of them would share the sets of the cache.
    const int64_t step = (int64_t(c_in) * strip.count + 1) * kN;
    T* const products = transformed + (Sided ? 16 : 8) * step;
    transform<Sided>(strip, transformed, step);
    const T* w = weights;
    for (int c = 0, block; c < c_out; c += block, w += int64_t(16) * c_in * block) {
      block = c_out - c > kBlock ? kWide : kBlock;
      if (block == kBlock) {
        multiply<Sided, kBlock, kAccumulators / kBlock>(strip.count, transformed, step, w,
                                                        products);
      } else {
        multiply<Sided, kWide, kAccumulators / kWide>(strip.count, transformed, step, w, products);
      }
      with_activation<T>(activation, [&](auto activated) BUNIT_ALWAYS {
        finish<Sided>(strip, c, block, products, activated);
      });
    }
  }

  // B' d B of all channels, [row][columns 0 and 3, 1 and 2][c_in][vector], `step` elements from one
  // of them to the next.
  template <bool Sided>
  void transform(const Strip& strip, T* to, int64_t step) const {
    constexpr int kColumns = Sided ? 4 : 2;
    const Vec<T> sign = take_turns<T>(splat<T>(1), splat<T>(-1));
    for (int c = 0; c < c_in; ++c) {
      for (int k = 0; k < strip.count; ++k, to += kN) {
        const T* from = strip.from[k] + c * in_plane;
        Vec<T> d[4][kColumns];
#pragma GCC unroll 4
        for (int y = 0; y < 4; ++y, from += in_row) {
          if constexpr (Sided) {
            const Vec<T> x0 = load(from), x1 = load(from + kN);
            const Vec<T> x2 = load(from + 2 * kN), x3 = load(from + 3 * kN);
            d[y][0] = x0 - x2;
            d[y][1] = x1 - x3;
            d[y][2] = x1 + x2;
            d[y][3] = x2 - x1;
          } else {
            const Neighbours<T> x(from + 1);
            d[y][0] = x.left - x.right;
            d[y][1] = x.own + sign * take_turns<T>(x.right, x.left);
          }
        }
        T* out = to;
#pragma GCC unroll 4
        for (int x = 0; x < kColumns; ++x, out += step) {
          store(out, d[0][x] - d[2][x]);
          store(out + kColumns * step, d[1][x] + d[2][x]);
          store(out + 2 * kColumns * step, d[2][x] - d[1][x]);
          store(out + 3 * kColumns * step, d[1][x] - d[3][x]);
        }
      }
    }
  }

  // Products of a block of output channels, as `transformed` with channels in place of c_in.
  template <bool Sided, int Channels, int Count>
  BUNIT_INLINE void multiply(int count, const T* transformed, int64_t step, const T* w,
                             T* out) const {
    if constexpr (Count > 1) {
      if (count < Count) {
        return multiply<Sided, Channels, Count - 1>(count, transformed, step, w, out);
      }
    }
    multiply_all<Sided, Channels, Count>(transformed, step, w, out);
  }

  template <bool Sided, int Channels, int Count>
  __attribute__((noinline)) void multiply_all(const T* transformed, int64_t step, const T* weights,
                                              T* out) const {
    for (int i = 0; i < (Sided ? 16 : 8); ++i, transformed += step) {
      Vec<T> acc[Channels][Count] = {};
      const T *v = transformed, *w = weights + (Sided ? i % 2 : 0);
      for (int c = 0; c < c_in; ++c, v += Count * kN, w += 2 * Channels) {
        add_outer([&](int m)
                      BUNIT_ALWAYS { return Sided ? splat<T>(w[2 * m]) : splat_pair(w + 2 * m); },
                  [&](int k) BUNIT_ALWAYS { return load(v + k * kN); }, acc);
      }
      if (!Sided || i % 2 == 1) weights += int64_t(2) * Channels * c_in;
#pragma GCC unroll 16
      for (int m = 0; m < Channels; ++m) {
#pragma GCC unroll 16
        for (int k = 0; k < Count; ++k, out += kN) store(out, acc[m][k]);
      }
    }
  }

  // A' m A, bias and activation of channels `first` on.
  template <bool Sided, class F>
  void finish(const Strip& strip, int first, int block, const T* products, F activated) const {
    constexpr int kColumns = Sided ? 4 : 2;
    const int64_t step = int64_t(block) * strip.count * kN;
    const int channels = c_out - first < block ? c_out - first : block;
    const Vec<T> sign = take_turns<T>(splat<T>(1), splat<T>(-1));
    for (int m = 0; m < channels; ++m) {
      const Vec<T> shift = bias ? splat<T>(bias[first + m]) : Vec<T>{};
      for (int k = 0; k < strip.count; ++k, products += kN) {
        Vec<T> sums[2][kColumns];
        const T* p = products;
#pragma GCC unroll 4
        for (int x = 0; x < kColumns; ++x, p += step) {
          const Vec<T> m1 = load(p + kColumns * step), m2 = load(p + 2 * kColumns * step);
          sums[0][x] = load(p) + m1 + m2;
          sums[1][x] = m1 - m2 - load(p + 3 * kColumns * step);
        }
        T* to = strip.to[k] + (first + m) * out_plane;
#pragma GCC unroll 2
        for (int y = 0; y < 2; ++y, to += out_row) {
          if (y == 1 && !strip.has_second_row[k]) break;
          const Vec<T>(&s)[kColumns] = sums[y];
          if constexpr (Sided) {
            put(to, activated(s[0] + s[2] + s[3] + shift), strip.left[k]);
            const Vec<T> odd = activated(s[1] + s[2] - s[3] + shift);
            if (strip.left[k] > kN) put(to + kN, odd, strip.left[k]);
          } else {
            put(to, activated(s[0] + swap_pairs<T>(s[1]) + shift + sign * s[1]), strip.left[k]);
          }
        }
      }
    }
  }

  BUNIT_INLINE void put(T* to, Vec<T> v, int64_t left) const {
    if (left < kN) return store_first(to, v, left);
    if (around) return store_around(to, v);
    store(to, v);
  }
};

}  // namespace bunit::BUNIT_ISA
