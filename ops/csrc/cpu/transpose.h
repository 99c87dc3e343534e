// Between channels first and channels last, a few thousand elements at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"

namespace mrrcnn::MRRCNN_ISA {

#if __has_builtin(__builtin_shufflevector)
constexpr bool kShuffles = true;

// to[c * to_stride + r] = from[r * from_stride + c] for 4 x 4 elements, by two rounds of interleaving.
MRRCNN_INLINE void transpose_4x4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  typedef float Four __attribute__((vector_size(16)));
  Four a, b, c, d;
  std::memcpy(&a, from, 16);
  std::memcpy(&b, from + from_stride, 16);
  std::memcpy(&c, from + 2 * from_stride, 16);
  std::memcpy(&d, from + 3 * from_stride, 16);
  const Four ac_low = __builtin_shufflevector(a, c, 0, 4, 1, 5), ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7);
  const Four bd_low = __builtin_shufflevector(b, d, 0, 4, 1, 5), bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ac_low, bd_low, 0, 4, 1, 5);
  b = __builtin_shufflevector(ac_low, bd_low, 2, 6, 3, 7);
  c = __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5);
  d = __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7);
  std::memcpy(to, &a, 16);
  std::memcpy(to + to_stride, &b, 16);
  std::memcpy(to + 2 * to_stride, &c, 16);
  std::memcpy(to + 3 * to_stride, &d, 16);
}
#else
constexpr bool kShuffles = false;  // GCC before 12
MRRCNN_INLINE void transpose_4x4(const float*, int64_t, float*, int64_t) {}
#endif

// to[c * to_stride + r] = from[r * from_stride + c] for rows x columns elements.
template <class A, class B>
void transpose(const A* from, int64_t from_stride, int64_t rows, int64_t columns, B* to, int64_t to_stride) {
  int64_t r = 0;
  if constexpr (kShuffles && std::is_same_v<A, float> && std::is_same_v<B, float>) {
    for (; r + 4 <= rows; r += 4) {
      int64_t c = 0;
      for (; c + 4 <= columns; c += 4) {
        transpose_4x4(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
      }
      for (; c < columns; ++c) {
        for (int i = 0; i < 4; ++i) to[c * to_stride + r + i] = from[(r + i) * from_stride + c];
      }
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * to_stride + r] = static_cast<B>(from[r * from_stride + c]);
  }
}

// The same for a long axis of `pixels`: strips of it, so that a strip of the other side stays in the cache.
constexpr int64_t kStrip = 64;

template <class F>
void to_channels_last(const F* from, int64_t stride, int channels, int64_t pixels, F* to) {
  for (int64_t p = 0; p < pixels; p += kStrip) {
    transpose(from + p, stride, channels, std::min(kStrip, pixels - p), to + p * channels, channels);
  }
}

template <class F, class T>
void to_channels_first(const T* from, int channels, int64_t pixels, F* to, int64_t stride) {
  for (int64_t p = 0; p < pixels; p += kStrip) {
    transpose(from + p * channels, channels, std::min(kStrip, pixels - p), channels, to + p, stride);
  }
}

template <class F, class T>
void to_rows(const T* from, int channels, int64_t pixels, F* to, int64_t stride) {
  for (int64_t p = 0; p < pixels; ++p, from += channels, to += stride) {
    for (int c = 0; c < channels; ++c) to[c] = static_cast<F>(from[c]);
  }
}

}  // namespace mrrcnn::MRRCNN_ISA
