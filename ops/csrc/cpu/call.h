// One call of the operator as the CPU kernels take it: which RoIs lie on which plane, and the walks over them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../arguments.h"
#include "problem.h"

namespace mrrcnn {

constexpr int64_t kSlab = 64;  // channels that are turned at once, so that a plane of them stays in the cache

// The kernels for this machine; ATEN_CPU_CAPABILITY=default asks for the plain ones, as it does in torch.
template <class F, class T>
Kernels<F, T> best_kernels() {
#if defined(MRRCNN_HAS_AVX2)
  const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
  const bool plain = asked && std::string_view(asked) == "default";
  if (!plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return avx2::kernels<F, T>();
#endif
  return baseline::kernels<F, T>();
}

inline bool is_channels_last(const torch::stable::Tensor& t) {
  return memory_format(t) == torch::headeronly::MemoryFormat::ChannelsLast;
}

inline torch::stable::Tensor dense(const torch::stable::Tensor& t) {
  return torch::stable::contiguous(t, memory_format(t));
}

// The RoIs on one image of one level; there may be none.
struct Group {
  int64_t level, image;
  Order rois;
};

template <class F, class T>
class Call {
  using Tensor = torch::stable::Tensor;

  const Arguments& arguments;
  std::vector<Tensor> features;
  Tensor boxes;
  std::optional<Tensor> masks, levels;
  std::vector<int64_t> order;
  std::vector<Group> groups;

 public:
  const Kernels<F, T> kernels = best_kernels<F, T>();
  const int64_t channels;
  Rois<T> rois;

  explicit Call(const Arguments& a)
      : arguments(a),
        boxes(torch::stable::contiguous(torch::stable::to(a.rois, a.sum_type()))),
        channels(a.features[0].size(1)) {
    for (const Tensor& f : a.features) features.push_back(dense(f));
    if (a.prob) masks = torch::stable::contiguous(torch::stable::to(*a.prob, a.sum_type()));
    if (a.level) levels = torch::stable::contiguous(*a.level);
    rois = {static_cast<const T*>(boxes.const_data_ptr()),
            masks ? static_cast<const T*>(masks->const_data_ptr()) : nullptr, a.settings()};
    check_ranges();
    sort_rois();
    group_rois();
  }

  int64_t pixels(int64_t level) const { return features[level].size(2) * features[level].size(3); }
  int64_t plane_offset(const Group& g) const { return g.image * channels * pixels(g.level); }

  // A plane of the group's level over `data`, its pixels `pixel` elements apart.
  template <class E>
  Plane<E, T> plane(const Group& g, E* data, int64_t pixel) const {
    const Tensor& f = features[g.level];
    return {data, static_cast<int>(f.size(2)), static_cast<int>(f.size(3)), pixel,
            static_cast<T>(arguments.spatial_scales[g.level])};
  }

  const F* image_data(const Group& g) const {
    return static_cast<const F*>(features[g.level].const_data_ptr()) + plane_offset(g);
  }

  // Calls visit(group) for all RoIs on channels-last features, shared out among threads.
  template <class Visit>
  void over_rois(const Visit& visit) const {
    torch::stable::parallel_for(0, order.size(), 1, [&](int64_t begin, int64_t end) {
      for (const Group& g : groups) {
        const Order part{std::max(g.rois.begin, order.data() + begin), std::min(g.rois.end, order.data() + end)};
        if (part.begin < part.end && is_channels_last(features[g.level])) visit({g.level, g.image, part});
      }
    });
  }

  // Calls visit(group, rows) for all groups that are `wanted` so that every row of theirs has one owner among the
  // threads. In the RoIs' order, by level, image and height, equal parts of the RoIs are equal parts of the work.
  template <class Wanted, class Visit>
  void over_rows(const Wanted& wanted, const Visit& visit) const {
    torch::stable::parallel_for(0, order.size(), 1, [&](int64_t begin, int64_t end) {
      for (const Group& g : groups) {
        const Rows rows{first_row(g, order.data() + begin), first_row(g, order.data() + end)};
        if (rows.begin < rows.end && wanted(g)) visit(g, rows);
      }
    });
  }

  // Calls visit(group, first channel, channels, plane) for all RoIs on features that are not channels last, a slab of
  // channels after the other; threads share the turning of a slab and then its RoIs.
  template <class Visit>
  void over_turned_rois(const Visit& visit) const {
    std::unique_ptr<F[]> buffer;
    for (const Group& g : groups) {
      if (g.rois.begin == g.rois.end || is_channels_last(features[g.level])) continue;
      if (!buffer) buffer.reset(new F[most_pixels() * std::min(kSlab, channels)]);
      for (int64_t first = 0; first < channels; first += kSlab) {
        const int64_t count = std::min(kSlab, channels - first);
        turn(g, first, count, buffer.get());
        const Plane<const F, T> turned = plane<const F>(g, buffer.get(), count);
        torch::stable::parallel_for(0, g.rois.end - g.rois.begin, 1, [&](int64_t begin, int64_t end) {
          visit({g.level, g.image, {g.rois.begin + begin, g.rois.begin + end}}, first, count, turned);
        });
      }
    }
  }

  // Calls visit(group, first channel, channels, buffer) for every slab of the groups that are `wanted`, shared out
  // among threads. The buffer has room for a slab's sums.
  template <class Wanted, class Visit>
  void over_slabs(const Wanted& wanted, const Visit& visit) const {
    std::vector<Group> some;
    std::copy_if(groups.begin(), groups.end(), std::back_inserter(some), wanted);
    const int64_t slabs = (channels + kSlab - 1) / kSlab, count = some.size();
    torch::stable::parallel_for(0, slabs * count, 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> buffer(new T[most_pixels() * std::min(kSlab, channels)]);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t first = item / count * kSlab;
        visit(some[item % count], first, std::min(kSlab, channels - first), buffer.get());
      }
    });
  }

