// The gradient of a 3x3 level's weight of stride 1 by Winograd's minimal filtering (winograd.h): of
// Y = A' [(G g G') . (B' d B)] A it is G' [sum over tiles of (A dY A') . (B' d B)] G, 16 products a
// tile and pair of channels where the sum over pixels takes 36.
//
// A row of transforms of some tiles of all channels is made, then the sums over these tiles. As
// products of an input with gradients that cancel, NaN and infinity of the input reach all nine
// gradients of a weight, and not only those that they meet.
#pragma once

#include "winograd.h"

namespace bunit::BUNIT_ISA {

// out[c_out][c_in][3][3] += sum over `rows` rows of `width` pixels of grad * in, as Winograd takes
// its planes; beside the gradient's pixels are zeros.
template <class T>
struct WinogradWeightGrad {
  const T* grad;  // row and column 0
  int64_t grad_plane;
  int c_out;
  const T* in;  // row and column -1
  int64_t in_plane;
  int c_in;
  int64_t row, rows, width, lanes;
  T* memory;
  int64_t most;  // vectors of tiles at a time, or a row of them

  void run(T* out) const {
    if (lanes > 1) return run_tiles<true>(out);
    run_tiles<false>(out);
  }

 private:
  static constexpr int kN = kLanes<T>;
  // Output and input channels of a block: as many sums as a vector has lanes.
  static constexpr int kOuts = kN < 4 ? kN : 4, kIns = kN / kOuts;

  template <bool Sided>
  void run_tiles(T* out) const {
    constexpr int kColumns = Sided ? 4 : 2;
    const int64_t step = Sided ? 2 : kN;  // pixels of a vector
    const int64_t in_row_of_tiles = (width + step - 1) / step;
    const int64_t at_once = at_least(most / in_row_of_tiles, 1);
    const int64_t pitch = at_once * in_row_of_tiles * kN;
    T* const inputs = with_aligned(memory, 0);
    T* const grads = inputs + kColumns * c_in * pitch;
    T* const sums = grads + kColumns * c_out * pitch;
    const int64_t blocks = int64_t((c_out + kOuts - 1) / kOuts) * ((c_in + kIns - 1) / kIns);
    clear(sums, 16 * blocks * kN);
    const int64_t tile_rows = (rows + 1) / 2;
    for (int64_t y = 0; y < tile_rows; y += at_once) {
      const int64_t count = at_most(at_once, tile_rows - y);
      for (int i = 0; i < 4; ++i) {
        transform_inputs<Sided>(i, y, count, in_row_of_tiles, inputs, pitch);
        transform_grads<Sided>(i, y, count, in_row_of_tiles, grads, pitch);
        for (int x = 0; x < kColumns; ++x) {
          add_products<Sided>(inputs + x * c_in * pitch, grads + x * c_out * pitch, pitch,
                              count * in_row_of_tiles,
                              sums + (i * 4 + x * 4 / kColumns) * blocks * kN, blocks * kN);
        }
      }
    }
    finish<Sided>(sums, blocks * kN, out);
  }

  // Row i of B' d B, [column][c_in][vector].
  template <bool Sided>
  void transform_inputs(int i, int64_t y, int64_t count, int64_t in_row_of_tiles, T* to,
                        int64_t pitch) const {
    constexpr int a[4] = {0, 1, 2, 1}, b[4] = {2, 2, 1, 3};
    const Vec<T> second = splat<T>(i == 1 ? 1 : -1);
    const Vec<T> sign = take_turns<T>(splat<T>(1), splat<T>(-1));
    const int64_t column = c_in * pitch;
    for (int c = 0; c < c_in; ++c) {
      for (int64_t r = 0; r < count; ++r) {
        const T* from = in + c * in_plane + 2 * (y + r) * row;
        T* target = to + c * pitch + r * in_row_of_tiles * kN;
        for (int64_t v = 0; v < in_row_of_tiles; ++v, target += kN) {
          if constexpr (Sided) {
            Vec<T> d[4];
#pragma GCC unroll 4
            for (int x = 0; x < 4; ++x) {
              const T* p = from + (2 * v + x) * kN;
              d[x] = load(p + a[i] * row) + second * load(p + b[i] * row);
            }
            store(target, d[0] - d[2]);
            store(target + column, d[1] + d[2]);
            store(target + 2 * column, d[2] - d[1]);
            store(target + 3 * column, d[1] - d[3]);
          } else {
            const T* p = from + v * kN + 1;
            const Neighbours<T> d(p + a[i] * row), e(p + b[i] * row);
            const Vec<T> left = d.left + second * e.left, right = d.right + second * e.right;
            store(target, left - right);
            store(target + column, d.own + second * e.own + sign * take_turns<T>(right, left));
          }
        }
      }
    }
  }

