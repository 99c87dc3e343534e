// What the CPU kernels work on: plain data, the same for every instruction set. Free of torch.
#pragma once

#include <cstdint>
#include <vector>

#include "../geometry.h"

// Where GCC can compile one file for a newer processor than the others.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MRRCNN_HAS_AVX2
#endif

namespace mrrcnn {

// One image of one feature map, channels innermost: element (y, x, c) is data[(y * width + x) * pixel + c].
template <class F, class T>
struct Plane {
  F* data;
  int height, width;
  int64_t pixel;
  T scale;
};

// What all RoIs of a call share. T is the type of coordinates, masks and sums.
template <class T>
struct Rois {
  const T* boxes;  // [K, 5]
  const T* masks;  // [K, mask_h, mask_w] or null
  Settings settings;

  int bins() const { return settings.pooled_h * settings.pooled_w; }
  int mask_size() const { return settings.mask_h * settings.mask_w; }
};

// A pooled tensor [K, C, h, w], channels innermost or not, seen through the channels from `first` on.
template <class F>
struct Pooled {
  F* data;
  int64_t all_channels, first;
  bool channels_last;

  F* at(int64_t roi, int bins) const {
    return data + roi * all_channels * bins + (channels_last ? first : first * bins);
  }
};

// RoIs by their numbers, in the order in which they are worked on.
struct Order {
  const int64_t* begin;
  const int64_t* end;
};

// Rows [begin, end) of a plane.
struct Rows {
  int begin, end;
};

// The kernels for features of type F. Each handles `channels` channels of the given RoIs on one plane, and no two
// calls that may run at once write the same element; sums have one order, whatever the instruction set.
template <class F, class T>
struct Kernels {
  // Writes the pooled RoIs.
  void (*pool)(const Rois<T>&, const Plane<const F, T>&, Order, int channels, const Pooled<F>& output);
  // Adds the RoIs' feature gradients to the given rows of `sums`.
  void (*add_feature_gradients)(const Rois<T>&, const Plane<T, T>& sums, Rows, Order, int channels,
                                const Pooled<const F>& grad);
  // Adds the RoIs' mask gradients to grad_masks [K, mask_h, mask_w].
  void (*add_mask_gradients)(const Rois<T>&, const Plane<const F, T>&, Order, int channels,
                             const Pooled<const F>& grad, T* grad_masks);
  // Turns [channels, pixels] of an NCHW image, rows `stride` apart, into [pixels, channels].
  void (*to_channels_last)(const F* from, int64_t stride, int channels, int64_t pixels, F* to);
  // Turns sums [pixels, channels] into features, [channels, pixels] with rows `stride` apart.
  void (*to_channels_first)(const T* from, int channels, int64_t pixels, F* to, int64_t stride);
  // The same into [pixels, channels] with rows `stride` apart.
  void (*to_rows)(const T* from, int channels, int64_t pixels, F* to, int64_t stride);
};

namespace baseline {
template <class F, class T>
Kernels<F, T> kernels();
}
namespace avx2 {
template <class F, class T>
Kernels<F, T> kernels();
}

}  // namespace mrrcnn
