// The samples of one RoI: taps and mask values, computed once a block where they fit into shared memory.
#pragma once

#include "problem.cuh"

namespace mrrcnn {

// Samples of an axis that a table holds: 64, half of that for float64. 14 x 14 bins with four samples a side fit.
template <class T>
constexpr int kTabled = 256 / sizeof(T);

template <class T>
struct SampleTable {
  Tap<T> rows[kTabled<T>], columns[kTabled<T>];
  T masks[kTabled<T> * kTabled<T>];
};

// P at sample (r, c) of a RoI; 1 without a mask.
template <class T>
__device__ T sample_mask(const Settings& s, const Roi<T>& roi, const T* mask, int r, int c) {
  if (!mask) return T(1);
  const Tap<T> row = mask_tap<T>(r, s.pooled_h * roi.y.samples, s.mask_h, s.half_pixel);
  const Tap<T> column = mask_tap<T>(c, s.pooled_w * roi.x.samples, s.mask_w, s.half_pixel);
  return mask_value(mask, s.mask_w, row, column);
}

// A RoI's samples, from the table where it holds them all. Otherwise (sampling adapted to a large box) a sample is
// computed where it is needed, and `visible_*` keep off the samples that lie outside the map.
template <class T>
struct Samples {
  const Settings& settings;
  const Roi<T>& roi;
  const T* mask;
  int height, width;
  SampleTable<T>& table;
  bool tabled;
  T share;
  Span visible_rows, visible_columns;

  __device__ int rows() const { return settings.pooled_h * roi.y.samples; }
  __device__ int columns() const { return settings.pooled_w * roi.x.samples; }

  __device__ Tap<T> row(int r) const { return tabled ? table.rows[r] : feature_tap(roi.y, r, height); }
  __device__ Tap<T> column(int c) const { return tabled ? table.columns[c] : feature_tap(roi.x, c, width); }

  __device__ T mask_at(int r, int c) const {
    if (!mask) return T(1);
    return tabled ? table.masks[r * columns() + c] : sample_mask(settings, roi, mask, r, c);
  }

  // To be called by the whole block, which must meet before it reads.
  __device__ void prepare() {
    share = share_of_sample(roi);
    tabled = rows() <= kTabled<T> && columns() <= kTabled<T>;
    visible_rows = tabled ? Span{0, rows()} : samples_near(roi.y, settings.pooled_h, 0, height, height);
    visible_columns = tabled ? Span{0, columns()} : samples_near(roi.x, settings.pooled_w, 0, width, width);
    if (!tabled) return;
    for (int r = threadIdx.x; r < rows(); r += kThreads) table.rows[r] = feature_tap(roi.y, r, height);
    for (int c = threadIdx.x; c < columns(); c += kThreads) table.columns[c] = feature_tap(roi.x, c, width);
    for (int n = threadIdx.x; mask && n < rows() * columns(); n += kThreads) {
      table.masks[n] = sample_mask(settings, roi, mask, n / columns(), n % columns());
    }
  }
};

// The part of [bin's first sample, bin's end) that is visible.
__device__ inline Span samples_of_bin(int bin, int samples, const Span& visible) {
  const int begin = bin * samples, end = begin + samples;
  return {begin > visible.begin ? begin : visible.begin, end < visible.end ? end : visible.end};
}

}  // namespace mrrcnn
