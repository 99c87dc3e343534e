// The CPU kernels, free of torch: channels innermost, a range of RoIs (or of channels) a call.
//
// F is the type of the features, T the type of coordinates, masks and sums. Features are [N, H, W, C] in memory.
// No two ranges write the same element and every sum has one order, so results do not depend on the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../geometry.h"

namespace mrrcnn {

template <class F, class T>
struct Level {
  const F* data;
  int height, width;
  T scale;
};

template <class F, class T>
struct Problem {
  std::vector<Level<F, T>> levels;
  const T* rois;         // [K, 5]
  const T* masks;        // [K, mask_h, mask_w] or null
  const int64_t* level;  // [K] or null for level 0
  int64_t num_rois, channels;
  Settings settings;
};

// The samples of one RoI. Its vectors are reused from RoI to RoI.
template <class T>
struct Samples {
  int level;
  int64_t image;
  Axis<T> y, x;
  std::vector<Tap<T>> rows, columns, mask_rows, mask_columns;
  T per_bin;
};

template <class T>
void fill_taps(const Axis<T>& axis, int bins, int size, int mask_size, bool half_pixel,
               std::vector<Tap<T>>& taps, std::vector<Tap<T>>& mask_taps) {
  const int count = bins * axis.samples;
  taps.resize(count);
  mask_taps.resize(mask_size > 0 ? count : 0);
  for (int i = 0; i < count; ++i) taps[i] = feature_tap(axis, i, size);
  for (int i = 0; i < count && mask_size > 0; ++i) mask_taps[i] = mask_tap<T>(i, count, mask_size, half_pixel);
}

// Finds the samples of RoI k; false if it has none.
template <class F, class T>
bool find_samples(const Problem<F, T>& problem, int64_t k, Samples<T>& samples) {
  const Settings& s = problem.settings;
  const T* roi = problem.rois + 5 * k;
  samples.level = problem.level ? static_cast<int>(problem.level[k]) : 0;
  samples.image = static_cast<int64_t>(roi[0]);
  const Level<F, T>& level = problem.levels[samples.level];
  const bool placed = place_axis(roi[2], roi[4], level.scale, s.pooled_h, s, &samples.y) &&
                      place_axis(roi[1], roi[3], level.scale, s.pooled_w, s, &samples.x);
  if (!placed) return false;
  fill_taps(samples.y, s.pooled_h, level.height, s.mask_h, s.half_pixel, samples.rows, samples.mask_rows);
  fill_taps(samples.x, s.pooled_w, level.width, s.mask_w, s.half_pixel, samples.columns, samples.mask_columns);
  samples.per_bin = T(samples.y.samples) * T(samples.x.samples);
  return true;
}

// Calls visit(row, column) for every sample of bin (i, j) that lies on the map.
template <class T, class Visit>
void for_each_sample(const Samples<T>& samples, int i, int j, const Visit& visit) {
  for (int r = i * samples.y.samples; r < (i + 1) * samples.y.samples; ++r) {
    if (!samples.rows[r].visible) continue;
    for (int c = j * samples.x.samples; c < (j + 1) * samples.x.samples; ++c) {
      if (samples.columns[c].visible) visit(r, c);
    }
  }
}

// The four pixels around a sample as offsets into an image, and their weights.
template <class T>
struct Corners {
  int64_t offset[4];
  T weight[4];
};

template <class T>
Corners<T> corners(const Tap<T>& row, const Tap<T>& column, int64_t width, int64_t channels, T factor) {
  const int64_t low = row.low * width, high = row.high * width;
  return {{(low + column.low) * channels, (low + column.high) * channels, (high + column.low) * channels,
           (high + column.high) * channels},
          {row.weight_low * column.weight_low * factor, row.weight_low * column.weight_high * factor,
           row.weight_high * column.weight_low * factor, row.weight_high * column.weight_high * factor}};
}

// P at a sample of RoI k, 1 without masks.
template <class F, class T>
T sample_mask(const Problem<F, T>& problem, const Samples<T>& samples, int64_t k, int row, int column) {
  if (!problem.masks) return T(1);
  const Settings& s = problem.settings;
  const T* mask = problem.masks + k * s.mask_h * s.mask_w;
  return mask_value(mask, s.mask_w, samples.mask_rows[row], samples.mask_columns[column]);
}

template <class F, class T>
int64_t image_offset(const Problem<F, T>& problem, const Samples<T>& samples) {
  const Level<F, T>& level = problem.levels[samples.level];
  return samples.image * level.height * level.width * problem.channels;
}

// Where element (k, c, i, j) of the output lies.
struct OutputStrides {
  int64_t roi, channel, row, column;
};

// Pools RoIs [begin, end) and writes every element of theirs.
template <class F, class T>
void forward(const Problem<F, T>& problem, int64_t begin, int64_t end, F* output, OutputStrides strides) {
  const Settings& s = problem.settings;
  Samples<T> samples;
  std::vector<T> sums(problem.channels);
  for (int64_t k = begin; k < end; ++k) {
    const bool any = find_samples(problem, k, samples);
    for (int bin = 0; bin < s.pooled_h * s.pooled_w; ++bin) {
      const int i = bin / s.pooled_w, j = bin % s.pooled_w;
      std::fill(sums.begin(), sums.end(), T(0));
      if (any) add_bin(problem, samples, k, i, j, sums.data());
      F* out = output + k * strides.roi + i * strides.row + j * strides.column;
      const T count = any ? samples.per_bin : T(1);
      for (int64_t c = 0; c < problem.channels; ++c) out[c * strides.channel] = static_cast<F>(sums[c] / count);
    }
  }
}

// Adds F * P of every sample of a bin to sums[C].
template <class F, class T>
void add_bin(const Problem<F, T>& problem, const Samples<T>& samples, int64_t k, int i, int j, T* sums) {
  const Level<F, T>& level = problem.levels[samples.level];
  const F* image = level.data + image_offset(problem, samples);
  for_each_sample(samples, i, j, [&](int r, int c) {
    const T mask = sample_mask(problem, samples, k, r, c);
    const auto at = corners(samples.rows[r], samples.columns[c], level.width, problem.channels, mask);
    const F *f0 = image + at.offset[0], *f1 = image + at.offset[1];
    const F *f2 = image + at.offset[2], *f3 = image + at.offset[3];
    for (int64_t ch = 0; ch < problem.channels; ++ch) {
      sums[ch] += at.weight[0] * static_cast<T>(f0[ch]) + at.weight[1] * static_cast<T>(f1[ch]) +
                  at.weight[2] * static_cast<T>(f2[ch]) + at.weight[3] * static_cast<T>(f3[ch]);
    }
  });
}

// Adds to the feature gradients [N, H, W, C], one buffer a level, what all RoIs give channels [begin, end).
// `grad` is [K, pooled_h, pooled_w, C].
template <class F, class T>
void backward_features(const Problem<F, T>& problem, const T* grad, int64_t begin, int64_t end,
                       const std::vector<T*>& grad_levels) {
  const Settings& s = problem.settings;
  Samples<T> samples;
  for (int64_t k = 0; k < problem.num_rois; ++k) {
    if (!find_samples(problem, k, samples)) continue;
    const int64_t width = problem.levels[samples.level].width;
    T* image = grad_levels[samples.level] + image_offset(problem, samples);
    for (int bin = 0; bin < s.pooled_h * s.pooled_w; ++bin) {
      const T* g = grad + (k * s.pooled_h * s.pooled_w + bin) * problem.channels;
      for_each_sample(samples, bin / s.pooled_w, bin % s.pooled_w, [&](int r, int c) {
        const T factor = sample_mask(problem, samples, k, r, c) / samples.per_bin;
        const auto at = corners(samples.rows[r], samples.columns[c], width, problem.channels, factor);
        // Corners may coincide at the border, so one after the other.
        for (int corner = 0; corner < 4; ++corner) {
          T* to = image + at.offset[corner];
          for (int64_t ch = begin; ch < end; ++ch) to[ch] += at.weight[corner] * g[ch];
        }
      });
    }
  }
}

// The sum over channels of grad * F at a sample.
template <class F, class T>
T grad_dot_sample(const F* image, const Corners<T>& at, const T* grad, int64_t channels) {
  const F *f0 = image + at.offset[0], *f1 = image + at.offset[1];
  const F *f2 = image + at.offset[2], *f3 = image + at.offset[3];
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t ch = 0; ch < channels; ++ch) {
    sum += grad[ch] * (at.weight[0] * static_cast<T>(f0[ch]) + at.weight[1] * static_cast<T>(f1[ch]) +
                       at.weight[2] * static_cast<T>(f2[ch]) + at.weight[3] * static_cast<T>(f3[ch]));
  }
  return sum;
}

