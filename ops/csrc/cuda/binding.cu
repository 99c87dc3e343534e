// The CUDA kernels as torch operators, by torch's stable ABI. The schema is ops/torch_op.py's.
// Nothing here waits for the device.
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../arguments.h"
#include "backward_features.cuh"
#include "backward_masks.cuh"
#include "forward.cuh"
#include "turn.cuh"

namespace mrrcnn {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Holds the tensors that a Problem points into.
template <class F, class T>
struct Prepared {
  std::vector<Tensor> features;  // none where nobody reads them
  Tensor rois;
  std::optional<Tensor> prob, level;
  Problem<F, T> problem;
};

// The kernels count RoIs with 32 bits.
void check_limits(const Arguments& a) {
  STD_TORCH_CHECK(a.features.size() <= kMaxLevels, "sa_roi_align: at most ", kMaxLevels, " maps on CUDA");
  STD_TORCH_CHECK(a.rois.size(0) <= INT32_MAX - kThreads, "sa_roi_align: too many RoIs for CUDA");
}

Tensor dense(const Tensor& t, ScalarType type) {
  return torch::stable::contiguous(torch::stable::to(t, type));
}

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice,
                  "sa_roi_align: _C_cuda.so has no kernels for this GPU; build it with TORCH_CUDA_ARCH_LIST set to the "
                  "GPU's compute capability (torch.cuda.get_device_capability())");
  STD_TORCH_CHECK(error == cudaSuccess, "sa_roi_align: ", cudaGetErrorString(error));
}

// The same tensor, or its elements with channels innermost.
template <class F>
Tensor channels_last(const Tensor& t) {
  const int64_t images = t.size(0), channels = t.size(1), pixels = t.size(2) * t.size(3);
  const int64_t blocks = turn_blocks(images, channels, pixels);
  const bool turns = t.is_contiguous() && channels > 1 && pixels > 1 && blocks > 0 && blocks <= INT32_MAX;
  if (!turns) return torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
  Tensor turned = torch::stable::empty(t.sizes(), t.scalar_type(), std::nullopt, t.device(), std::nullopt,
                                       MemoryFormat::ChannelsLast);
  turn_kernel<F><<<blocks, kThreads, 0, current_stream(t)>>>(
      static_cast<const F*>(t.const_data_ptr()), static_cast<int>(channels), static_cast<int>(pixels),
      static_cast<F*>(turned.mutable_data_ptr()));
  check_launch();
  return turned;
}

template <class F, class T>
Prepared<F, T> prepare(const Arguments& a, bool read_features) {
  check_limits(a);
  const ScalarType type = a.sum_type();
  Prepared<F, T> p{{}, dense(a.rois, type), std::nullopt, std::nullopt, {}};
  for (size_t i = 0; i < a.features.size(); ++i) {
    const Tensor& f = a.features[i];
    if (read_features) p.features.push_back(channels_last<F>(f));
    p.problem.levels[i] = {read_features ? static_cast<const F*>(p.features[i].const_data_ptr()) : nullptr,
                           static_cast<int>(f.size(2)), static_cast<int>(f.size(3)),
                           static_cast<T>(a.spatial_scales[i])};
  }
  if (a.prob) p.prob = dense(*a.prob, type);
  if (a.level) p.level = torch::stable::contiguous(*a.level);
  p.problem.num_levels = static_cast<int>(a.features.size());
  p.problem.rois = static_cast<const T*>(p.rois.const_data_ptr());
  p.problem.masks = p.prob ? static_cast<const T*>(p.prob->const_data_ptr()) : nullptr;
  p.problem.level = p.level ? static_cast<const int64_t*>(p.level->const_data_ptr()) : nullptr;
  p.problem.num_rois = a.rois.size(0);
  p.problem.num_images = a.features[0].size(0);
  p.problem.channels = static_cast<int>(a.features[0].size(1));
  p.problem.settings = a.settings();
  return p;
}

Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

// Whether lanes may move 16 bytes at once. Tensors made here are aligned; those handed over may begin
// anywhere.
template <class F>
bool fits_vectors(const std::vector<Tensor>& tensors, int channels) {
  bool fits = kVector<F> > 1 && channels % kVector<F> == 0;
  for (const Tensor& t : tensors) fits = fits && aligned(t);
  return fits;
}

// Calls run(V) for the vector path or for the scalar path, V a constant.
template <class F, class Run>
void choose_path(bool vectors, const Run& run) {
  if (vectors) {
    run(std::integral_constant<int, kVector<F>>());
  } else {
    run(std::integral_constant<int, 1>());
  }
}

