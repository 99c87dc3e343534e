// The gradient of the features, of all levels in one launch: a gather, so no atomics and no memset.
//
// Block = a tile of one map and a pass of channels. It finds the RoIs that reach the tile, in ascending
// order, and takes kWarps of them at a time: every warp lists, for each pixel of the tile, the bins of one
// RoI that the pixel belongs to. Then every warp adds up a column of the tile, RoI after RoI. Each pixel is
// written once, by one warp that added in a fixed order: two runs give the same bits.
#pragma once

#include "channels.cuh"
#include "window.cuh"

namespace mrrcnn {

// RoIs found before the block turns to them; more are found later.
constexpr int kHits = 512;
// Bins that a pixel lists of a RoI at once.
template <class T>
constexpr int kListed = 32 / sizeof(T);

struct Hits {
  int roi[kHits];
  int in_warp[kWarps];
};

template <class T>
struct alignas(2 * sizeof(T)) WeightedBin {
  int index;
  T weight;
};

template <class T>
struct Lists {
  WeightedBin<T> bins[kWarps][kListed<T>][kWarp];
  int counts[kWarps][kWarp];
};

template <class F>
struct FeatureGradients {
  F* data[kMaxLevels];
  Strides strides[kMaxLevels];
};

template <class F, class T>
MRRCNN_SHARED int64_t tiles_of_level(const Problem<F, T>& problem, int level) {
  const int64_t tiles_y = (problem.levels[level].height + kTileHeight - 1) / kTileHeight;
  const int64_t tiles_x = (problem.levels[level].width + kTileWidth - 1) / kTileWidth;
  return problem.num_images * tiles_y * tiles_x;
}

template <class F, class T>
MRRCNN_SHARED int passes(const Problem<F, T>& problem) {
  return (problem.channels + kPass - 1) / kPass;
}

// The grid: a tile's passes side by side.
template <class F, class T>
int64_t backward_features_blocks(const Problem<F, T>& problem) {
  int64_t tiles = 0;
  for (int level = 0; level < problem.num_levels; ++level) tiles += tiles_of_level(problem, level);
  return tiles * passes(problem);
}

// The last level first: it is the coarsest, and most RoIs meet on its tiles.
template <class F, class T>
__device__ Tile find_tile(const Problem<F, T>& problem) {
  // There are fewer tiles than blocks, which 32 bits hold; 64 would make the divisions slow.
  int tile = static_cast<int>(blockIdx.x / passes(problem)), level = problem.num_levels - 1;
  for (; tile >= tiles_of_level(problem, level); --level) {
    tile -= static_cast<int>(tiles_of_level(problem, level));
  }
  const int tiles_x = (problem.levels[level].width + kTileWidth - 1) / kTileWidth;
  const int tiles_y = (problem.levels[level].height + kTileHeight - 1) / kTileHeight;
  const int per_image = tiles_y * tiles_x, within = tile % per_image;
  return {level, tile / per_image, within / tiles_x * kTileHeight, within % tiles_x * kTileWidth};
}

// Fills `hits` with RoIs from `*next` on that may reach the tile, in ascending order; returns how many.
template <class F, class T>
__device__ int find_hits(const Problem<F, T>& problem, const Tile& tile, int* next, Hits& hits) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int count = 0;
  for (; *next < problem.num_rois && count <= kHits - kThreads; *next += kThreads) {
    const int64_t k = int64_t(*next) + threadIdx.x;
    const bool hit = k < problem.num_rois && may_touch(problem, tile, k);
    const unsigned all = __ballot_sync(kAllLanes, hit);
    if (lane == 0) hits.in_warp[warp] = __popc(all);
    __syncthreads();
    int mine = count + __popc(all & ((1u << lane) - 1));
    for (int n = 0; n < kWarps; ++n) {
      if (n < warp) mine += hits.in_warp[n];
      count += hits.in_warp[n];
    }
    if (hit) hits.roi[mine] = static_cast<int>(k);
    __syncthreads();
  }
  return count;
}

// Lists bins of the window's RoI for this lane's pixel, as many as fit; returns how many.
template <class F, class T>
__device__ int list_bins(const Problem<F, T>& problem, const Tile& tile, const Window<T>& window,
                         Cursor& cursor, WeightedBin<T> (&list)[kListed<T>][kWarp], bool* more) {
  *more = false;
  if (!cursor.row_bits || !cursor.column_bits) return 0;
  const int lane = threadIdx.x % kWarp;
  const int y = tile.y + lane / kTileWidth, x = tile.x + lane % kTileWidth;
  const int samples_y = window.roi.y.samples, samples_x = window.roi.x.samples;
  const int first_i = (window.row + __ffs(cursor.row_bits) - 1) / samples_y;
  const int first_j = (window.column + __ffs(cursor.column_bits) - 1) / samples_x;
  const int bins_y = (window.row + kWarp - 1 - __clz(cursor.row_bits)) / samples_y - first_i + 1;
  const int bins_x = (window.column + kWarp - 1 - __clz(cursor.column_bits)) / samples_x - first_j + 1;
  const T* mask = mask_data(problem, window.k);
  int count = 0;
  for (; cursor.next < bins_y * bins_x && count < kListed<T>; ++cursor.next) {
    const int i = first_i + cursor.next / bins_x, j = first_j + cursor.next % bins_x;
    const unsigned rows = cursor.row_bits & bits_of_bin(i, samples_y, window.row);
    const unsigned columns = cursor.column_bits & bits_of_bin(j, samples_x, window.column);
    const T weight = weight_in_window(window, rows, columns, y, x, mask, problem.settings.mask_w);
    list[count++][lane] = {i * problem.settings.pooled_w + j, weight};
  }
  *more = cursor.next < bins_y * bins_x;
  return count;
}

