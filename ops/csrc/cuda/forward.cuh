// The forward: block = RoI (or a part of its bins), warp = bin, lane = channels.
//
// A bin's samples share pixels. So the warp first lists the bin's pixels, a lane each, with the weight that
// all of the bin's samples together give it; then it reads every listed pixel once, all lanes side by side.
#pragma once

#include "channels.cuh"
#include "samples.cuh"

namespace mrrcnn {

// A pixel of a bin and its weight: kWarp of them are listed at once.
template <class T>
struct alignas(2 * sizeof(T)) WeightedPixel {
  int index;
  T weight;
};

// The pixel on one axis of `slot`, two slots a sample; -1 if an earlier slot has the same, or the sample lies
// off the map. Taps of a bin are monotone, so the sample before decides.
template <class T>
__device__ int new_pixel(const Tap<T>* taps, int slot) {
  const Tap<T>& tap = taps[slot / 2];
  const int pixel = slot % 2 ? tap.high : tap.low;
  if (!tap.visible || (slot % 2 && tap.high == tap.low)) return -1;
  return slot >= 2 && touches(taps[slot / 2 - 1], pixel) ? -1 : pixel;
}

// The weight of pixel (y, x); sample (row, column) is the first that touches it.
template <class T>
__device__ T weight_of_pixel(const Samples<T>& samples, int row, int column, int y, int x) {
  T sum = T(0);
  for (int r = row; r < samples.num_rows && touches(samples.rows[r], y); ++r) {
    T of_row = T(0);
    for (int c = column; c < samples.num_columns && touches(samples.columns[c], x); ++c) {
      const T mask = samples.masks ? samples.masks[r * samples.pitch + c] : T(1);
      of_row += weight_on(samples.columns[c], x) * mask;
    }
    sum += weight_on(samples.rows[r], y) * of_row;
  }
  return sum;
}

// Lists the new pixels among slots [begin, begin + kWarp) of the samples' grid of slots; returns how many.
template <class T>
__device__ int list_pixels(const Samples<T>& samples, int width, T share, int begin,
                           WeightedPixel<T> (&list)[kWarp]) {
  const int slots_x = 2 * samples.num_columns, slots = 2 * samples.num_rows * slots_x;
  const int lane = threadIdx.x % kWarp, slot = begin + lane;
  const int row = slot / slots_x, column = slot - row * slots_x;
  int y = -1, x = -1;
  if (slot < slots) {
    y = new_pixel(samples.rows, row);
    x = new_pixel(samples.columns, column);
  }
  const bool is_new = y >= 0 && x >= 0;
  const unsigned all_new = __ballot_sync(kAllLanes, is_new);
  if (is_new) {
    list[__popc(all_new & ((1u << lane) - 1))] = {
        y * width + x, share * weight_of_pixel(samples, row / 2, column / 2, y, x)};
  }
  __syncwarp();
  return __popc(all_new);
}

// Adds the listed pixels of an image; a lane has 64 bytes on their way at once.
template <class F, class T, int V>
__device__ void add_pixels(const Lane<F, V>& lane, const F* image, int channels,
                           const WeightedPixel<T> (&list)[kWarp], int count, T (&sums)[kChannelsPerLane]) {
  constexpr int kAhead = V < 4 ? 1 : V / 2;
  for (int first = 0; first < count; first += kAhead) {
    typename Lane<F, V>::Packs packs[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int64_t pixel = list[first + n].index;
      if (first + n < count) lane.read(image + pixel * channels, packs[n]);
    }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (first + n >= count) continue;
      const T weight = list[first + n].weight;
#pragma unroll
      for (int m = 0; m < kChannelsPerLane / V; ++m) add_weighted(packs[n][m], m, weight, sums);
    }
  }
}

// Adds samples to the sums of their bin.
template <class F, class T, int V>
__device__ void add_samples(const Lane<F, V>& lane, const Problem<F, T>& problem, const Roi<T>& roi,
                            const Samples<T>& samples, const F* image, WeightedPixel<T> (&list)[kWarp],
                            T (&sums)[kChannelsPerLane]) {
  for (int begin = 0; begin < 4 * samples.num_rows * samples.num_columns; begin += kWarp) {
    const int width = problem.levels[roi.level].width;
    const int count = list_pixels(samples, width, share_of_sample(roi), begin, list);
    add_pixels(lane, image, problem.channels, list, count, sums);
    __syncwarp();
  }
}

// The part of a bin's samples that lies in `visible`.
__device__ inline Span samples_of_bin(int bin, int samples, const Span& visible) {
  const int begin = bin * samples, end = begin + samples;
  return {begin > visible.begin ? begin : visible.begin, end < visible.end ? end : visible.end};
}

