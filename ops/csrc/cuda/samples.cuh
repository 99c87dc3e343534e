// The samples of one RoI in shared memory: taps and mask values, each computed once.
//
// As a rule a RoI's samples all fit, and the block tables them before its warps turn to their bins. Where
// they do not (sampling adapted to a large box) every warp gets a part of the table and goes through its
// bin's samples window by window.
#pragma once

#include "problem.cuh"

namespace mrrcnn {

// Samples of an axis that a table holds: 64, half of that for float64. It holds 14 x 14 bins of four a side.
template <class T>
constexpr int kTabled = 256 / sizeof(T);
// And those that a warp's part of it holds.
template <class T>
constexpr int kWindow = kTabled<T> / kWarps;

template <class T>
struct SampleTable {
  Roi<T> roi;
  const T* mask;  // null without masks
  Tap<T> rows[kTabled<T>], columns[kTabled<T>];
  T masks[kTabled<T> * kTabled<T>];
};

// A rectangle of tabled samples. `masks` is null without a mask.
template <class T>
struct Samples {
  Tap<T>*rows, *columns;
  T* masks;
  int pitch, num_rows, num_columns;
};

// Tables the samples from (row, column) on. `member` is one of `members` threads that share the work, and
// that must meet before they read.
template <class F, class T>
__device__ void table_samples(const Problem<F, T>& problem, const Roi<T>& roi, const T* mask, int row,
                              int column, const Samples<T>& samples, int member, int members) {
  const Settings& s = problem.settings;
  const Level<F, T>& level = problem.levels[roi.level];
  const int count_y = s.pooled_h * roi.y.samples, count_x = s.pooled_w * roi.x.samples;
  for (int n = member; n < samples.num_rows; n += members) {
    samples.rows[n] = feature_tap(roi.y, row + n, level.height);
  }
  for (int n = member; n < samples.num_columns; n += members) {
    samples.columns[n] = feature_tap(roi.x, column + n, level.width);
  }
  for (int n = member; mask && n < samples.num_rows * samples.num_columns; n += members) {
    const int r = n / samples.num_columns, c = n % samples.num_columns;
    samples.masks[r * samples.pitch + c] =
        mask_value(mask, s.mask_w, mask_tap<T>(row + r, count_y, s.mask_h, s.half_pixel),
                   mask_tap<T>(column + c, count_x, s.mask_w, s.half_pixel));
  }
}

// Whether the whole table holds all of a RoI's samples.
template <class T>
__device__ bool fits_table(const Settings& s, const Roi<T>& roi) {
  return s.pooled_h * roi.y.samples <= kTabled<T> && s.pooled_w * roi.x.samples <= kTabled<T>;
}

// Samples [rows) x [columns) of such a table.
template <class T>
__device__ Samples<T> tabled_samples(SampleTable<T>& table, const Settings& s, bool masked, const Span& rows,
                                     const Span& columns) {
  const int pitch = s.pooled_w * table.roi.x.samples;
  T* masks = masked ? table.masks + rows.begin * pitch + columns.begin : nullptr;
  return {table.rows + rows.begin, table.columns + columns.begin, masks, pitch, rows.end - rows.begin,
          columns.end - columns.begin};
}

// The window of samples from (row, column) on, in this warp's part of the table: as much of [rows) x [columns)
// as fits.
template <class F, class T>
__device__ Samples<T> window_of_bin(const Problem<F, T>& problem, SampleTable<T>& table, int row, int column,
                                    const Span& rows, const Span& columns) {
  const int first = threadIdx.x / kWarp * kWindow<T>;
  const int num_rows = rows.end - row < kWindow<T> ? rows.end - row : kWindow<T>;
  const int num_columns = columns.end - column < kWindow<T> ? columns.end - column : kWindow<T>;
  T* masks = table.mask ? table.masks + first * kWindow<T> : nullptr;
  const Samples<T> window{table.rows + first, table.columns + first, masks,
                          num_columns,        num_rows,              num_columns};
  __syncwarp();  // all lanes are done with the window before
  table_samples(problem, table.roi, table.mask, row, column, window, threadIdx.x % kWarp, kWarp);
  __syncwarp();
  return window;
}

}  // namespace mrrcnn
