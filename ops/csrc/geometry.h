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

// a * b, rounded before anything is added to it. nvcc would fuse the two, the host's compilers are told not to: a
// sample could then lie on one side of a border on the host and on the other on the device.
template <class T>
MRRCNN_SHARED T product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) return __fmul_rn(a, b);
  else return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// Places one axis of a box; false if the box is not finite or has no sample, and then it pools to zeros.
template <class T>
MRRCNN_SHARED bool place_axis(T begin, T end, T scale, int bins, const Settings& settings, Axis<T>* axis) {
  T start = product(begin, scale);
  T size = product(end, scale) - start;
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

// The tap at `position`, clamped onto an axis of `size` cells.
template <class T>
MRRCNN_SHARED Tap<T> clamped_tap(T position, int size) {
  const T last = T(size - 1);
  position = position < T(0) ? T(0) : position > last ? last : position;
  // Not the integer part of `last`: beyond 2^24 a float may be rounded up to `size`, which lies behind the axis.
  const int low = position < last ? static_cast<int>(position) : size - 1;
  const int high = low + 1 < size ? low + 1 : size - 1;
  const T fraction = position - T(low);
  return {low, high, T(1) - fraction, fraction, true};
}

// The tap of sample `index`, counted over all bins, on a feature axis of `size` pixels.
template <class T>
MRRCNN_SHARED Tap<T> feature_tap(const Axis<T>& axis, int index, int size) {
  const int bin = index / axis.samples;
  const T within = (T(index - bin * axis.samples) + T(0.5)) * axis.bin_size / T(axis.samples);
  const T position = axis.start + product(T(bin), axis.bin_size) + within;
  if (!(position >= T(-1) && position <= T(size))) return {0, 0, T(0), T(0), false};
  return clamped_tap(position, size);
}

// The tap of sample `index` of `count` on a mask axis of `size` cells: independent of the box.
template <class T>
MRRCNN_SHARED Tap<T> mask_tap(int index, int count, int size, bool half_pixel) {
  const T position = product((T(index) + T(0.5)) / T(count), T(size)) - (half_pixel ? T(0.5) : T(0));
  return clamped_tap(position, size);
}

// The mask's value at a sample.
template <class T>
MRRCNN_SHARED T mask_value(const T* mask, int width, const Tap<T>& row, const Tap<T>& column) {
  const T* low = mask + row.low * width;
  const T* high = mask + row.high * width;
  return row.weight_low * (column.weight_low * low[column.low] + column.weight_high * low[column.high]) +
         row.weight_high * (column.weight_low * high[column.low] + column.weight_high * high[column.high]);
}

// Whether a sample's tap reads `pixel`, and with which weight: at a border both of its corners are one pixel.
template <class T>
MRRCNN_SHARED bool touches(const Tap<T>& tap, int pixel) {
  return tap.visible && (tap.low == pixel || tap.high == pixel);
}

template <class T>
MRRCNN_SHARED T weight_on(const Tap<T>& tap, int pixel) {
  return (tap.low == pixel ? tap.weight_low : T(0)) + (tap.high == pixel ? tap.weight_high : T(0));
}

// Samples [begin, end) of an axis; none unless begin < end.
struct Span {
  int begin, end;
};

// The samples between positions `first` and `last`, counted in samples and in any order, of `count` there are.
// A quarter more on either side allows for rounding; NaN, of an empty box, limits nothing.
template <class T>
MRRCNN_SHARED Span samples_between(T first, T last, int count) {
  const T begin = std::ceil((first < last ? first : last) - T(0.75));
  const T end = std::floor((first < last ? last : first) - T(0.25)) + T(1);
  return {begin > T(0) ? (begin < T(count) ? static_cast<int>(begin) : count) : 0,
          end < T(count) ? (end > T(0) ? static_cast<int>(end) : 0) : count};
}

// The samples of a feature axis that may touch pixels [begin, end) of `size`: now and then one too many,
// never one too few. Rounding moves a position by far less than a quarter of a pixel.
template <class T>
MRRCNN_SHARED Span samples_near(const Axis<T>& axis, int bins, int begin, int end, int size) {
  const T spacing = axis.bin_size / T(axis.samples);
  const T low = T(begin) - T(1.25), high = T(end < size ? end : size) + T(0.25);
  return samples_between((low - axis.start) / spacing, (high - axis.start) / spacing, bins * axis.samples);
}

// Whether an axis of a box stays clear of pixels [begin, end), said without dividing: three pixels are more than
// the shift of aligned boxes, the least size of others and a tap together. For a box that is not finite, which
// touches no pixel, either answer will do.
template <class T>
MRRCNN_SHARED bool passes_by(T first, T last, T scale, int begin, int end) {
  const T low = (first < last ? first : last) * scale, high = (first < last ? last : first) * scale;
  return high < T(begin) - T(3) || low > T(end) + T(3);
}

// The samples of a mask axis that may touch `cell`, likewise.
template <class T>
MRRCNN_SHARED Span mask_samples_near(int cell, int count, int size, bool half_pixel) {
  const T center = T(cell) + (half_pixel ? T(0.5) : T(0)), per_cell = T(count) / T(size);
  return samples_between((center - T(1)) * per_cell, (center + T(1)) * per_cell, count);
}

}  // namespace mrrcnn