  // Row i of A dY A', the same.
  template <bool Sided>
  void transform_grads(int i, int64_t y, int64_t count, int64_t in_row_of_tiles, T* to,
                       int64_t pitch) const {
    const Vec<T> sign = take_turns<T>(splat<T>(1), splat<T>(-1));
    const int64_t column = c_out * pitch;
    for (int c = 0; c < c_out; ++c) {
      for (int64_t r = 0; r < count; ++r) {
        const T* from = grad + c * grad_plane + 2 * (y + r) * row;
        const bool has_second_row = 2 * (y + r) + 1 < rows;
        T* target = to + c * pitch + r * in_row_of_tiles * kN;
        const auto at = [&](const T* p) BUNIT_ALWAYS {
          const Vec<T> first = load(p), second = has_second_row ? load(p + row) : Vec<T>{};
          return i == 0 ? first : i == 1 ? first + second : i == 2 ? first - second : -second;
        };
        for (int64_t v = 0; v < in_row_of_tiles; ++v, target += kN) {
          if constexpr (Sided) {
            const T* p = from + 2 * v * kN;
            const Vec<T> even = at(p), odd = at(p + kN);
            store(target, even);
            store(target + column, even + odd);
            store(target + 2 * column, even - odd);
            store(target + 3 * column, -odd);
          } else {
            const Vec<T> own = at(from + v * kN);
            store(target, sign * own);
            store(target + column, swap_pairs<T>(own) + sign * own);
          }
        }
      }
    }
  }

  // Sums over tiles of a column, blocks of kOuts x kIns of them; of columns 0 and 3, or 1 and 2,
  // where these are the lanes of a vector.
  template <bool Sided>
  __attribute__((noinline)) void add_products(const T* inputs, const T* grads, int64_t pitch,
                                              int64_t vectors, T* sums, int64_t step) const {
    for (int o = 0; o < c_out; o += kOuts) {
      const T* g[kOuts];  // of the last block some are the same
#pragma GCC unroll 4
      for (int m = 0; m < kOuts; ++m) g[m] = grads + at_most(o + m, c_out - 1) * pitch;
      for (int c = 0; c < c_in; c += kIns, sums += kN) {
        const T* x[kIns];
#pragma GCC unroll 4
        for (int k = 0; k < kIns; ++k) x[k] = inputs + at_most(c + k, c_in - 1) * pitch;
        Vec<T> acc[kOuts][kIns] = {}, all[kN];
        for (int64_t v = 0; v < vectors * kN; v += kN) {
          add_outer([&](int m) BUNIT_ALWAYS { return load(g[m] + v); },
                    [&](int k) BUNIT_ALWAYS { return load(x[k] + v); }, acc);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kN; ++i) all[i] = acc[i / kIns][i % kIns];
        const Halves<T> pairs = sum_pairs<T>(all);
        if constexpr (Sided) {
          store(sums, load(sums) + (pairs.first + pairs.second));
        } else {
          store(sums, load(sums) + pairs.first);
          store(sums + step, load(sums + step) + pairs.second);
        }
      }
    }
  }

  // G' m G of each pair of channels. Columns lie as they were made: 0, 3, 1, 2, or, where each had
  // a vector of its own, in their order.
  template <bool Sided>
  void finish(const T* sums, int64_t step, T* out) const {
    constexpr int kPlaces[4] = {0, Sided ? 1 : 2, Sided ? 2 : 3, Sided ? 3 : 1};
    for (int o = 0; o < c_out; o += kOuts) {
      for (int c = 0; c < c_in; c += kIns, sums += kN) {
        Vec<T> half[4][3];  // m G
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const auto m = [&](int j)
                             BUNIT_ALWAYS { return load(sums + (i * 4 + kPlaces[j]) * step); };
          const Vec<T> both = (m(1) + m(2)) * T(0.5);
          half[i][0] = m(0) + both;
          half[i][1] = (m(1) - m(2)) * T(0.5);
          half[i][2] = both + m(3);
        }
        T taps[9][kN];
#pragma GCC unroll 3
        for (int x = 0; x < 3; ++x) {
          const Vec<T> both = (half[1][x] + half[2][x]) * T(0.5);
          store(taps[x], half[0][x] + both);
          store(taps[3 + x], (half[1][x] - half[2][x]) * T(0.5));
          store(taps[6 + x], both + half[3][x]);
        }
        for (int m = 0; m < kOuts && o + m < c_out; ++m) {
          for (int k = 0; k < kIns && c + k < c_in; ++k) {
            T* target = out + (int64_t(o + m) * c_in + c + k) * 9;
            for (int t = 0; t < 9; ++t) target[t] += taps[t][m * kIns + k];
          }
        }
      }
    }
  }
};

}  // namespace bunit::BUNIT_ISA