// Writes the mask gradients [mask_h, mask_w] of RoIs [begin, end).
template <class F, class T>
void backward_masks(const Problem<F, T>& problem, const T* grad, int64_t begin, int64_t end, T* grad_masks) {
  const Settings& s = problem.settings;
  Samples<T> samples;
  for (int64_t k = begin; k < end; ++k) {
    T* out = grad_masks + k * s.mask_h * s.mask_w;
    std::fill(out, out + s.mask_h * s.mask_w, T(0));
    if (!find_samples(problem, k, samples)) continue;
    const Level<F, T>& level = problem.levels[samples.level];
    const F* image = level.data + image_offset(problem, samples);
    for (int bin = 0; bin < s.pooled_h * s.pooled_w; ++bin) {
      const T* g = grad + (k * s.pooled_h * s.pooled_w + bin) * problem.channels;
      for_each_sample(samples, bin / s.pooled_w, bin % s.pooled_w, [&](int r, int c) {
        const T factor = T(1) / samples.per_bin;
        const auto on_map = corners(samples.rows[r], samples.columns[c], level.width, problem.channels, factor);
        const T value = grad_dot_sample(image, on_map, g, problem.channels);
        const auto on_mask = corners(samples.mask_rows[r], samples.mask_columns[c], s.mask_w, 1, value);
        for (int corner = 0; corner < 4; ++corner) out[on_mask.offset[corner]] += on_mask.weight[corner];
      });
    }
  }
}

}  // namespace mrrcnn
