// The gradient of a level's weight, on flat planes (conv_flat.h).
#pragma once

#include "conv_flat.h"

namespace bunit::BUNIT_ISA {

constexpr int taps_of(int channels) {
  return BUNIT_REGISTERS == 32 ? (channels < 3    ? 9
                                  : channels == 3 ? 7
                                                  : 6)
                               : (channels < 3 ? 4 : 3);
}

// out[c][t] += sum over rows and p < flat of grad[c][p] * in[offsets[t] + p], rows `row` apart.
//
// A run may go on from row to row: between them the gradient is zero, and what it meets there adds
// nothing unless it is infinite or NaN. Only then, when a sum shows it, the sums are made once more
// with both factors cleared where `mask` is zero: masks take the time of as many multiplications.
template <class T>
struct WeightGrad {
  const T* grad;
  int64_t grad_plane;
  const T* in;
  const int64_t* offsets;
  int taps;
  const typename VecOf<T>::Int* mask;  // null where runs are rows of whole vectors
  int64_t row;

  void run(int channels, int64_t rows, int64_t flat, T* out) const {
    for (int c = 0; c < channels; c += kBlock) {
      const T* g = grad + c * grad_plane;
      T* o = out + int64_t(c) * taps;
      switch (channels - c) {
        case 1:
          run_channels<1>(g, rows, flat, o);
          break;
        case 2:
          run_channels<2>(g, rows, flat, o);
          break;
        case 3:
          run_channels<3>(g, rows, flat, o);
          break;
        default:
          run_channels<4>(g, rows, flat, o);
      }
    }
  }

  template <int Channels>
  void run_channels(const T* g, int64_t rows, int64_t flat, T* out) const {
    constexpr int kTaps = taps_of(Channels);
    int t = 0;
    for (; t + kTaps <= taps; t += kTaps) block<Channels, kTaps>(g, rows, flat, t, out);
    for (; t + 3 <= taps; t += 3) block<Channels, 3>(g, rows, flat, t, out);
    for (; t < taps; ++t) block<Channels, 1>(g, rows, flat, t, out);
  }

  template <int Channels, int Taps>
  void block(const T* g, int64_t rows, int64_t flat, int first, T* out) const {
    T sums[Channels * Taps];
    add_up<Channels, Taps, false>(g, rows, flat, first, sums);
    T zero = 0;
    for (int i = 0; i < Channels * Taps; ++i) zero += sums[i] * 0;
    if (mask && zero != 0) add_up<Channels, Taps, true>(g, rows, flat, first, sums);
    for (int c = 0; c < Channels; ++c) {
      for (int t = 0; t < Taps; ++t) out[c * taps + first + t] += sums[c * Taps + t];
    }
  }

  template <int Channels, int Taps, bool Masked>
  void add_up(const T* g, int64_t rows, int64_t flat, int first, T* sums) const {
    Vec<T> acc[Channels][Taps];
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int t = 0; t < Taps; ++t) acc[c][t] = Vec<T>{};
    }
    const T* sources[Taps];
#pragma GCC unroll 16
    for (int t = 0; t < Taps; ++t) sources[t] = in + offsets[first + t];
    const auto add = [&](int64_t p, auto value) BUNIT_ALWAYS {
      add_outer([&](int c) BUNIT_ALWAYS { return value(g + c * grad_plane + p); },
                [&](int t) BUNIT_ALWAYS { return value(sources[t] + p); }, acc);
    };
    for (int64_t r = 0; r < rows; ++r) {
      int64_t p = r * row;
      const int64_t end = p + flat;
      for (; p + kLanes<T> <= end; p += kLanes<T>) {
        if (Masked) {
          Mask<T> valid;
          memcpy(&valid, mask + p, sizeof(valid));
          add(p, [&](const T* at) BUNIT_ALWAYS { return keep<T>(load(at), valid); });
        } else {
          add(p, [](const T* at) BUNIT_ALWAYS { return load(at); });
        }
      }
      if (p == end) continue;
      Mask<T> valid = first_lanes<T>(end - p);  // rows that are not ours may follow
      if (Masked) {
        Mask<T> pixels;
        memcpy(&pixels, mask + p, sizeof(pixels));
        valid &= pixels;
      }
      add(p, [&](const T* at) BUNIT_ALWAYS { return keep<T>(load(at), valid); });
    }
    sum_each<T>(&acc[0][0], Channels * Taps, sums);
  }
};

}  // namespace bunit::BUNIT_ISA
