// Fresh memory in huge pages: in small ones the first touch of a large tensor costs more than all the arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mrrcnn {

// Asks for huge pages where whole ones fit into `bytes` at `data`; where the system has none nothing happens.
inline void ask_for_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + huge - 1) & ~(huge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(huge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Room for `count` elements, not initialised.
template <class E>
std::unique_ptr<E[]> new_buffer(size_t count) {
  std::unique_ptr<E[]> buffer(new E[count]);
  ask_for_huge_pages(buffer.get(), count * sizeof(E));
  return buffer;
}

}  // namespace mrrcnn
