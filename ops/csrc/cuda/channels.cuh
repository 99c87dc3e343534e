// How a warp reads, adds up and writes the channels of a place: of a pixel or of a bin.
//
// A pass is kPass channels, kChannelsPerLane a lane. V of them are neighbours and move in one access: 16
// bytes on the vector path, one element on the scalar path. The vector path needs C % V == 0 and bases
// aligned to 16 bytes.
#pragma once

#include "problem.cuh"

namespace mrrcnn {

constexpr int kChannelsPerLane = 8;
constexpr int kPass = kWarp * kChannelsPerLane;

// float64 is for correctness only.
template <class F>
constexpr int kVector = sizeof(F) == 8 ? 1 : 16 / sizeof(F);

// Blocks a multiprocessor must have room for; the scalar path may take all the registers it wants.
template <int V>
constexpr int kBlocks = V > 1 ? 2 : 1;

template <class F, int V>
struct alignas(V * sizeof(F)) Pack {
  F values[V];
};

// This lane's channels of a pass that has `left` channels.
template <class F, int V>
struct Lane {
  static constexpr int kAccesses = kChannelsPerLane / V;
  using Packs = Pack<F, V>[kAccesses];
  int left;

  __device__ int channel(int access) const { return (access * kWarp + threadIdx.x % kWarp) * V; }
  __device__ bool owns(int access) const { return channel(access) < left; }

  // Lanes beyond the last channel read the first ones again: cheaper than asking before every read.
  __device__ Pack<F, V> read(const F* place, int access) const {
    return *reinterpret_cast<const Pack<F, V>*>(place + (owns(access) ? channel(access) : 0));
  }

  __device__ void read(const F* place, Packs& packs) const {
#pragma unroll
    for (int n = 0; n < kAccesses; ++n) packs[n] = read(place, n);
  }

  template <class T>
  __device__ void write(F* place, const T (&sums)[kChannelsPerLane]) const {
#pragma unroll
    for (int n = 0; n < kAccesses; ++n) {
      Pack<F, V> pack;
#pragma unroll
      for (int c = 0; c < V; ++c) pack.values[c] = static_cast<F>(sums[n * V + c]);
      if (owns(n)) *reinterpret_cast<Pack<F, V>*>(place + channel(n)) = pack;
    }
  }
};

// Adds the channels of one access.
template <class F, int V, class T>
__device__ void add_weighted(const Pack<F, V>& pack, int access, T weight, T (&sums)[kChannelsPerLane]) {
#pragma unroll
  for (int c = 0; c < V; ++c) sums[access * V + c] += weight * static_cast<T>(pack.values[c]);
}

// Where kWarps neighbouring places meet before they are written with channels outermost. Rows are four words
// longer than a pass, so that reading across them spreads over the banks.
template <class F>
struct alignas(16) Stage {
  F values[kWarps][kPass + 16 / sizeof(F)];
};

// Writes a pass of kWarps neighbouring places, every warp the sums of its own. `place(n)` points to the first
// channel of warp n's place; null where there is none. All threads of the block must call.
template <class F, class T, int V, class Place>
__device__ void write_places(const Lane<F, V>& lane, const T (&sums)[kChannelsPerLane], Stage<F>& stage,
                             int64_t channel_stride, const Place& place) {
  const int warp = threadIdx.x / kWarp;
  if (channel_stride == 1) {
    F* mine = place(warp);
    if (mine) lane.write(mine, sums);
    return;
  }
  lane.write(stage.values[warp], sums);
  __syncthreads();
  F* mine = place(threadIdx.x % kWarps);
  for (int channel = threadIdx.x / kWarps; mine && channel < lane.left; channel += kThreads / kWarps) {
    mine[channel * channel_stride] = stage.values[threadIdx.x % kWarps][channel];
  }
  __syncthreads();
}

}  // namespace mrrcnn
