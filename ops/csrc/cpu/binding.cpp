// The CPU kernels as torch operators, by torch's stable ABI: one binary for torch 2.10 and later, any Python.
// The schema is ops/torch_op.py's.
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../arguments.h"
#include "kernel.h"

namespace mrrcnn {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChannelBlock = 16;  // a thread's least share of the feature gradient: a cache line of float

// Holds the tensors that a Problem points into.
template <class F, class T>
struct Prepared {
  std::vector<Tensor> features;
  Tensor rois;
  std::optional<Tensor> prob, level;
  Problem<F, T> problem;
};

template <class T>
void check_ranges(const T* rois, const int64_t* level, int64_t num_rois, int64_t images, int64_t levels) {
  for (int64_t k = 0; k < num_rois; ++k) {
    const T image = rois[5 * k];
    STD_TORCH_CHECK(image >= 0 && image < static_cast<T>(images), "sa_roi_align: RoI ", k, " has batch index ",
                    image, ", expected 0 to ", images - 1);
    STD_TORCH_CHECK(!level || (level[k] >= 0 && level[k] < levels), "sa_roi_align: RoI ", k, " has level ",
                    level ? level[k] : 0, ", expected 0 to ", levels - 1);
  }
}

template <class F, class T>
Prepared<F, T> prepare(const Arguments& a) {
  const ScalarType type = a.sum_type();
  Prepared<F, T> p{{}, torch::stable::contiguous(torch::stable::to(a.rois, type)), std::nullopt, std::nullopt, {}};
  for (size_t i = 0; i < a.features.size(); ++i) {
    p.features.push_back(torch::stable::contiguous(a.features[i], MemoryFormat::ChannelsLast));
    p.problem.levels.push_back({static_cast<const F*>(p.features[i].const_data_ptr()),
                                static_cast<int>(a.features[i].size(2)), static_cast<int>(a.features[i].size(3)),
                                static_cast<T>(a.spatial_scales[i])});
  }
  if (a.prob) p.prob = torch::stable::contiguous(torch::stable::to(*a.prob, type));
  if (a.level) p.level = torch::stable::contiguous(*a.level);
  p.problem.rois = static_cast<const T*>(p.rois.const_data_ptr());
  p.problem.masks = p.prob ? static_cast<const T*>(p.prob->const_data_ptr()) : nullptr;
  p.problem.level = p.level ? static_cast<const int64_t*>(p.level->const_data_ptr()) : nullptr;
  p.problem.num_rois = a.rois.size(0);
  p.problem.channels = a.features[0].size(1);
  p.problem.settings = a.settings();
  check_ranges(p.problem.rois, p.problem.level, p.problem.num_rois, a.features[0].size(0), a.features.size());
  return p;
}

template <class F, class T>
Tensor pool(const Arguments& a) {
  const Prepared<F, T> p = prepare<F, T>(a);
  Tensor output = a.new_output();
  const OutputStrides strides{output.stride(0), output.stride(1), output.stride(2), output.stride(3)};
  F* data = static_cast<F*>(output.mutable_data_ptr());
  torch::stable::parallel_for(0, p.problem.num_rois, 1, [&](int64_t begin, int64_t end) {
    forward(p.problem, begin, end, data, strides);
  });
  return output;
}

template <class F, class T>
std::vector<Tensor> feature_gradients(const Arguments& a, const Problem<F, T>& problem, const T* grad) {
  std::vector<Tensor> sums;
  std::vector<T*> data;
  for (const Tensor& feature : a.features) {
    sums.push_back(a.new_feature_sums(feature));
    data.push_back(static_cast<T*>(sums.back().mutable_data_ptr()));
  }
  const int64_t blocks = (problem.channels + kChannelBlock - 1) / kChannelBlock;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(problem.channels, end * kChannelBlock);
    backward_features(problem, grad, begin * kChannelBlock, last, data);
  });
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < sums.size(); ++i) gradients.push_back(a.as_feature_gradient(sums[i], a.features[i]));
  return gradients;
}

template <class F, class T>
Tensor mask_gradient(const Arguments& a, const Problem<F, T>& problem, const T* grad) {
  Tensor gradient = torch::stable::empty(a.prob->sizes(), a.sum_type());
  T* data = static_cast<T*>(gradient.mutable_data_ptr());
  torch::stable::parallel_for(0, problem.num_rois, 1, [&](int64_t begin, int64_t end) {
    backward_masks(problem, grad, begin, end, data);
  });
  return torch::stable::to(gradient, a.prob->scalar_type());
}

template <class F, class T>
Gradients differentiate(const Arguments& a, const Tensor& grad, bool need_f, bool need_p) {
  const Prepared<F, T> p = prepare<F, T>(a);
  const Tensor dense = torch::stable::contiguous(torch::stable::to(grad, a.sum_type()), MemoryFormat::ChannelsLast);
  const T* data = static_cast<const T*>(dense.const_data_ptr());
  return {need_f ? feature_gradients(a, p.problem, data) : a.no_feature_gradients(),
          need_p && a.prob ? mask_gradient(a, p.problem, data) : a.no_gradient()};
}

Tensor sa_roi_align(std::vector<Tensor> features, Tensor rois, std::optional<Tensor> prob,
                    std::optional<Tensor> level, std::vector<double> spatial_scales, int64_t pooled_h,
                    int64_t pooled_w, int64_t sampling_ratio, bool aligned, int64_t prob_mode) {
  const Arguments a{features, rois,     prob,           level,   spatial_scales,
                    pooled_h, pooled_w, sampling_ratio, aligned, prob_mode};
  a.check();
  switch (features[0].scalar_type()) {
    case ScalarType::Double: return pool<double, double>(a);
    case ScalarType::BFloat16: return pool<torch::headeronly::BFloat16, float>(a);
    case ScalarType::Half: return pool<torch::headeronly::Half, float>(a);
    default: return pool<float, float>(a);
  }
}

Gradients sa_roi_align_backward(Tensor grad, std::vector<Tensor> features, Tensor rois, std::optional<Tensor> prob,
                                std::optional<Tensor> level, std::vector<double> spatial_scales, int64_t pooled_h,
                                int64_t pooled_w, int64_t sampling_ratio, bool aligned, int64_t prob_mode,
                                bool need_f, bool need_p) {
  const Arguments a{features, rois,     prob,           level,   spatial_scales,
                    pooled_h, pooled_w, sampling_ratio, aligned, prob_mode};
  a.check();
  a.check_grad(grad);
  switch (features[0].scalar_type()) {
    case ScalarType::Double: return differentiate<double, double>(a, grad, need_f, need_p);
    case ScalarType::BFloat16: return differentiate<torch::headeronly::BFloat16, float>(a, grad, need_f, need_p);
    case ScalarType::Half: return differentiate<torch::headeronly::Half, float>(a, grad, need_f, need_p);
    default: return differentiate<float, float>(a, grad, need_f, need_p);
  }
}

}  // namespace
}  // namespace mrrcnn

STABLE_TORCH_LIBRARY_IMPL(mrrcnn, CPU, m) {
  m.impl("sa_roi_align", TORCH_BOX(&mrrcnn::sa_roi_align));
  m.impl("sa_roi_align_backward", TORCH_BOX(&mrrcnn::sa_roi_align_backward));
}
