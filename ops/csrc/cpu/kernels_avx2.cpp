// The CPU kernels for x86-64 machines with AVX2, chosen when they run: vectors of 32 bytes.
//
// What is shared with other files comes before the target: the linker may keep this file's copy of it for all.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "problem.h"

#if defined(MRRCNN_HAS_AVX2)
#pragma GCC target("avx2,f16c")
#define MRRCNN_ISA avx2
#define MRRCNN_VECTOR_BYTES 32
#include "kernels.h"
#endif
