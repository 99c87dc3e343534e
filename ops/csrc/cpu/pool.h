// Forward: every bin is a weighted sum of the pixels its samples touch.
#pragma once

#include <vector>

#include "bins.h"
#include "lanes.h"
#include "transpose.h"

namespace mrrcnn::MRRCNN_ISA {

// Writes N vectors of channels of a bin.
template <int N, class F, class T>
MRRCNN_INLINE void sum_pixels(const F* image, const Bin<T>& bin, F* out) {
  constexpr int count = Lanes<T>::count;
  Vector<T> sums[N] = {};
  for (int p = 0; p < bin.count; ++p) {
    const F* pixel = image + bin.offsets[p];
    const T weight = bin.weights[p];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[n] += weight * load<T>(pixel + n * count);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store<T>(out + n * count, sums[n]);
}

template <class F, class T>
MRRCNN_INLINE void sum_pixels_of_channel(const F* image, const Bin<T>& bin, F* out) {
  T sum = T(0);
  for (int p = 0; p < bin.count; ++p) sum += bin.weights[p] * static_cast<T>(image[bin.offsets[p]]);
  *out = static_cast<F>(sum);
}

// Writes the bins of a RoI, [bins, channels] with rows `stride` apart.
template <class F, class T>
void pool_roi(const Samples<T>& samples, const Settings& s, const Plane<const F, T>& plane, int channels, Bin<T>& bin,
              F* out, int64_t stride) {
  for (int i = 0; i < s.pooled_h; ++i) {
    for (int j = 0; j < s.pooled_w; ++j, out += stride) {
      find_pixels(samples, plane, i, j, bin);
      find_weights(samples, i, j, bin);
      const F* image = plane.data;
      over_channels<T>(
          channels, [&](int c) { sum_pixels<kWide>(image + c, bin, out + c); },
          [&](int c) { sum_pixels<1>(image + c, bin, out + c); },
          [&](int c) { sum_pixels_of_channel(image + c, bin, out + c); });
    }
  }
}

template <class F, class T>
void pool(const Rois<T>& rois, const Plane<const F, T>& plane, Order order, int channels, const Pooled<F>& output) {
  const int bins = rois.bins();
  Samples<T> samples;
  Bin<T> bin;
  std::vector<F> turned(output.channels_last ? 0 : bins * channels);
  const int64_t stride = output.channels_last ? output.all_channels : channels;
  for (const int64_t* k = order.begin; k != order.end; ++k) {
    F* target = output.at(*k, bins);
    F* rows = output.channels_last ? target : turned.data();
    if (find_samples(rois, plane, *k, samples)) {
      pool_roi(samples, rois.settings, plane, channels, bin, rows, stride);
    } else {
      for (int b = 0; b < bins; ++b) std::fill_n(rows + b * stride, channels, F(0));
    }
    if (!output.channels_last) transpose(turned.data(), channels, bins, channels, target, bins);
  }
}

}  // namespace mrrcnn::MRRCNN_ISA
