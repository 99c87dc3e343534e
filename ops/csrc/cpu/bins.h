// The samples of a RoI, those of a bin merged: neighbouring samples share pixels, and a pixel is read once a bin.
#pragma once

#include <algorithm>
#include <vector>

#include "problem.h"

namespace mrrcnn::MRRCNN_ISA {

// A sample's place among the pixels of its bin, and its weights there.
template <class T>
struct Place {
  int low, high;
  T weight_low, weight_high;
  bool visible;
};

// One axis: for every bin the pixels that its samples touch, each once.
template <class T>
struct AxisBins {
  std::vector<Place<T>> places;  // of all samples
  std::vector<int> pixels;       // of all bins, one bin after the other
  std::vector<int> first;        // [bins + 1]: where a bin's pixels begin
  int samples;                   // a bin

  int size(int bin) const { return first[bin + 1] - first[bin]; }
};

// Returns where `pixel` stands among the bin's, adding it if need be. Samples go one way along the axis, so a pixel
// seen before is among the last three.
inline int find_or_add(std::vector<int>& pixels, int first, int pixel) {
  const int count = static_cast<int>(pixels.size());
  for (int i = count - 1; i >= std::max(first, count - 3); --i) {
    if (pixels[i] == pixel) return i - first;
  }
  pixels.push_back(pixel);
  return count - first;
}

template <class T>
void merge_axis(const Axis<T>& axis, int bins, int size, AxisBins<T>& merged) {
  merged.samples = axis.samples;
  merged.places.clear();
  merged.pixels.clear();
  merged.first.assign(1, 0);
  for (int bin = 0; bin < bins; ++bin) {
    const int first = merged.first.back();
    for (int s = 0; s < axis.samples; ++s) {
      const Tap<T> tap = feature_tap(axis, bin * axis.samples + s, size);
      Place<T> place{0, 0, tap.weight_low, tap.weight_high, tap.visible};
      if (tap.visible) {
        place.low = find_or_add(merged.pixels, first, tap.low);
        place.high = find_or_add(merged.pixels, first, tap.high);
      }
      merged.places.push_back(place);
    }
    merged.first.push_back(static_cast<int>(merged.pixels.size()));
  }
}

// The samples of one RoI. Its vectors are reused from RoI to RoI.
template <class T>
struct Samples {
  AxisBins<T> y, x;
  std::vector<Tap<T>> mask_rows, mask_columns;
  const T* mask;  // null without masks
  int mask_w;
  T per_bin;
};

template <class T>
void fill_mask_taps(int count, int size, bool half_pixel, std::vector<Tap<T>>& taps) {
  if (static_cast<int>(taps.size()) == count) return;  // they do not depend on the box
  taps.resize(count);
  for (int i = 0; i < count; ++i) taps[i] = mask_tap<T>(i, count, size, half_pixel);
}

// Finds the samples of RoI k on a plane; false if it has none.
template <class F, class T>
bool find_samples(const Rois<T>& rois, const Plane<F, T>& plane, int64_t k, Samples<T>& samples) {
  const Settings& s = rois.settings;
  const T* box = rois.boxes + 5 * k;
  Axis<T> y, x;
  if (!place_axis(box[2], box[4], plane.scale, s.pooled_h, s, &y)) return false;
  if (!place_axis(box[1], box[3], plane.scale, s.pooled_w, s, &x)) return false;
  merge_axis(y, s.pooled_h, plane.height, samples.y);
  merge_axis(x, s.pooled_w, plane.width, samples.x);
  samples.per_bin = T(y.samples) * T(x.samples);
  samples.mask = rois.masks ? rois.masks + k * rois.mask_size() : nullptr;
  samples.mask_w = s.mask_w;
  if (!rois.masks) return true;
  fill_mask_taps(s.pooled_h * y.samples, s.mask_h, s.half_pixel, samples.mask_rows);
  fill_mask_taps(s.pooled_w * x.samples, s.mask_w, s.half_pixel, samples.mask_columns);
  return true;
}

// The pixels of one bin as offsets into a plane, and what each weighs in the bin's mean.
template <class T>
struct Bin {
  std::vector<int64_t> offsets;
  std::vector<T> weights;
  std::vector<T> row;
  int count;
};

template <class F, class T>
void find_pixels(const Samples<T>& samples, const Plane<F, T>& plane, int i, int j, Bin<T>& bin) {
  const int rows = samples.y.size(i), columns = samples.x.size(j);
  bin.count = rows * columns;
  if (static_cast<int>(bin.offsets.size()) < bin.count) bin.offsets.resize(bin.count);
  const int* ys = samples.y.pixels.data() + samples.y.first[i];
  const int* xs = samples.x.pixels.data() + samples.x.first[j];
  int64_t* offset = bin.offsets.data();
  for (int r = 0; r < rows; ++r) {
    const int64_t row = static_cast<int64_t>(ys[r]) * plane.width;
    for (int c = 0; c < columns; ++c) *offset++ = (row + xs[c]) * plane.pixel;
  }
}

// P at a sample, 1 without masks.
template <class T>
T mask_at(const Samples<T>& samples, int r, int c) {
  if (!samples.mask) return T(1);
  return mask_value(samples.mask, samples.mask_w, samples.mask_rows[r], samples.mask_columns[c]);
}

// Spreads one row of a bin's samples over the bin's pixel columns: row[x] += P * weight.
template <class T>
void spread_row(const Samples<T>& samples, int r, int j, T* row) {
  const int begin = j * samples.x.samples;
  for (int c = begin; c < begin + samples.x.samples; ++c) {
    const Place<T>& place = samples.x.places[c];
    if (!place.visible) continue;
    const T value = mask_at(samples, r, c);
    row[place.low] += value * place.weight_low;
    row[place.high] += value * place.weight_high;
  }
}

template <class T>
void find_weights(const Samples<T>& samples, int i, int j, Bin<T>& bin) {
  const int columns = samples.x.size(j);
  bin.weights.assign(bin.count, T(0));
  for (int r = i * samples.y.samples; r < (i + 1) * samples.y.samples; ++r) {
    const Place<T>& place = samples.y.places[r];
    if (!place.visible) continue;
    bin.row.assign(columns, T(0));
    spread_row(samples, r, j, bin.row.data());
    T* low = bin.weights.data() + place.low * columns;
    T* high = bin.weights.data() + place.high * columns;
    for (int c = 0; c < columns; ++c) low[c] += place.weight_low / samples.per_bin * bin.row[c];
    for (int c = 0; c < columns; ++c) high[c] += place.weight_high / samples.per_bin * bin.row[c];
  }
}

}  // namespace mrrcnn::MRRCNN_ISA
