// Which levels Winograd's tiles serve, and their weights (kernels/winograd.h).
#pragma once

#include "pack.h"

namespace bunit {

// Output channels of the block that begins with channel `first`, the last ones filled with zeros
// (Winograd::kWide and kBlock).
inline int64_t winograd_block(int64_t first, int64_t c_out) {
  const bool wide = kernels().vector_bytes == 64 && c_out - first > kChannelBlock;
  return wide ? 2 * kChannelBlock : kChannelBlock;
}

// Whether a 3x3 level of stride and dilation 1 is made in tiles, for images of `pixels`; not for a
// number of images, as each comes out the same by itself.
//
// What a channel's transformation takes is fixed, and with longer vectors products are cheaper.
// Times by taps as multiples, with AVX2 and AVX-512, on a Xeon of the Granite Rapids generation:
// eval 4-8-4 0.9, 0.8; 8-8-8 1.4, 0.9; 8-16-8 1.4, 1.0; 16-16-16 1.6, 1.2; 32-32-32 1.6, 1.5;
// training steps 8-8-8 0.9, -; 8-16-8 1.1, -; 16-16-16 1.2, 1.2; 32-32-32 1.4, 1.3.
inline bool takes_winograd(int64_t c_in, int64_t c_out, int64_t pixels, Pass pass) {
  const int64_t least = kernels().vector_bytes == 64 ? 256 : pass == Pass::forward ? 64 : 128;
  return std::min(c_in, c_out) >= kChannelBlock && c_in * c_out >= least && pixels >= 64;
}

inline int64_t winograd_weights(int64_t c_in, int64_t c_out) {
  int64_t channels = 0;
  while (channels < c_out) channels += winograd_block(channels, c_out);
  return 16 * c_in * channels;
}

// Elements that a strip of tiles takes (Winograd::memory): transformed inputs and products.
inline int64_t winograd_memory(int64_t c_in, int64_t lanes) {
  constexpr int64_t kVectors = 6, kAccumulators = 24;  // at most
  return lanes * (16 * (c_in * kVectors + 1) + 16 * kAccumulators + kPlanesApart);
}

// G g G' of each pair of channels, g being weight(output, input, tap), as [block of output
// channels][row][columns 0 and 3, columns 1 and 2][input channel][channels of the block][2];
// columns 3 are negative.
template <class T, class Weight>
void pack_winograd(int64_t c_in, int64_t c_out, const Weight& weight, T* out) {
  for (int64_t first = 0, block; first < c_out; first += block) {
    block = winograd_block(first, c_out);
    const int64_t step = 2 * c_in * block;
    for (int64_t i = 0; i < c_in; ++i) {
      for (int64_t o = 0; o < block; ++o) {
        std::array<T, 4> columns[3] = {};
        for (int x = 0; x < 3 && first + o < c_out; ++x) {
          columns[x] = filtered_column(weight, first + o, i, x);
        }
        T* to = out + 2 * (i * block + o);
        for (size_t k = 0; k < 4; ++k) {
          const auto g = minimal_filter(columns[0][k], columns[1][k], columns[2][k]);
          to[0] = g[0];
          to[1] = -g[3];
          to[step] = g[1];
          to[step + 1] = g[2];
          to += 2 * step;
        }
      }
    }
    out += 8 * step;
  }
}

inline int64_t square_weights(int64_t c_in, int64_t c_out) { return 16 * c_in * c_out; }

// G g G' as kernels/squares.h takes it, in the order of use: for blocks of output channels and for
// rows 1, 2, 0 and 3 (negative) of all pairs of channels, output channels first, columns 1 and 2,
// then of all columns 0 and 3 (negative). Of many input channels (squares_wide.h) those rows of all
// pairs, input channels first, columns 0 to 3. Returns what follows.
template <class T, class Weight>
T* pack_squares(int64_t c_in, int64_t c_out, const Weight& weight, T* out) {
  const bool wide = c_in > kSquareInputs;
  for (int64_t o0 = 0, block; o0 < c_out; o0 += block) {
    block = std::min<int64_t>(kChannelBlock, c_out - o0);
    const int64_t pairs = block * c_in;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t o = wide ? pair % block : pair / c_in, i = wide ? pair / block : pair % c_in;
      std::array<T, 4> columns[3];
      for (int x = 0; x < 3; ++x) columns[x] = filtered_column(weight, o0 + o, i, x);
      T* to = out;
      for (const size_t k : {1, 2, 0, 3}) {
        auto turned = minimal_filter(columns[0][k], columns[1][k], columns[2][k]);
        turned[3] = -turned[3];
        if (k == 3) {
          for (T& value : turned) value = -value;
        }
        if (wide) {
          std::copy_n(turned.data(), 4, to + 4 * pair);
        } else {
          std::copy_n(turned.data() + 1, 2, to + 2 * pair);
          to[2 * (pairs + pair)] = turned[0];
          to[2 * (pairs + pair) + 1] = turned[3];
        }
        to += 4 * pairs;
      }
    }
    out += 16 * pairs;
  }
  return out;
}

}  // namespace bunit
