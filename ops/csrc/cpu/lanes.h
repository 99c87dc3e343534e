// Vectors of MRRCNN_VECTOR_BYTES, and memory in and out of them. Only IEEE products and sums, no fused ones, so
// that every instruction set gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>

namespace mrrcnn::MRRCNN_ISA {

#define MRRCNN_INLINE inline __attribute__((always_inline))

template <class T>
struct Lanes {
  static constexpr int count = MRRCNN_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(MRRCNN_VECTOR_BYTES)));
};

template <class I, int count>
struct Integers {
  typedef I Vector __attribute__((vector_size(sizeof(I) * count)));
};

template <class T>
using Vector = typename Lanes<T>::Vector;

// Loads a vector of T from memory of F, unaligned.
template <class T, class F>
MRRCNN_INLINE Vector<T> load(const F* from) {
  constexpr int count = Lanes<T>::count;
  Vector<T> lanes;
  if constexpr (std::is_same_v<T, F>) {
    std::memcpy(&lanes, from, sizeof(lanes));
  } else if constexpr (std::is_same_v<F, c10::BFloat16>) {
    // A bfloat16 is the upper half of a float.
    using Words = typename Integers<uint32_t, count>::Vector;
    typename Integers<uint16_t, count>::Vector halves;
    std::memcpy(&halves, from, sizeof(halves));
    const Words words = __builtin_convertvector(halves, Words) << 16;
    std::memcpy(&lanes, &words, sizeof(lanes));
  } else {
    for (int i = 0; i < count; ++i) lanes[i] = static_cast<T>(from[i]);
  }
  return lanes;
}

template <class T, class F>
MRRCNN_INLINE void store(F* to, const Vector<T>& lanes) {
  if constexpr (std::is_same_v<T, F>) {
    std::memcpy(to, &lanes, sizeof(lanes));
  } else {
    for (int i = 0; i < Lanes<T>::count; ++i) to[i] = static_cast<F>(lanes[i]);
  }
}

// Calls wide(c) for runs of kWide vectors of channels, narrow(c) for single vectors, and last(c) for what is left.
constexpr int kWide = 8;
template <class T, class Wide, class Narrow, class Last>
MRRCNN_INLINE void over_channels(int channels, const Wide& wide, const Narrow& narrow, const Last& last) {
  constexpr int count = Lanes<T>::count;
  int c = 0;
  for (; c + kWide * count <= channels; c += kWide * count) wide(c);
  for (; c + count <= channels; c += count) narrow(c);
  for (; c < channels; ++c) last(c);
}

}  // namespace mrrcnn::MRRCNN_ISA
