// The CPU kernels as torch operators, by torch's stable ABI: one binary for torch 2.10 and later, any Python.
// The schema is ops/torch_op.py's.
//
// Features that are channels last are read as they lie. Others are turned a slab of channels of one image at a
// time, in a buffer; no whole map that is contiguous is ever copied.
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "call.h"

namespace mrrcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class F, class T>
Tensor pool(const Arguments& a) {
  const Call<F, T> call(a);
  const int64_t channels = call.channels;
  Tensor output = a.new_output();
  F* const data = static_cast<F*>(output.mutable_data_ptr());
  const auto target = [&](int64_t first) {
    return Pooled<F>{data, channels, first, is_channels_last(a.features[0])};
  };
  call.over_rois([&](const Group& g) {
    call.kernels.pool(call.rois, call.plane(g, call.image_data(g), channels), g.rois, channels, target(0));
  });
  call.over_turned_rois([&](const Group& g, int64_t first, int64_t count, const Plane<const F, T>& turned) {
    call.kernels.pool(call.rois, turned, g.rois, count, target(first));
  });
  return output;
}

template <class F>
struct Grad {
  Tensor tensor;
  int64_t channels;

  Pooled<const F> from(int64_t first) const {
    return {static_cast<const F*>(tensor.const_data_ptr()), channels, first, is_channels_last(tensor)};
  }
};

template <class F, class T>
std::vector<Tensor> feature_gradients(const Arguments& a, const Call<F, T>& call, const Grad<F>& grad) {
  const int64_t channels = call.channels;
  std::vector<Tensor> gradients;
  std::vector<F*> levels;
  for (const Tensor& f : a.features) {
    gradients.push_back(a.new_feature_gradient(f));
    levels.push_back(static_cast<F*>(gradients.back().mutable_data_ptr()));
  }
  const auto data = [&](const Group& g) { return levels[g.level] + call.plane_offset(g); };
  // Where the gradient can hold the sums themselves, they need no buffer.
  const auto in_place = [&](const Group& g) {
    return std::is_same_v<F, T> && is_channels_last(a.features[g.level]);
  };
  if constexpr (std::is_same_v<F, T>) {
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (is_channels_last(a.features[i])) torch::stable::zero_(gradients[i]);
    }
    call.over_rows(in_place, [&](const Group& g, Rows rows) {
      const auto sums = call.plane(g, data(g), channels);
      call.kernels.add_feature_gradients(call.rois, sums, rows, g.rois, channels, grad.from(0));
    });
  }
  const auto in_buffer = [&](const Group& g) { return !in_place(g); };
  call.over_slabs(in_buffer, [&](const Group& g, int64_t first, int64_t count, T* buffer) {
    const int64_t pixels = call.pixels(g.level);
    std::fill_n(buffer, pixels * count, T(0));
    const auto sums = call.plane(g, buffer, count);
    call.kernels.add_feature_gradients(call.rois, sums, {0, sums.height}, g.rois, count, grad.from(first));
    if (is_channels_last(a.features[g.level])) {
      call.kernels.to_rows(buffer, count, pixels, data(g) + first, channels);
    } else {
      call.kernels.to_channels_first(buffer, count, pixels, data(g) + first * pixels, pixels);
    }
  });
  return gradients;
}

template <class F, class T>
Tensor mask_gradient(const Arguments& a, const Call<F, T>& call, const Grad<F>& grad) {
  Tensor gradient = torch::stable::empty(a.prob->sizes(), a.sum_type());
  torch::stable::zero_(gradient);
  T* data = static_cast<T*>(gradient.mutable_data_ptr());
  call.over_rois([&](const Group& g) {
    const auto plane = call.plane(g, call.image_data(g), call.channels);
    call.kernels.add_mask_gradients(call.rois, plane, g.rois, call.channels, grad.from(0), data);
  });
  call.over_turned_rois([&](const Group& g, int64_t first, int64_t count, const Plane<const F, T>& turned) {
    call.kernels.add_mask_gradients(call.rois, turned, g.rois, count, grad.from(first), data);
  });
  return torch::stable::to(gradient, a.prob->scalar_type());
}

template <class F, class T>
Gradients differentiate(const Arguments& a, const Tensor& grad, bool need_f, bool need_p) {
  const Call<F, T> call(a);
  const Grad<F> rows{dense(torch::stable::to(grad, a.features[0].scalar_type())), call.channels};
  return {need_f ? feature_gradients(a, call, rows) : a.no_feature_gradients(),
          need_p && a.prob ? mask_gradient(a, call, rows) : a.no_gradient()};
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
