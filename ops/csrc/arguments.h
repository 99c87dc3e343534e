// The operator's arguments as torch hands them over: checked, and asked for the tensors that follow from them.
// Shared by the CPU and the CUDA binding; stable ABI only.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "geometry.h"

#define MRRCNN_TEXT_OF(name) #name
#define MRRCNN_TEXT(name) MRRCNN_TEXT_OF(name)

// The digest of the sources that this library was built from; ops/backend.py compares it with what lies beside it.
extern "C" __attribute__((visibility("default"), used)) inline const char* mrrcnn_sources() {
  return MRRCNN_TEXT(MRRCNN_SOURCES);
}

namespace mrrcnn {

using Gradients = std::tuple<std::vector<torch::stable::Tensor>, torch::stable::Tensor>;

// channels_last only if the tensor is that and not plainly contiguous as well (as with C = 1 or H = W = 1).
inline torch::headeronly::MemoryFormat memory_format(const torch::stable::Tensor& t) {
  if (t.is_contiguous()) return torch::headeronly::MemoryFormat::Contiguous;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return torch::headeronly::MemoryFormat::Contiguous;
    expected *= t.size(dim);
  }
  return torch::headeronly::MemoryFormat::ChannelsLast;
}

struct Arguments {
  using Tensor = torch::stable::Tensor;
  using ScalarType = torch::headeronly::ScalarType;
  using MemoryFormat = torch::headeronly::MemoryFormat;

  const std::vector<Tensor>& features;
  const Tensor& rois;
  const std::optional<Tensor>& prob;
  const std::optional<Tensor>& level;
  const std::vector<double>& spatial_scales;
  int64_t pooled_h, pooled_w, sampling_ratio;
  bool aligned;
  int64_t prob_mode;

  // The type of coordinates, masks and sums.
  ScalarType sum_type() const {
    return features[0].scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  Settings settings() const {
    return {static_cast<int>(pooled_h),
            static_cast<int>(pooled_w),
            static_cast<int>(sampling_ratio > 0 ? sampling_ratio : 0),
            aligned,
            prob ? static_cast<int>(prob->size(1)) : 0,
            prob ? static_cast<int>(prob->size(2)) : 0,
            prob_mode == 0};
  }

  void check() const {
    STD_TORCH_CHECK(!features.empty(), "sa_roi_align: features is empty");
    STD_TORCH_CHECK(features.size() == spatial_scales.size(), "sa_roi_align: ", features.size(),
                    " feature maps but ", spatial_scales.size(), " spatial scales");
    for (const Tensor& f : features) check_feature(f);
    STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "sa_roi_align: rois must be [K, 5]");
    STD_TORCH_CHECK(same_device(rois), "sa_roi_align: rois and features are on different devices");
    check_settings();
    STD_TORCH_CHECK(level || features.size() == 1, "sa_roi_align: several feature maps need a level per RoI");
    if (level) {
      STD_TORCH_CHECK(level->dim() == 1 && level->size(0) == rois.size(0) &&
                          level->scalar_type() == ScalarType::Long && same_device(*level),
                      "sa_roi_align: level must be int64 [K] on the features' device");
    }
    if (prob) {
      STD_TORCH_CHECK(prob->dim() == 3 && prob->size(0) == rois.size(0) && prob->size(1) > 0 && prob->size(2) > 0 &&
                          same_device(*prob),
                      "sa_roi_align: prob must be [K, Hp, Wp] on the features' device");
      STD_TORCH_CHECK(fits_int(prob->size(1), prob->size(2)), "sa_roi_align: a mask has more than 2^31 elements");
    }
  }

  // The kernels count within a map, a mask and a RoI's output with 32 bits.
  static bool fits_int(int64_t a, int64_t b) { return b == 0 || a <= INT32_MAX / b; }

  void check_settings() const {
    STD_TORCH_CHECK(pooled_h > 0 && pooled_w > 0 && pooled_h <= INT16_MAX && pooled_w <= INT16_MAX,
                    "sa_roi_align: the output size must be 1 to 32767 bins a side");
    STD_TORCH_CHECK(fits_int(features[0].size(1), pooled_h * pooled_w),
                    "sa_roi_align: one RoI's output has more than 2^31 elements");
    STD_TORCH_CHECK(sampling_ratio <= kMaxAdaptiveGrid, "sa_roi_align: sampling_ratio must be at most 4096");
    STD_TORCH_CHECK(prob_mode == 0 || prob_mode == 1, "sa_roi_align: prob_mode must be 0 or 1");
  }

  void check_feature(const Tensor& f) const {
    const Tensor& first = features[0];
    const ScalarType type = f.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                        type == ScalarType::Half,
                    "sa_roi_align: features must be float32, float64, bfloat16 or float16");
    STD_TORCH_CHECK(f.dim() == 4 && f.size(2) > 0 && f.size(3) > 0, "sa_roi_align: features must be [N, C, H, W]");
    STD_TORCH_CHECK(f.size(0) == first.size(0) && f.size(1) == first.size(1) && type == first.scalar_type() &&
                        same_device(f),
                    "sa_roi_align: feature maps differ in N, C, dtype or device");
    STD_TORCH_CHECK(fits_int(f.size(2), f.size(3)) && fits_int(f.size(1), f.size(2) * f.size(3)),
                    "sa_roi_align: one image's feature map has more than 2^31 elements");
  }

  void check_grad(const Tensor& grad) const {
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == rois.size(0) && grad.size(1) == features[0].size(1) &&
                        grad.size(2) == pooled_h && grad.size(3) == pooled_w && same_device(grad),
                    "sa_roi_align_backward: grad must have the shape and device of the output");
  }

  bool same_device(const Tensor& t) const { return t.device() == features[0].device(); }

  // An output whose every element is still to be written.
  Tensor new_output() const {
    const Tensor& f = features[0];
    return torch::stable::empty({rois.size(0), f.size(1), pooled_h, pooled_w}, f.scalar_type(), std::nullopt,
                                f.device(), std::nullopt, memory_format(f));
  }

  // A feature's gradient whose every element is still to be written.
  Tensor new_feature_gradient(const Tensor& f) const {
    return torch::stable::empty(f.sizes(), f.scalar_type(), std::nullopt, f.device(), std::nullopt,
                                memory_format(f));
  }

  // What the schema returns for a gradient that nobody asked for.
  Tensor no_gradient() const {
    return torch::stable::empty({0}, features[0].scalar_type(), std::nullopt, features[0].device());
  }

  std::vector<Tensor> no_feature_gradients() const {
    std::vector<Tensor> none;
    for (size_t i = 0; i < features.size(); ++i) none.push_back(no_gradient());
    return none;
  }
};

}  // namespace mrrcnn
