// Channels first to channels last: what the other kernels need of maps and gradients that are NCHW.
//
// torch's own copy does the same one element at a time, and reads or writes across memory as it does so.
#pragma once

#include "problem.cuh"

namespace mrrcnn {

// Block = a square of this many channels and pixels. Its rows are a word longer, so that reading down a column
// spreads over the banks.
constexpr int kTurned = 64;

template <class F>
struct Square {
  F values[kTurned][kTurned + (sizeof(F) < 4 ? 4 / sizeof(F) : 1)];
};

inline int64_t turn_blocks(int64_t images, int64_t channels, int64_t pixels) {
  return images * ((channels + kTurned - 1) / kTurned) * ((pixels + kTurned - 1) / kTurned);
}

// Grid: turn_blocks. From [images, channels, pixels] to [images, pixels, channels].
template <class F>
__global__ void __launch_bounds__(kThreads) turn_kernel(const F* from, int channels, int pixels, F* to) {
  __shared__ Square<F> square;
  const unsigned along = (pixels + kTurned - 1) / kTurned, across = (channels + kTurned - 1) / kTurned;
  const int first_pixel = blockIdx.x % along * kTurned, first_channel = blockIdx.x / along % across * kTurned;
  const int64_t image = int64_t(blockIdx.x / along / across) * channels * pixels;
#pragma unroll
  for (int n = 0; n < kTurned * kTurned / kThreads; ++n) {
    const int row = (n * kThreads + threadIdx.x) / kTurned, column = threadIdx.x % kTurned;
    const int64_t channel = first_channel + row, pixel = first_pixel + column;
    if (channel < channels && pixel < pixels) {
      square.values[row][column] = from[image + channel * pixels + pixel];
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kTurned * kTurned / kThreads; ++n) {
    const int row = (n * kThreads + threadIdx.x) / kTurned, column = threadIdx.x % kTurned;
    const int64_t pixel = first_pixel + row, channel = first_channel + column;
    if (channel < channels && pixel < pixels) {
      to[image + pixel * channels + channel] = square.values[column][row];
    }
  }
}

}  // namespace mrrcnn
