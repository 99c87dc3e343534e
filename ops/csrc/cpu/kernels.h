// The kernels of one instruction set, for every type: included once by each of kernels_*.cpp.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "gradients.h"
#include "pool.h"

namespace mrrcnn::MRRCNN_ISA {

template <class F, class T>
Kernels<F, T> kernels() {
  return {pool<F, T>, add_feature_gradients<F, T>, add_mask_gradients<F, T>, to_channels_last<F>,
          to_channels_first<F, T>, to_rows<F, T>};
}

template Kernels<float, float> kernels();
template Kernels<double, double> kernels();
template Kernels<c10::BFloat16, float> kernels();
template Kernels<c10::Half, float> kernels();

}  // namespace mrrcnn::MRRCNN_ISA
