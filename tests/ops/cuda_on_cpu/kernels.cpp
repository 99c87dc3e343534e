// The CUDA kernels behind four C functions that run them on the CPU; kernels.py calls them.
#include "cuda_on_cpu.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../../../ops/csrc/cuda/backward_features.cuh"
#include "../../../ops/csrc/cuda/backward_masks.cuh"
#include "../../../ops/csrc/cuda/forward.cuh"
#include "../../../ops/csrc/cuda/turn.cuh"

using namespace mrrcnn;

// What kernels.py fills in, field by field.
struct Call {
  int64_t num_rois, num_images, strides[kMaxLevels][4];
  const void* features[kMaxLevels];
  void* results[kMaxLevels];
  const void *rois, *masks, *level, *grad;
  double scales[kMaxLevels];
  int heights[kMaxLevels], widths[kMaxLevels];
  int type, vectors, downwards, warps_run_ahead, poison, num_levels, channels;
  int pooled_h, pooled_w, sampling_ratio, aligned, mask_h, mask_w, half_pixel;
};

namespace {

enum class Type : int { float64, float32, bfloat16, float16 };

template <class F, class T>
Problem<F, T> problem_of(const Call& call) {
  Problem<F, T> problem{};
  for (int n = 0; n < call.num_levels; ++n) {
    problem.levels[n] = {static_cast<const F*>(call.features[n]), call.heights[n], call.widths[n],
                         static_cast<T>(call.scales[n])};
  }
  problem.num_levels = call.num_levels;
  problem.rois = static_cast<const T*>(call.rois);
  problem.masks = static_cast<const T*>(call.masks);
  problem.level = static_cast<const int64_t*>(call.level);
  problem.num_rois = call.num_rois;
  problem.num_images = call.num_images;
  problem.channels = call.channels;
  problem.settings = {call.pooled_h,    call.pooled_w, call.sampling_ratio, call.aligned != 0,
                      call.mask_h, call.mask_w,   call.half_pixel != 0};
  return problem;
}

Strides strides_of(const Call& call, int n) {
  return {call.strides[n][0], call.strides[n][1], call.strides[n][2], call.strides[n][3]};
}

template <class Kernel>
bool launch(const Call& call, int64_t x, unsigned y, const Kernel& kernel) {
  const cuda_on_cpu::Schedule schedule{call.downwards != 0, call.warps_run_ahead != 0, call.poison != 0};
  return cuda_on_cpu::launch({static_cast<unsigned>(x), y, 1}, kThreads, schedule, kernel);
}

struct Forward {
  template <class F, class T, int V>
  static bool run(const Call& call) {
    const Problem<F, T> problem = problem_of<F, T>(call);
    const unsigned parts = forward_parts(call.num_rois, call.pooled_h * call.pooled_w);
    return launch(call, call.num_rois, parts, [&] {
      forward_kernel<F, T, V>(problem, static_cast<F*>(call.results[0]), strides_of(call, 0));
    });
  }
};

struct BackwardFeatures {
  template <class F, class T, int V>
  static bool run(const Call& call) {
    const Problem<F, T> problem = problem_of<F, T>(call);
    FeatureGradients<F> gradients{};
    for (int n = 0; n < call.num_levels; ++n) {
      gradients.data[n] = static_cast<F*>(call.results[n]);
      gradients.strides[n] = strides_of(call, n);
    }
    return launch(call, backward_features_blocks(problem), 1, [&] {
      backward_features_kernel<F, T, V>(problem, static_cast<const F*>(call.grad), gradients);
    });
  }
};

struct BackwardMasks {
  template <class F, class T, int V>
  static bool run(const Call& call) {
    const Problem<F, T> problem = problem_of<F, T>(call);
    return launch(call, call.num_rois, 1, [&] {
      auto* gradient = static_cast<T*>(call.results[0]);
      backward_masks_kernel<F, T, V>(problem, static_cast<const F*>(call.grad), gradient);
    });
  }
};

// Turns the first map.
struct Turn {
  template <class F, class T, int V>
  static bool run(const Call& call) {
    const int pixels = call.heights[0] * call.widths[0];
    return launch(call, turn_blocks(call.num_images, call.channels, pixels), 1, [&] {
      turn_kernel<F>(static_cast<const F*>(call.features[0]), call.channels, pixels,
                     static_cast<F*>(call.results[0]));
    });
  }
};

template <class Kernel, class F, class T>
bool run_as(const Call& call) {
  return call.vectors ? Kernel::template run<F, T, kVector<F>>(call) : Kernel::template run<F, T, 1>(call);
}

template <class Kernel>
bool run(const Call& call) {
  switch (static_cast<Type>(call.type)) {
    case Type::float64: return run_as<Kernel, double, double>(call);
    case Type::float32: return run_as<Kernel, float, float>(call);
    case Type::bfloat16: return run_as<Kernel, torch::headeronly::BFloat16, float>(call);
    case Type::float16: return run_as<Kernel, torch::headeronly::Half, float>(call);
  }
  return false;
}

}  // namespace

// Each returns whether the kernel came to its end.
extern "C" int forward(const Call* call) { return run<Forward>(*call); }
extern "C" int backward_features(const Call* call) { return run<BackwardFeatures>(*call); }
extern "C" int backward_masks(const Call* call) { return run<BackwardMasks>(*call); }
extern "C" int turn(const Call* call) { return run<Turn>(*call); }
