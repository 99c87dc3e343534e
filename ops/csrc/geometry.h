// Where the samples of Shape-aware RoIAlign lie: the one source of its conventions for host and device.
//
// A RoI's samples form a grid, so each axis is handled alone: sample `index` of an axis has a tap on the feature
// map (RoIAlign's border rule) and a tap on the mask (border replicated). ops/reference.py is the same in torch.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MRRCNN_SHARED __host__ __device__ __forceinline__
#else
#define MRRCNN_SHARED inline
#endif

namespace mrrcnn {

// More samples a bin and side than this belong to a box far larger than any feature map; it pools to zeros, as a
// box that is not finite does. ops/reference.py has the same number.
constexpr int kMaxAdaptiveGrid = 4096;

// What all RoIs of a call share. `masks_h` and `masks_w` are 0 without masks.
struct Settings {
  int pooled_h, pooled_w;
  int sampling_ratio;  // 0 adapts to the box
  bool aligned;
  int mask_h, mask_w;
  bool half_pixel;
};

// One axis of a RoI in feature pixels: where it starts, how large a bin is, and the samples of a bin.
template <class T>
struct Axis {
  T start, bin_size;
  int samples;
};

// Bilinear interpolation on one axis. Both weights are 0 for a sample off the map.
template <class T>
struct Tap {
  int low, high;
  T weight_low, weight_high;
  bool visible;
};

// Places one axis of a box; false if the box is not finite or has no sample, and then it pools to zeros.
template <class T>
MRRCNN_SHARED bool place_axis(T begin, T end, T scale, int bins, const Settings& settings, Axis<T>* axis) {
  T start = begin * scale;
  T size = end * scale - start;
  if (!(std::isfinite(start) && std::isfinite(size))) return false;
  if (settings.aligned) {
    start -= T(0.5);
  } else if (size < T(1)) {
    size = T(1);
  }
  axis->start = start;
  axis->bin_size = size / T(bins);
  axis->samples = settings.sampling_ratio;
  if (settings.sampling_ratio > 0) return true;
  const T wanted = std::ceil(axis->bin_size);
  if (!(wanted >= T(1) && wanted <= T(kMaxAdaptiveGrid))) return false;
  axis->samples = static_cast<int>(wanted);
  return true;
}

// The tap of sample `index`, counted over all bins, on a feature axis of `size` pixels.
template <class T>
MRRCNN_SHARED Tap<T> feature_tap(const Axis<T>& axis, int index, int size) {
  const int bin = index / axis.samples;
  const T within = (T(index - bin * axis.samples) + T(0.5)) * axis.bin_size / T(axis.samples);
  T position = axis.start + T(bin) * axis.bin_size + within;
  if (!(position >= T(-1) && position <= T(size))) return {0, 0, T(0), T(0), false};
  position = position < T(0) ? T(0) : position > T(size - 1) ? T(size - 1) : position;
  const int low = static_cast<int>(position);
  const int high = low + 1 < size ? low + 1 : size - 1;
  const T fraction = position - T(low);
  return {low, high, T(1) - fraction, fraction, true};
}

// The tap of sample `index` of `count` on a mask axis of `size` cells: independent of the box.
template <class T>
MRRCNN_SHARED Tap<T> mask_tap(int index, int count, int size, bool half_pixel) {
  T position = (T(index) + T(0.5)) / T(count) * T(size) - (half_pixel ? T(0.5) : T(0));
  position = position < T(0) ? T(0) : position > T(size - 1) ? T(size - 1) : position;
  const int low = static_cast<int>(position);
  const int high = low + 1 < size ? low + 1 : size - 1;
  const T fraction = position - T(low);
  return {low, high, T(1) - fraction, fraction, true};
}

// The mask's value at a sample.
template <class T>
MRRCNN_SHARED T mask_value(const T* mask, int width, const Tap<T>& row, const Tap<T>& column) {
  const T* low = mask + row.low * width;
  const T* high = mask + row.high * width;
  return row.weight_low * (column.weight_low * low[column.low] + column.weight_high * low[column.high]) +
         row.weight_high * (column.weight_low * high[column.low] + column.weight_high * high[column.high]);
}

}  // namespace mrrcnn
