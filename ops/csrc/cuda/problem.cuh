// What the kernels are given, and how a RoI is found in it. Free of torch, as all kernels are.
//
// F is the type of features, output and grad, T the type of coordinates, masks and sums. Features and grad
// are channels innermost: [N, H, W, C] and [K, pooled_h, pooled_w, C].
//
// State of the kernels: compiled for sm_75, sm_80 and sm_90, and checked on the CPU thread by thread
// (tests/ops/cuda_on_cpu); not yet run on a GPU, their speed is not measured.
#pragma once

#include <cstdint>

#include "../geometry.h"

namespace mrrcnn {

constexpr int kMaxLevels = 8;
constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr unsigned kAllLanes = 0xffffffffu;

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
};

enum class Found { yes, nothing, out_of_range };

// Finds RoI k's axes. An index out of range cannot be raised without waiting for the device: never read
// there.
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
  return Found::yes;
}

// A sample's share of its bin's mean.
template <class T>
__device__ T share_of_sample(const Roi<T>& roi) {
  return T(1) / (T(roi.y.samples) * T(roi.x.samples));
}

template <class F, class T>
__device__ const F* image_data(const Problem<F, T>& problem, const Roi<T>& roi) {
  const Level<F, T>& level = problem.levels[roi.level];
  return level.data + roi.image * level.height * level.width * problem.channels;
}

// RoI k's mask, null without masks.
template <class F, class T>
__device__ const T* mask_data(const Problem<F, T>& problem, int64_t k) {
  return problem.masks ? problem.masks + k * problem.settings.mask_h * problem.settings.mask_w : nullptr;
}

}  // namespace mrrcnn