 private:
  int64_t image_of(int64_t k) const { return static_cast<int64_t>(rois.boxes[5 * k]); }
  int64_t level_of(int64_t k) const {
    return levels ? static_cast<const int64_t*>(levels->const_data_ptr())[k] : 0;
  }

  // The sum of a RoI's upper and lower edge; NaN has no place.
  T height(int64_t k) const {
    const T y = rois.boxes[5 * k + 2] + rois.boxes[5 * k + 4];
    return y == y ? y : T(0);
  }

  // Where the rows of a group begin that belong to RoI `at` of the order and those after it.
  int first_row(const Group& g, const int64_t* at) const {
    const int rows = static_cast<int>(features[g.level].size(2));
    if (at <= g.rois.begin) return 0;
    if (at >= g.rois.end) return rows;
    const T row = height(*at) / T(2) * static_cast<T>(arguments.spatial_scales[g.level]);
    return static_cast<int>(std::clamp(row, T(0), T(rows)));
  }

  int64_t most_pixels() const {
    int64_t most = 0;
    for (size_t level = 0; level < features.size(); ++level) most = std::max(most, pixels(level));
    return most;
  }

  void turn(const Group& g, int64_t first, int64_t count, F* buffer) const {
    constexpr int64_t strip = 256;
    const int64_t all = pixels(g.level);
    const F* from = image_data(g) + first * all;
    torch::stable::parallel_for(0, (all + strip - 1) / strip, 1, [&](int64_t begin, int64_t end) {
      const int64_t pixel = begin * strip, last = std::min(all, end * strip);
      kernels.to_channels_last(from + pixel, all, count, last - pixel, buffer + pixel * count);
    });
  }

  void check_ranges() const {
    const int64_t images = features[0].size(0), count = features.size();
    for (int64_t k = 0; k < boxes.size(0); ++k) {
      const T image = rois.boxes[5 * k];
      STD_TORCH_CHECK(image >= 0 && image < static_cast<T>(images), "sa_roi_align: RoI ", k, " has batch index ",
                      image, ", expected 0 to ", images - 1);
      STD_TORCH_CHECK(level_of(k) >= 0 && level_of(k) < count, "sa_roi_align: RoI ", k, " has level ", level_of(k),
                      ", expected 0 to ", count - 1);
    }
  }

  // By level, image and height, so that neighbours find their pixels in the cache.
  void sort_rois() {
    const auto place = [&](int64_t k) { return std::tuple(level_of(k), image_of(k), height(k)); };
    order.resize(boxes.size(0));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return place(a) < place(b); });
  }

  void group_rois() {
    const int64_t* begin = order.data();
    const int64_t* const last = begin + order.size();
    for (int64_t level = 0; level < static_cast<int64_t>(features.size()); ++level) {
      for (int64_t image = 0; image < features[0].size(0); ++image) {
        const int64_t* end = begin;
        while (end != last && level_of(*end) == level && image_of(*end) == image) ++end;
        groups.push_back({level, image, {begin, end}});
        begin = end;
      }
    }
  }
};

}  // namespace mrrcnn
