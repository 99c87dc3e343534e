// Backward: the forward's weighted sums read the other way, to the pixels and to the mask.
#pragma once

#include <vector>

#include "bins.h"
#include "lanes.h"
#include "transpose.h"

namespace mrrcnn::MRRCNN_ISA {

// The gradient of a pooled RoI as [bins, channels]: as it lies, or turned into a buffer.
template <class F>
struct GradRows {
  std::vector<F> turned;
  const F* data;
  int64_t stride;

  void read(const Pooled<const F>& grad, int64_t roi, int bins, int channels) {
    data = grad.at(roi, bins);
    stride = grad.all_channels;
    if (grad.channels_last) return;
    turned.resize(bins * channels);
    transpose(data, bins, channels, bins, turned.data(), channels);
    data = turned.data();
    stride = channels;
  }
};

// Pixels [begin, end) of a bin.
struct Part {
  int begin, end;
};

// The next pixels of bin (i, j), from row `from` of the bin on, that lie on `rows`: as many neighbours as there are.
// Those of a box that is upside down are in no order, so there may be several such parts.
template <class T>
Part next_part(const Samples<T>& samples, int i, int j, int from, Rows rows) {
  const int* y = samples.y.pixels.data() + samples.y.first[i];
  const int last = samples.y.size(i);
  const auto inside = [&](int r) { return y[r] >= rows.begin && y[r] < rows.end; };
  while (from < last && !inside(from)) ++from;
  int end = from;
  while (end < last && inside(end)) ++end;
  return {from * samples.x.size(j), end * samples.x.size(j)};
}

// Adds N vectors of channels of a bin's gradient to its pixels.
template <int N, class F, class T>
MRRCNN_INLINE void add_to_pixels(const F* grad, const Bin<T>& bin, Part part, T* image) {
  constexpr int count = Lanes<T>::count;
  Vector<T> grads[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) grads[n] = load<T>(grad + n * count);
  for (int p = part.begin; p < part.end; ++p) {
    T* pixel = image + bin.offsets[p];
    const T weight = bin.weights[p];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store<T>(pixel + n * count, load<T>(pixel + n * count) + weight * grads[n]);
  }
}

template <class F, class T>
MRRCNN_INLINE void add_to_pixels_of_channel(const F* grad, const Bin<T>& bin, Part part, T* image) {
  for (int p = part.begin; p < part.end; ++p) image[bin.offsets[p]] += bin.weights[p] * static_cast<T>(*grad);
}

// Whether a RoI has pixels on `rows`.
template <class T>
bool touches(const Samples<T>& samples, Rows rows) {
  const std::vector<int>& y = samples.y.pixels;
  return std::any_of(y.begin(), y.end(), [&](int row) { return row >= rows.begin && row < rows.end; });
}

template <class F, class T>
void add_bin(const Bin<T>& bin, Part part, int channels, const F* grad, T* image) {
  over_channels<T>(
      channels, [&](int c) { add_to_pixels<kWide>(grad + c, bin, part, image + c); },
      [&](int c) { add_to_pixels<1>(grad + c, bin, part, image + c); },
      [&](int c) { add_to_pixels_of_channel(grad + c, bin, part, image + c); });
}

template <class F, class T>
void add_roi(const Samples<T>& samples, const Settings& s, const Plane<T, T>& sums, Rows on, int channels,
             const GradRows<F>& grad, Bin<T>& bin) {
  for (int b = 0; b < s.pooled_h * s.pooled_w; ++b) {
    const int i = b / s.pooled_w, j = b % s.pooled_w;
    Part part = next_part(samples, i, j, 0, on);
    if (part.begin == part.end) continue;
    find_pixels(samples, sums, i, j, bin);
    find_weights(samples, i, j, bin);
    for (; part.begin < part.end; part = next_part(samples, i, j, part.end / samples.x.size(j), on)) {
      add_bin(bin, part, channels, grad.data + b * grad.stride, sums.data);
    }
  }
}

template <class F, class T>
void add_feature_gradients(const Rois<T>& rois, const Plane<T, T>& sums, Rows on, Order order, int channels,
                           const Pooled<const F>& grad) {
  Samples<T> samples;
  Bin<T> bin;
  GradRows<F> rows;
  for (const int64_t* k = order.begin; k != order.end; ++k) {
    if (!find_samples(rois, sums, *k, samples) || !touches(samples, on)) continue;
    rows.read(grad, *k, rois.bins(), channels);
    add_roi(samples, rois.settings, sums, on, channels, rows, bin);
  }
}

// The sum over channels of grad * F at a pixel, in 32 partial sums whatever the vectors' length.
template <class F, class T>
MRRCNN_INLINE T dot(const F* grad, const F* pixel, int channels) {
  constexpr int count = Lanes<T>::count, partial = 32, vectors = partial / count;
  Vector<T> sums[vectors] = {};
  int c = 0;
  for (; c + partial <= channels; c += partial) {
#pragma GCC unroll 16
    for (int n = 0; n < vectors; ++n) {
      sums[n] += load<T>(grad + c + n * count) * load<T>(pixel + c + n * count);
    }
  }
  T sum = T(0);
  for (; c < channels; ++c) sum += static_cast<T>(grad[c]) * static_cast<T>(pixel[c]);
  T lanes[partial];
  std::memcpy(lanes, sums, sizeof(lanes));
  for (int half = partial / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return sum + lanes[0];
}

// Adds a bin's share to the gradient of the RoI's mask; `dots` are grad . F at the bin's pixels, [rows, columns].
template <class T>
void add_to_mask(const Samples<T>& samples, const T* dots, int i, int j, int mask_w, T* grad_mask) {
  const int columns = samples.x.size(j);
  for (int r = i * samples.y.samples; r < (i + 1) * samples.y.samples; ++r) {
    const Place<T>& y = samples.y.places[r];
    const Tap<T>& row = samples.mask_rows[r];
    for (int c = j * samples.x.samples; y.visible && c < (j + 1) * samples.x.samples; ++c) {
      const Place<T>& x = samples.x.places[c];
      if (!x.visible) continue;
      const T *low = dots + y.low * columns, *high = dots + y.high * columns;
      const T value = (y.weight_low * (x.weight_low * low[x.low] + x.weight_high * low[x.high]) +
                       y.weight_high * (x.weight_low * high[x.low] + x.weight_high * high[x.high])) /
                      samples.per_bin;
      const Tap<T>& column = samples.mask_columns[c];
      // Taps may coincide at the border, so one after the other.
      grad_mask[row.low * mask_w + column.low] += row.weight_low * column.weight_low * value;
      grad_mask[row.low * mask_w + column.high] += row.weight_low * column.weight_high * value;
      grad_mask[row.high * mask_w + column.low] += row.weight_high * column.weight_low * value;
      grad_mask[row.high * mask_w + column.high] += row.weight_high * column.weight_high * value;
    }
  }
}

template <class F, class T>
void add_mask_gradients(const Rois<T>& rois, const Plane<const F, T>& plane, Order order, int channels,
                        const Pooled<const F>& grad, T* grad_masks) {
  const Settings& s = rois.settings;
  Samples<T> samples;
  Bin<T> bin;
  GradRows<F> rows;
  std::vector<T> dots;
  for (const int64_t* k = order.begin; k != order.end; ++k) {
    if (!find_samples(rois, plane, *k, samples)) continue;
    rows.read(grad, *k, rois.bins(), channels);
    for (int b = 0; b < rois.bins(); ++b) {
      const int i = b / s.pooled_w, j = b % s.pooled_w;
      find_pixels(samples, plane, i, j, bin);
      dots.resize(bin.count);
      const F* g = rows.data + b * rows.stride;
      for (int p = 0; p < bin.count; ++p) dots[p] = dot<F, T>(g, plane.data + bin.offsets[p], channels);
      add_to_mask(samples, dots.data(), i, j, s.mask_w, grad_masks + *k * rois.mask_size());
    }
  }
}

}  // namespace mrrcnn::MRRCNN_ISA
