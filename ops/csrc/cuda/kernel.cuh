// The CUDA kernels, free of torch: a lane is a channel, so a warp reads 32 channels of a pixel side by side.
//
// F is the type of the features, T the type of coordinates, masks and sums. Features and grad are channels
// innermost. No kernel uses atomics: every output element has one owner that adds in a fixed order, so two runs
// give the same bits. Taps are computed where they are needed, by every lane alike.
//
// State: compiled for sm_80 and sm_90, and checked on the CPU thread by thread; not yet run on a GPU.
#pragma once

#include <cstdint>

#include "../geometry.h"

namespace mrrcnn {

constexpr int kMaxLevels = 8;
constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr int kChannelsPerLane = 8;  // one pass over a bin's samples covers 256 channels
constexpr int kTile = 8;             // a block of the feature gradient owns kTile x kTile pixels
constexpr int kSampleChunk = 1024;   // samples of a row whose products are held at once
static_assert(kTile == kWarps, "a warp of the feature gradient owns one row of its tile");

template <class F, class T>
struct Level {
  const F* data;
  int height, width;
  T scale;
};

template <class F, class T>
struct Problem {
  Level<F, T> levels[kMaxLevels];
  int num_levels;
  const T* rois;         // [K, 5]
  const T* masks;        // [K, mask_h, mask_w] or null
  const int64_t* level;  // [K] or null for level 0
  int64_t num_rois, num_images;
  int channels;
  Settings settings;
};

// Where an element of a [*, C, H, W] tensor lies.
struct Strides {
  int64_t first, channel, row, column;
};

template <class T>
struct Roi {
  int level;
  int64_t image;
  Axis<T> y, x;
  T per_bin;
};

enum class Found { yes, nothing, out_of_range };

// Finds RoI k's axes. An index out of range cannot be raised without waiting for the device: never read there.
template <class F, class T>
__device__ Found find_roi(const Problem<F, T>& problem, int64_t k, Roi<T>* roi) {
  const T* box = problem.rois + 5 * k;
  const int64_t level = problem.level ? problem.level[k] : 0;
  if (!(box[0] >= T(0) && box[0] < T(problem.num_images))) return Found::out_of_range;
  if (level < 0 || level >= problem.num_levels) return Found::out_of_range;
  roi->level = static_cast<int>(level);
  roi->image = static_cast<int64_t>(box[0]);
  const T scale = problem.levels[level].scale;
  const Settings& s = problem.settings;
  if (!place_axis(box[2], box[4], scale, s.pooled_h, s, &roi->y)) return Found::nothing;
  if (!place_axis(box[1], box[3], scale, s.pooled_w, s, &roi->x)) return Found::nothing;
  roi->per_bin = T(roi->y.samples) * T(roi->x.samples);
  return Found::yes;
}

template <class F, class T>
__device__ const F* image_data(const Problem<F, T>& problem, const Roi<T>& roi) {
  const Level<F, T>& level = problem.levels[roi.level];
  return level.data + roi.image * level.height * level.width * problem.channels;
}

// P at sample (r, c) of RoI k, 1 without masks.
template <class F, class T>
__device__ T sample_mask(const Problem<F, T>& problem, const Roi<T>& roi, int64_t k, int r, int c) {
  if (!problem.masks) return T(1);
  const Settings& s = problem.settings;
  const Tap<T> row = mask_tap<T>(r, s.pooled_h * roi.y.samples, s.mask_h, s.half_pixel);
  const Tap<T> column = mask_tap<T>(c, s.pooled_w * roi.x.samples, s.mask_w, s.half_pixel);
  return mask_value(problem.masks + k * s.mask_h * s.mask_w, s.mask_w, row, column);
}

// F at a sample, for one channel.
template <class F, class T>
__device__ T sample_feature(const F* channel, const Tap<T>& row, const Tap<T>& column, int width, int channels) {
  const F* low = channel + static_cast<int64_t>(row.low) * width * channels;
  const F* high = channel + static_cast<int64_t>(row.high) * width * channels;
  const int left = column.low * channels, right = column.high * channels;
  return row.weight_low * (column.weight_low * T(low[left]) + column.weight_high * T(low[right])) +
         row.weight_high * (column.weight_low * T(high[left]) + column.weight_high * T(high[right]));
}

// Adds F * P of bin (i, j) to sums, this lane's channels from `first` in steps of a warp.
template <class F, class T>
__device__ void add_bin(const Problem<F, T>& problem, const Roi<T>& roi, int64_t k, int i, int j, int first,
                        T (&sums)[kChannelsPerLane]) {
  const Level<F, T>& level = problem.levels[roi.level];
  const F* image = image_data(problem, roi);
  for (int r = i * roi.y.samples; r < (i + 1) * roi.y.samples; ++r) {
    const Tap<T> row = feature_tap(roi.y, r, level.height);
    for (int c = j * roi.x.samples; row.visible && c < (j + 1) * roi.x.samples; ++c) {
      const Tap<T> column = feature_tap(roi.x, c, level.width);
      if (!column.visible) continue;
      const T mask = sample_mask(problem, roi, k, r, c);
#pragma unroll
      for (int n = 0; n < kChannelsPerLane; ++n) {
        const int channel = first + n * kWarp;
        if (channel >= problem.channels) break;
        sums[n] += mask * sample_feature(image + channel, row, column, level.width, problem.channels);
      }
    }
  }
}

// Block = RoI, warp = bin. Writes every element; NaN where a batch index or level is out of range.
template <class F, class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(Problem<F, T> problem, F* output, Strides strides) {
  const int64_t k = blockIdx.x;
  const int lane = threadIdx.x % kWarp;
  const Settings& s = problem.settings;
  Roi<T> roi;
  const Found found = find_roi(problem, k, &roi);
  const T nothing = found == Found::out_of_range ? T(NAN) : T(0);
  for (int bin = threadIdx.x / kWarp; bin < s.pooled_h * s.pooled_w; bin += kWarps) {
    const int i = bin / s.pooled_w, j = bin % s.pooled_w;
    F* out = output + k * strides.first + i * strides.row + j * strides.column;
    for (int first = lane; first < problem.channels; first += kWarp * kChannelsPerLane) {
      T sums[kChannelsPerLane] = {};
      if (found == Found::yes) add_bin(problem, roi, k, i, j, first, sums);
#pragma unroll
      for (int n = 0; n < kChannelsPerLane; ++n) {
        const int channel = first + n * kWarp;
        if (channel >= problem.channels) break;
        out[channel * strides.channel] = F(found == Found::yes ? sums[n] / roi.per_bin : nothing);
      }
    }
  }
}

// Whether samples of an axis can touch pixels [begin, begin + kTile): never a wrong no.
template <class T>
__device__ bool may_touch(const Axis<T>& axis, int bins, int size, int begin) {
  const T end = axis.start + T(bins) * axis.bin_size;  // before start where a box is inverted
  T low = axis.start < end ? axis.start : end;
  T high = axis.start < end ? end : axis.start;
  low = low > T(size - 1) ? T(size - 1) : low;
  high = high < T(0) ? T(0) : high;
  return low - T(1) <= T(begin + kTile - 1) && high + T(1) >= T(begin);
}

// Adds RoI k's share of pixel row `y` to the row's sums, one lane a channel.
template <class F, class T>
__device__ void add_roi_to_row(const Problem<F, T>& problem, const Roi<T>& roi, int64_t k, const T* grad, int y,
                               int x_begin, int channel, T (*sums)[kWarp]) {
  const Settings& s = problem.settings;
  const Level<F, T>& level = problem.levels[roi.level];
  const int lane = threadIdx.x % kWarp;
  for (int r = 0; r < s.pooled_h * roi.y.samples; ++r) {
    const Tap<T> row = feature_tap(roi.y, r, level.height);
    const T weight_y = (row.low == y ? row.weight_low : T(0)) + (row.high == y ? row.weight_high : T(0));
    if (!row.visible || weight_y == T(0)) continue;
    for (int c = 0; c < s.pooled_w * roi.x.samples; ++c) {
      const Tap<T> column = feature_tap(roi.x, c, level.width);
      const int left = column.low - x_begin, right = column.high - x_begin;
      const bool left_inside = left >= 0 && left < kTile, right_inside = right >= 0 && right < kTile;
      if (!column.visible || !(left_inside || right_inside)) continue;
      const int64_t bin = (r / roi.y.samples) * s.pooled_w + c / roi.x.samples;
      const T g = channel < problem.channels
                      ? grad[(k * s.pooled_h * s.pooled_w + bin) * problem.channels + channel]
                      : T(0);
      const T term = weight_y * sample_mask(problem, roi, k, r, c) / roi.per_bin * g;
      if (left_inside) sums[left][lane] += column.weight_low * term;
      if (right_inside) sums[right][lane] += column.weight_high * term;
    }
  }
}

// Gathers one level's feature gradient. Block = a tile of one image and 32 channels, warp = a row of the tile.
// It goes through the RoIs in their order, 32 at a time, and writes each of its pixels once.
template <class F, class T>
__global__ void __launch_bounds__(kThreads)
    backward_features_kernel(Problem<F, T> problem, int level_index, const T* grad, F* grad_feature, Strides strides) {
  __shared__ T sums[kTile][kTile][kWarp];
  const Level<F, T>& level = problem.levels[level_index];
  const int tiles_x = (level.width + kTile - 1) / kTile, tiles_y = (level.height + kTile - 1) / kTile;
  const int64_t image = blockIdx.x / (tiles_x * tiles_y);
  const int tile = blockIdx.x % (tiles_x * tiles_y);
  const int x_begin = tile % tiles_x * kTile, y_begin = tile / tiles_x * kTile;
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp;
  const int channel = blockIdx.y * kWarp + lane;
  // Each lane reads and writes its own sums only, so the warps need not wait for each other.
  for (int x = 0; x < kTile; ++x) sums[row][x][lane] = T(0);
  for (int64_t base = 0; base < problem.num_rois; base += kWarp) {
    Roi<T> roi;
    const int64_t mine = base + lane;
    const bool touches = mine < problem.num_rois && find_roi(problem, mine, &roi) == Found::yes &&
                         roi.level == level_index && roi.image == image &&
                         may_touch(roi.y, problem.settings.pooled_h, level.height, y_begin) &&
                         may_touch(roi.x, problem.settings.pooled_w, level.width, x_begin);
    for (unsigned left = __ballot_sync(0xffffffffu, touches); left; left &= left - 1) {
      const int64_t k = base + __ffs(left) - 1;
      find_roi(problem, k, &roi);
      add_roi_to_row(problem, roi, k, grad, y_begin + row, x_begin, channel, sums[row]);
    }
  }
  if (y_begin + row >= level.height || channel >= problem.channels) return;
  F* out = grad_feature + image * strides.first + channel * strides.channel + (y_begin + row) * strides.row;
  for (int x = 0; x < kTile && x_begin + x < level.width; ++x) {
    out[(x_begin + x) * strides.column] = F(sums[row][x][lane]);
  }
}

// The sum over channels of grad * F at a sample, the same in every lane of the warp.
template <class F, class T>
__device__ T grad_dot_sample(const F* image, const Tap<T>& row, const Tap<T>& column, int width, const T* grad,
                             int channels) {
  T sum = T(0);
  for (int channel = threadIdx.x % kWarp; channel < channels; channel += kWarp) {
    sum += grad[channel] * sample_feature(image + channel, row, column, width, channels);
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  return sum;
}

// Adds the products of samples [begin, end) of sample row r to the two mask rows they touch, a thread a cell.
template <class F, class T>
__device__ void gather_to_mask(const Problem<F, T>& problem, const Roi<T>& roi, int r, int begin, int end,
                               const T* products, T* grad_mask) {
  const Settings& s = problem.settings;
  const Tap<T> row = mask_tap<T>(r, s.pooled_h * roi.y.samples, s.mask_h, s.half_pixel);
  // At the border both taps are one row of the mask: it must have one owner.
  const int rows = row.low == row.high ? 1 : 2;
  for (int cell = threadIdx.x; cell < rows * s.mask_w; cell += kThreads) {
    const int m = cell < s.mask_w ? row.low : row.high, n = cell % s.mask_w;
    const T weight_y = (m == row.low ? row.weight_low : T(0)) + (m == row.high ? row.weight_high : T(0));
    T sum = T(0);
    for (int c = begin; c < end; ++c) {
      const Tap<T> column = mask_tap<T>(c, s.pooled_w * roi.x.samples, s.mask_w, s.half_pixel);
      sum += ((n == column.low ? column.weight_low : T(0)) + (n == column.high ? column.weight_high : T(0))) *
             products[c - begin];
    }
    grad_mask[m * s.mask_w + n] += weight_y * sum;
  }
}

// Block = RoI. Row by row of the samples: warps form grad . F at each sample, then threads gather them to cells.
template <class F, class T>
__global__ void __launch_bounds__(kThreads)
    backward_masks_kernel(Problem<F, T> problem, const T* grad, T* grad_masks) {
  __shared__ T products[kSampleChunk];
  const int64_t k = blockIdx.x;
  const Settings& s = problem.settings;
  T* grad_mask = grad_masks + k * s.mask_h * s.mask_w;
  for (int cell = threadIdx.x; cell < s.mask_h * s.mask_w; cell += kThreads) grad_mask[cell] = T(0);
  Roi<T> roi;
  if (find_roi(problem, k, &roi) != Found::yes) return;  // the same for the whole block
  const Level<F, T>& level = problem.levels[roi.level];
  const F* image = image_data(problem, roi);
  const int columns = s.pooled_w * roi.x.samples;
  for (int r = 0; r < s.pooled_h * roi.y.samples; ++r) {
    const Tap<T> row = feature_tap(roi.y, r, level.height);
    for (int begin = 0; row.visible && begin < columns; begin += kSampleChunk) {
      const int end = begin + kSampleChunk < columns ? begin + kSampleChunk : columns;
      for (int c = begin + threadIdx.x / kWarp; c < end; c += kWarps) {
        const Tap<T> column = feature_tap(roi.x, c, level.width);
        const int64_t bin = (r / roi.y.samples) * s.pooled_w + c / roi.x.samples;
        const T* g = grad + (k * s.pooled_h * s.pooled_w + bin) * problem.channels;
        const T sum = column.visible ? grad_dot_sample(image, row, column, level.width, g, problem.channels) : T(0);
        if (threadIdx.x % kWarp == 0) products[c - begin] = sum / roi.per_bin;
      }
      __syncthreads();
      gather_to_mask(problem, roi, r, begin, end, products, grad_mask);
      __syncthreads();
    }
  }
}

}  // namespace mrrcnn
