// The forward: block = RoI (or a part of its bins), warp = bin, lane = channels.
//
// A bin's samples share pixels. So the warp first lists the bin's pixels, a lane each, with the weight that all of
// the bin's samples together give it; then it reads every listed pixel once, all lanes side by side.
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

// The pixel on one axis of `slot`, two slots a sample; -1 if an earlier slot of the bin has the same, or none has.
// Taps of a bin are monotone, so the sample before decides.
template <class TapOf>
__device__ int new_pixel(const TapOf& tap_of, int begin, int slot) {
  const auto tap = tap_of(begin + slot / 2);
  const int pixel = slot % 2 ? tap.high : tap.low;
  if (!tap.visible || (slot % 2 && tap.high == tap.low)) return -1;
  return slot >= 2 && touches(tap_of(begin + slot / 2 - 1), pixel) ? -1 : pixel;
}

// The weight of pixel (y, x) in a bin; `rows` and `columns` begin with the first sample that touches it.
template <class T>
__device__ T weight_of_pixel(const Samples<T>& samples, const Span& rows, const Span& columns, int y, int x) {
  T sum = T(0);
  for (int r = rows.begin; r < rows.end; ++r) {
    const Tap<T> row = samples.row(r);
    if (!touches(row, y)) break;
    T of_row = T(0);
    for (int c = columns.begin; c < columns.end; ++c) {
      const Tap<T> column = samples.column(c);
      if (!touches(column, x)) break;
      of_row += weight_on(column, x) * samples.mask_at(r, c);
    }
    sum += weight_on(row, y) * of_row;
  }
  return sum;
}

// Lists the new pixels among slots [begin, begin + kWarp) of a bin's grid of slots; returns how many there are.
template <class T>
__device__ int list_pixels(const Samples<T>& samples, const Span& rows, const Span& columns, int begin,
                           WeightedPixel<T> (&list)[kWarp]) {
  const int slots_x = 2 * (columns.end - columns.begin), slots = 2 * (rows.end - rows.begin) * slots_x;
  const int lane = threadIdx.x % kWarp, slot = begin + lane;
  int y = -1, x = -1;
  if (slot < slots) {
    y = new_pixel([&](int r) { return samples.row(r); }, rows.begin, slot / slots_x);
    x = new_pixel([&](int c) { return samples.column(c); }, columns.begin, slot % slots_x);
  }
  const bool is_new = y >= 0 && x >= 0;
  const unsigned all_new = __ballot_sync(kAllLanes, is_new);
  if (is_new) {
    const Span from_row{rows.begin + slot / slots_x / 2, rows.end};
    const Span from_column{columns.begin + slot % slots_x / 2, columns.end};
    list[__popc(all_new & ((1u << lane) - 1))] = {
        y * samples.width + x, samples.share * weight_of_pixel(samples, from_row, from_column, y, x)};
  }
  __syncwarp();
  return __popc(all_new);
}

// Adds the listed pixels of an image: kAhead are on their way at once.
template <class F, class T, int V>
__device__ void add_pixels(const Lane<F, V>& lane, const F* image, int channels, const WeightedPixel<T> (&list)[kWarp],
                           int count, T (&sums)[kChannelsPerLane]) {
  constexpr int kAhead = 4;
  for (int first = 0; first < count; first += kAhead) {
    typename Lane<F, V>::Packs packs[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (first + n < count) lane.read(image + static_cast<int64_t>(list[first + n].index) * channels, packs[n]);
    }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (first + n < count) add_weighted(packs[n], list[first + n].weight, sums);
    }
  }
}

template <class F, class T, int V>
__device__ void pool_bin(const Lane<F, V>& lane, const Samples<T>& samples, const F* image, int channels, int bin,
                         WeightedPixel<T> (&list)[kWarp], T (&sums)[kChannelsPerLane]) {
  const int pooled_w = samples.settings.pooled_w;
  const Span rows = samples_of_bin(bin / pooled_w, samples.roi.y.samples, samples.visible_rows);
  const Span columns = samples_of_bin(bin % pooled_w, samples.roi.x.samples, samples.visible_columns);
  if (rows.begin >= rows.end || columns.begin >= columns.end) return;
  const int slots = 4 * (rows.end - rows.begin) * (columns.end - columns.begin);
  for (int begin = 0; begin < slots; begin += kWarp) {
    const int count = list_pixels(samples, rows, columns, begin, list);
    add_pixels(lane, image, channels, list, count, sums);
    __syncwarp();
  }
}

// Blocks a RoI: one is enough to fill a device with RoIs, a few RoIs need more.
inline unsigned forward_parts(int64_t num_rois, int bins) {
  constexpr int64_t kWanted = 1024;
  const int64_t groups = (bins + kWarps - 1) / kWarps, parts = kWanted / num_rois;
  return static_cast<unsigned>(parts < 1 ? 1 : parts < groups ? parts : groups);
}

// Grid: (RoIs, forward_parts). Writes every element; NaN where a batch index or level is out of range.
template <class F, class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const __grid_constant__ Problem<F, T> problem, F* output, const __grid_constant__ Strides strides) {
  __shared__ SampleTable<T> table;
  __shared__ WeightedPixel<T> lists[kWarps][kWarp];
  __shared__ Stage<F> stage;
  const int64_t k = blockIdx.x;
  const Settings& s = problem.settings;
  Roi<T> roi{};
  const Found found = find_roi(problem, k, &roi);
  const Level<F, T>& level = problem.levels[roi.level];
  Samples<T> samples{s, roi, mask_data(problem, k), level.height, level.width, table, false, T(0), {}, {}};
  if (found == Found::yes) samples.prepare();
  __syncthreads();
  const int warp = threadIdx.x / kWarp, bins = s.pooled_h * s.pooled_w;
  for (int first = 0; first < problem.channels; first += kPass) {
    const Lane<F, V> lane{problem.channels - first < kPass ? problem.channels - first : kPass};
    for (int begin = blockIdx.y * kWarps; begin < bins; begin += gridDim.y * kWarps) {
      T sums[kChannelsPerLane];
#pragma unroll
      for (int n = 0; n < kChannelsPerLane; ++n) sums[n] = found == Found::out_of_range ? T(NAN) : T(0);
      if (found == Found::yes && begin + warp < bins) {
        const F* image = image_data(problem, roi) + first;
        pool_bin(lane, samples, image, problem.channels, begin + warp, lists[warp], sums);
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