template <class F, class T>
Tensor pool(const Arguments& a) {
  Tensor output = a.new_output();
  if (output.numel() == 0) return output;
  const Prepared<F, T> p = prepare<F, T>(a, true);
  F* data = static_cast<F*>(output.mutable_data_ptr());
  const dim3 grid(p.problem.num_rois, forward_parts(p.problem.num_rois, a.pooled_h * a.pooled_w));
  choose_path<F>(fits_vectors<F>(p.features, p.problem.channels), [&](auto v) {
    forward_kernel<F, T, v()>
        <<<grid, kThreads, 0, current_stream(output)>>>(p.problem, data, strides_of(output));
  });
  check_launch();
  return output;
}

template <class F, class T>
std::vector<Tensor> feature_gradients(const Arguments& a, const Prepared<F, T>& p, const Tensor& grad) {
  std::vector<Tensor> gradients;
  FeatureGradients<F> pointers{};
  for (size_t i = 0; i < a.features.size(); ++i) {
    const Tensor& f = a.features[i];
    gradients.push_back(a.new_feature_gradient(f));
    pointers.data[i] = static_cast<F*>(gradients[i].mutable_data_ptr());
    pointers.strides[i] = strides_of(gradients[i]);
  }
  const int64_t blocks = backward_features_blocks(p.problem);
  if (blocks == 0) return gradients;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "sa_roi_align_backward: too many pixels for one launch");
  const F* data = static_cast<const F*>(grad.const_data_ptr());
  choose_path<F>(fits_vectors<F>({grad}, p.problem.channels), [&](auto v) {
    backward_features_kernel<F, T, v()>
        <<<blocks, kThreads, 0, current_stream(grad)>>>(p.problem, data, pointers);
  });
  check_launch();
  return gradients;
}

template <class F, class T>
Tensor mask_gradient(const Arguments& a, const Prepared<F, T>& p, const Tensor& grad) {
  Tensor gradient = torch::stable::empty(a.prob->sizes(), a.sum_type(), std::nullopt, a.prob->device());
  if (gradient.numel() > 0) {
    std::vector<Tensor> read = p.features;
    read.push_back(grad);
    const F* data = static_cast<const F*>(grad.const_data_ptr());
    T* masks = static_cast<T*>(gradient.mutable_data_ptr());
    choose_path<F>(fits_vectors<F>(read, p.problem.channels), [&](auto v) {
      backward_masks_kernel<F, T, v()>
          <<<p.problem.num_rois, kThreads, 0, current_stream(gradient)>>>(p.problem, data, masks);
    });
    check_launch();
  }
  return torch::stable::to(gradient, a.prob->scalar_type());
}

template <class F, class T>
Gradients differentiate(const Arguments& a, const Tensor& grad, bool need_f, bool need_p) {
  need_p = need_p && a.prob;
  const Prepared<F, T> p = prepare<F, T>(a, need_p);
  const Tensor nhwc = channels_last<F>(torch::stable::to(grad, a.features[0].scalar_type()));
  return {need_f ? feature_gradients(a, p, nhwc) : a.no_feature_gradients(),
          need_p ? mask_gradient(a, p, nhwc) : a.no_gradient()};
}

Tensor sa_roi_align(std::vector<Tensor> features, Tensor rois, std::optional<Tensor> prob,
                    std::optional<Tensor> level, std::vector<double> spatial_scales, int64_t pooled_h,
                    int64_t pooled_w, int64_t sampling_ratio, bool aligned, int64_t prob_mode) {
  const Arguments a{features, rois,     prob,           level,   spatial_scales,
                    pooled_h, pooled_w, sampling_ratio, aligned, prob_mode};
  a.check();
  const torch::stable::accelerator::DeviceGuard guard(features[0].get_device_index());
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
  const torch::stable::accelerator::DeviceGuard guard(features[0].get_device_index());
  switch (features[0].scalar_type()) {
    case ScalarType::Double: return differentiate<double, double>(a, grad, need_f, need_p);
    case ScalarType::BFloat16: return differentiate<torch::headeronly::BFloat16, float>(a, grad, need_f, need_p);
    case ScalarType::Half: return differentiate<torch::headeronly::Half, float>(a, grad, need_f, need_p);
    default: return differentiate<float, float>(a, grad, need_f, need_p);
  }
}

}  // namespace
}  // namespace mrrcnn

STABLE_TORCH_LIBRARY_IMPL(mrrcnn, CUDA, m) {
  m.impl("sa_roi_align", TORCH_BOX(&mrrcnn::sa_roi_align));
  m.impl("sa_roi_align_backward", TORCH_BOX(&mrrcnn::sa_roi_align_backward));
}
