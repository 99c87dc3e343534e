// The gradient of the masks: block = RoI. Warps form the sum over channels of grad * F at every sample; then
// threads gather those products to the mask's cells, each cell by one thread in a fixed order. No atomics.
#pragma once

#include "channels.cuh"
#include "problem.cuh"

namespace mrrcnn {

// A block handles this many samples a side at once: 64, half of that for float64.
template <class T>
constexpr int kProducts = 256 / sizeof(T);

template <class T>
struct Products {
  Span rows, columns;  // the RoI's samples at hand
  Tap<T> row_taps[kProducts<T>], column_taps[kProducts<T>];
  Tap<T> mask_rows[kProducts<T>], mask_columns[kProducts<T>];
  T values[kProducts<T>][kProducts<T>];
};

// This lane's channels of grad * F at one pixel.
template <class F, class T, int V>
__device__ T dot(const Lane<F, V>& lane, const T (&grad)[kChannelsPerLane],
                 const Pack<F, V> (&packs)[kChannelsPerLane / V]) {
  T sum = T(0);
#pragma unroll
  for (int access = 0; access < kChannelsPerLane / V; ++access) {
    T part = T(0);
#pragma unroll
    for (int c = 0; c < V; ++c) part += grad[access * V + c] * static_cast<T>(packs[access].values[c]);
    // What a lane reads beyond the last channel is no part of the sum, not even times zero: it may be
    // infinite.
    sum += lane.owns(access) ? part : T(0);
  }
  return sum;
}

// This lane's channels of grad * F at a sample, for which `low` and `high` are its rows of pixels.
template <class F, class T, int V>
__device__ T dot_sample(const Lane<F, V>& lane, const T (&grad)[kChannelsPerLane], const F* low,
                        const F* high, const Tap<T>& row, const Tap<T>& column, int channels) {
  typename Lane<F, V>::Packs packs[4];
  const int64_t left = int64_t(column.low) * channels, right = int64_t(column.high) * channels;
  lane.read(low + left, packs[0]);
  lane.read(low + right, packs[1]);
  lane.read(high + left, packs[2]);
  lane.read(high + right, packs[3]);
  T dots[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) dots[n] = dot(lane, grad, packs[n]);
  return row.weight_low * (column.weight_low * dots[0] + column.weight_high * dots[1]) +
         row.weight_high * (column.weight_low * dots[2] + column.weight_high * dots[3]);
}

// Two sums over the warp for the price of one and a bit: even lanes get the first's, odd lanes the second's.
template <class T>
__device__ T sum_of_two(T first, T second) {
  const bool odd = threadIdx.x % 2;
  T sum = (odd ? second : first) + __shfl_xor_sync(kAllLanes, odd ? first : second, 1);
  for (int distance = 2; distance < kWarp; distance *= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
}

// Forms the products of the samples of row r that lie in `columns`, all of one bin whose gradient is `grad`.
template <class F, class T, int V>
__device__ void multiply(const Problem<F, T>& problem, const Roi<T>& roi, const F* image, const F* grad,
                         int r, const Span& columns, Products<T>& products) {
  const Tap<T> row = products.row_taps[r - products.rows.begin];
  T* values = products.values[r - products.rows.begin];
  const int64_t pitch = int64_t(problem.levels[roi.level].width) * problem.channels;
  const F *low = image + row.low * pitch, *high = image + row.high * pitch;
  const T share = share_of_sample(roi);
  for (int first = 0; first < problem.channels; first += kPass) {
    const Lane<F, V> lane{problem.channels - first < kPass ? problem.channels - first : kPass};
    typename Lane<F, V>::Packs packs;
    lane.read(grad + first, packs);
    T mine[kChannelsPerLane];
#pragma unroll
    for (int n = 0; n < kChannelsPerLane; ++n) mine[n] = static_cast<T>(packs[n / V].values[n % V]);
    for (int c = columns.begin; c < columns.end; c += 2) {
      T sums[2] = {T(0), T(0)};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (!row.visible || c + n >= columns.end) continue;
        const Tap<T> column = products.column_taps[c + n - products.columns.begin];
        if (!column.visible) continue;
        sums[n] = dot_sample(lane, mine, low + first, high + first, row, column, problem.channels);
      }
      const T sum = share * sum_of_two(sums[0], sums[1]);
      const int own = threadIdx.x % kWarp;
      if (own >= 2 || c + own >= columns.end) continue;
      T& value = values[c + own - products.columns.begin];
      value = first == 0 ? sum : value + sum;
    }
  }
}

// Tables the samples at hand.
template <class F, class T>
__device__ void table_products(const Problem<F, T>& problem, const Roi<T>& roi, Products<T>& products) {
  const Settings& s = problem.settings;
  const Level<F, T>& level = problem.levels[roi.level];
  for (int n = threadIdx.x; n < products.rows.end - products.rows.begin; n += kThreads) {
    const int r = products.rows.begin + n;
    products.row_taps[n] = feature_tap(roi.y, r, level.height);
    products.mask_rows[n] = mask_tap<T>(r, s.pooled_h * roi.y.samples, s.mask_h, s.half_pixel);
  }
  for (int n = threadIdx.x; n < products.columns.end - products.columns.begin; n += kThreads) {
    const int c = products.columns.begin + n;
    products.column_taps[n] = feature_tap(roi.x, c, level.width);
    products.mask_columns[n] = mask_tap<T>(c, s.pooled_w * roi.x.samples, s.mask_w, s.half_pixel);
  }
}

// Forms all products at hand: a warp takes the samples that share a row and a bin.
template <class F, class T, int V>
__device__ void form_products(const Problem<F, T>& problem, const Roi<T>& roi, int64_t k, const F* grad,
                              Products<T>& products) {
  const Settings& s = problem.settings;
  const Span &rows = products.rows, &columns = products.columns;
  const F* image = image_data(problem, roi);
  const int first_j = columns.begin / roi.x.samples;
  const int bins = (columns.end - 1) / roi.x.samples - first_j + 1;
  for (int n = threadIdx.x / kWarp; n < (rows.end - rows.begin) * bins; n += kWarps) {
    const int r = rows.begin + n / bins, j = first_j + n % bins;
    const int begin = j * roi.x.samples, end = begin + roi.x.samples;
    const Span in_bin{begin > columns.begin ? begin : columns.begin, end < columns.end ? end : columns.end};
    const int64_t bin = (k * s.pooled_h + r / roi.y.samples) * s.pooled_w + j;
    multiply<F, T, V>(problem, roi, image, grad + bin * problem.channels, r, in_bin, products);
  }
}

// Limits `span` to the samples at hand, counted from the first of them.
__device__ inline Span at_hand(const Span& span, const Span& all) {
  return {(span.begin > all.begin ? span.begin : all.begin) - all.begin,
          (span.end < all.end ? span.end : all.end) - all.begin};
}

// Adds the products at hand to the cells they touch, a thread a cell.
template <class T>
__device__ void gather_to_mask(const Settings& s, const Roi<T>& roi, const Products<T>& products,
                               T* grad_mask) {
  for (int cell = threadIdx.x; cell < s.mask_h * s.mask_w; cell += kThreads) {
    const int m = cell / s.mask_w, n = cell % s.mask_w;
    const int count_y = s.pooled_h * roi.y.samples, count_x = s.pooled_w * roi.x.samples;
    const Span rows = at_hand(mask_samples_near<T>(m, count_y, s.mask_h, s.half_pixel), products.rows);
    const Span columns = at_hand(mask_samples_near<T>(n, count_x, s.mask_w, s.half_pixel), products.columns);
    T sum = T(0);
    for (int r = rows.begin; r < rows.end; ++r) {
      T of_row = T(0);
      for (int c = columns.begin; c < columns.end; ++c) {
        // A sample that only came near must add nothing, even where its product is not finite.
        if (touches(products.mask_columns[c], n)) {
          of_row += weight_on(products.mask_columns[c], n) * products.values[r][c];
        }
      }
      if (touches(products.mask_rows[r], m)) sum += weight_on(products.mask_rows[r], m) * of_row;
    }
    grad_mask[cell] += sum;
  }
}

// Grid: RoIs. Writes every element; zeros where a batch index or level is out of range.
template <class F, class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<V>)
    backward_masks_kernel(const __grid_constant__ Problem<F, T> problem, const F* grad, T* grad_masks) {
  __shared__ Products<T> products;
  const int64_t k = blockIdx.x;
  const Settings& s = problem.settings;
  T* grad_mask = grad_masks + k * s.mask_h * s.mask_w;
  for (int cell = threadIdx.x; cell < s.mask_h * s.mask_w; cell += kThreads) grad_mask[cell] = T(0);
  Roi<T> roi;
  // The same for the whole block.
  if (problem.channels == 0 || find_roi(problem, k, &roi) != Found::yes) return;
  const Level<F, T>& level = problem.levels[roi.level];
  const Span rows = samples_near(roi.y, s.pooled_h, 0, level.height, level.height);
  const Span columns = samples_near(roi.x, s.pooled_w, 0, level.width, level.width);
  for (int r = rows.begin; r < rows.end; r += kProducts<T>) {
    for (int c = columns.begin; c < columns.end; c += kProducts<T>) {
      __syncthreads();  // all threads are done with the products before
      if (threadIdx.x == 0) {
        products.rows = {r, r + kProducts<T> < rows.end ? r + kProducts<T> : rows.end};
        products.columns = {c, c + kProducts<T> < columns.end ? c + kProducts<T> : columns.end};
      }
      __syncthreads();
      table_products(problem, roi, products);
      __syncthreads();
      form_products<F, T, V>(problem, roi, k, grad, products);
      __syncthreads();
      gather_to_mask(s, roi, products, grad_mask);
    }
  }
}

}  // namespace mrrcnn