template <class F, class T, int V>
__device__ void pool_bin(const Lane<F, V>& lane, const Problem<F, T>& problem, SampleTable<T>& table,
                         const F* image, int bin, WeightedPixel<T> (&list)[kWarp],
                         T (&sums)[kChannelsPerLane]) {
  const Settings& s = problem.settings;
  const Roi<T>& roi = table.roi;
  const int i = bin / s.pooled_w, j = bin % s.pooled_w;
  if (fits_table(s, roi)) {
    const Span rows{i * roi.y.samples, (i + 1) * roi.y.samples};
    const Span columns{j * roi.x.samples, (j + 1) * roi.x.samples};
    const Samples<T> samples = tabled_samples(table, s, table.mask != nullptr, rows, columns);
    add_samples(lane, problem, roi, samples, image, list, sums);
    return;
  }
  const Level<F, T>& level = problem.levels[roi.level];
  const Span visible_y = samples_near(roi.y, s.pooled_h, 0, level.height, level.height);
  const Span visible_x = samples_near(roi.x, s.pooled_w, 0, level.width, level.width);
  const Span rows = samples_of_bin(i, roi.y.samples, visible_y);
  const Span columns = samples_of_bin(j, roi.x.samples, visible_x);
  for (int r = rows.begin; r < rows.end; r += kWindow<T>) {
    for (int c = columns.begin; c < columns.end; c += kWindow<T>) {
      const Samples<T> window = window_of_bin(problem, table, r, c, rows, columns);
      add_samples(lane, problem, roi, window, image, list, sums);
    }
  }
}

// Tables RoI k's samples for the whole block, if they fit.
template <class F, class T>
__device__ void prepare_table(const Problem<F, T>& problem, const Roi<T>& roi, int64_t k,
                              SampleTable<T>& table) {
  const T* mask = mask_data(problem, k);
  if (threadIdx.x == 0) {
    table.roi = roi;
    table.mask = mask;
  }
  const Settings& s = problem.settings;
  if (!fits_table(s, roi)) return;
  const int rows = s.pooled_h * roi.y.samples, columns = s.pooled_w * roi.x.samples;
  const Samples<T> all{table.rows, table.columns, table.masks, columns, rows, columns};
  table_samples(problem, roi, mask, 0, 0, all, threadIdx.x, kThreads);
}

// Blocks a RoI: one is enough to fill a device with RoIs, a few RoIs need more.
inline unsigned forward_parts(int64_t num_rois, int bins) {
  constexpr int64_t kWanted = 1024;
  const int64_t groups = (bins + kWarps - 1) / kWarps, parts = kWanted / num_rois;
  return static_cast<unsigned>(parts < 1 ? 1 : parts < groups ? parts : groups);
}

// Blocks that registers leave room for on a multiprocessor. The scalar path may take what it wants.
template <class F, int V>
constexpr int kForwardBlocks = V == 1 ? 1 : sizeof(F) == 4 ? 3 : 2;

// Grid: (RoIs, forward_parts). Writes every element; NaN where a batch index or level is out of range.
template <class F, class T, int V>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<F, V>)
    forward_kernel(const __grid_constant__ Problem<F, T> problem, F* output,
                   const __grid_constant__ Strides strides) {
  __shared__ SampleTable<T> table;
  __shared__ WeightedPixel<T> lists[kWarps][kWarp];
  __shared__ Stage<F> stage;
  const int64_t k = blockIdx.x;
  const Settings& s = problem.settings;
  Roi<T> roi;
  const Found found = find_roi(problem, k, &roi);
  const F* image = nullptr;
  if (found == Found::yes) {
    image = image_data(problem, roi);
    prepare_table(problem, roi, k, table);
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarp, bins = s.pooled_h * s.pooled_w;
  for (int first = 0; first < problem.channels; first += kPass) {
    const Lane<F, V> lane{problem.channels - first < kPass ? problem.channels - first : kPass};
    for (int begin = blockIdx.y * kWarps; begin < bins; begin += gridDim.y * kWarps) {
      T sums[kChannelsPerLane];
#pragma unroll
      for (int n = 0; n < kChannelsPerLane; ++n) sums[n] = found == Found::out_of_range ? T(NAN) : T(0);
      if (found == Found::yes && begin + warp < bins) {
        pool_bin(lane, problem, table, image + first, begin + warp, lists[warp], sums);
      }
      write_places(lane, sums, stage, strides.channel, [&](int n) -> F* {
        if (begin + n >= bins) return nullptr;
        const int i = (begin + n) / s.pooled_w, j = (begin + n) % s.pooled_w;
        return output + k * strides.first + first * strides.channel + i * strides.row + j * strides.column;
      });
    }
  }
}

}  // namespace mrrcnn