// Adds what one RoI's warp has listed: this warp's column of the tile, its pixels side by side.
template <class F, class T, int V>
__device__ void add_listed(const Lane<F, V>& lane, const Lists<T>& lists, int from, const F* grad,
                           int channels, T (&sums)[kTileHeight][kChannelsPerLane]) {
  const int column = threadIdx.x / kWarp;
  int most = 0, counts[kTileHeight];
#pragma unroll
  for (int y = 0; y < kTileHeight; ++y) {
    counts[y] = lists.counts[from][y * kTileWidth + column];
    most = counts[y] > most ? counts[y] : most;
  }
  for (int n = 0; n < most; ++n) {
#pragma unroll
    for (int access = 0; access < kChannelsPerLane / V; ++access) {
      Pack<F, V> packs[kTileHeight];
#pragma unroll
      for (int y = 0; y < kTileHeight; ++y) {
        const int64_t bin = lists.bins[from][n][y * kTileWidth + column].index;
        if (n < counts[y]) packs[y] = lane.read(grad + bin * channels, access);
      }
#pragma unroll
      for (int y = 0; y < kTileHeight; ++y) {
        const T weight = lists.bins[from][n][y * kTileWidth + column].weight;
        if (n < counts[y]) add_weighted(packs[y], access, weight, sums[y]);
      }
    }
  }
}

// Adds the RoIs hits[first], hits[first + 1], ..., one a warp, as often as their lists fill up.
template <class F, class T, int V>
__device__ void add_rois(const Lane<F, V>& lane, const Problem<F, T>& problem, const Tile& tile,
                         const Hits& hits, int first, int count, Window<T> (&windows)[kWarps],
                         Lists<T>& lists, const F* grad, T (&sums)[kTileHeight][kChannelsPerLane]) {
  const int warp = threadIdx.x / kWarp;
  const int64_t per_roi = int64_t(problem.settings.pooled_h) * problem.settings.pooled_w * problem.channels;
  const int rois = count - first < kWarps ? count - first : kWarps;
  Cursor cursor;
  if (warp < rois) open_roi(problem, tile, hits.roi[first + warp], windows[warp], cursor);
  do {
    bool more = false;
    int listed = 0;
    if (cursor.open()) listed = list_bins(problem, tile, windows[warp], cursor, lists.bins[warp], &more);
    lists.counts[warp][threadIdx.x % kWarp] = listed;
    __syncthreads();
    for (int n = 0; n < rois; ++n) {
      add_listed(lane, lists, n, grad + hits.roi[first + n] * per_roi, problem.channels, sums);
    }
    if (cursor.open() && !__any_sync(kAllLanes, more)) next_window(problem, tile, windows[warp], cursor);
  } while (__syncthreads_or(cursor.open()));
}

// Grid: backward_features_blocks. Writes every element of every level's gradient.
template <class F, class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<V>)
    backward_features_kernel(const __grid_constant__ Problem<F, T> problem, const F* grad,
                             const __grid_constant__ FeatureGradients<F> gradients) {
  __shared__ Hits hits;
  __shared__ Window<T> windows[kWarps];
  __shared__ union Scratch {
    Lists<T> lists;
    Stage<F> stage;
  } scratch;
  __shared__ Tile tile;
  if (threadIdx.x == 0) tile = find_tile(problem);
  __syncthreads();
  const int first = blockIdx.x % passes(problem) * kPass;
  const Lane<F, V> lane{problem.channels - first < kPass ? problem.channels - first : kPass};
  T sums[kTileHeight][kChannelsPerLane] = {};
  for (int next = 0; next < problem.num_rois;) {
    const int count = find_hits(problem, tile, &next, hits);
    for (int n = 0; n < count; n += kWarps) {
      add_rois(lane, problem, tile, hits, n, count, windows, scratch.lists, grad + first, sums);
    }
  }
  const Level<F, T>& level = problem.levels[tile.level];
  const Strides& strides = gradients.strides[tile.level];
  F* out = gradients.data[tile.level] + tile.image * strides.first + first * strides.channel;
#pragma unroll
  for (int n = 0; n < kTileHeight; ++n) {
    const int y = tile.y + n;
    write_places(lane, sums[n], scratch.stage, strides.channel, [&](int column) -> F* {
      if (y >= level.height || tile.x + column >= level.width) return nullptr;
      return out + y * strides.row + (tile.x + column) * strides.column;
    });
  }
}

}  // namespace mrrcnn
