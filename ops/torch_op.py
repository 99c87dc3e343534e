"""The operator as torch knows it: `torch.ops.mrrcnn.sa_roi_align`, its shapes, its gradients, its fallback.

The schema is defined here and nowhere else. The compiled libraries add kernels for CPU and CUDA tensors;
every other device, and every tensor when nothing is compiled, takes the reference.

For autocast no kernel is registered, on purpose: dispatch falls through, so features keep their type, boxes
and masks are never rounded to half precision, and products accumulate in float32.

torch.func is not supported: vmap and grad (vjp, jacrev) raise by themselves. For forward-mode AD (jvp,
jacfwd) torch would hand on a tangent of zeros, so ops/sa_roi_align.py refuses it, except while compiling.
"""

import torch

from ops import reference

_SETTINGS = (
    "Tensor[] features, Tensor rois, Tensor? prob, Tensor? level, float[] spatial_scales, "
    "int pooled_h, int pooled_w, int sampling_ratio, bool aligned, int prob_mode"
)
_library = torch.library.Library("mrrcnn", "DEF")
_library.define(f"sa_roi_align({_SETTINGS}) -> Tensor")
_library.define(
    f"sa_roi_align_backward(Tensor grad, {_SETTINGS}, bool need_f, bool need_p) -> (Tensor[], Tensor)"
)
_library.impl("sa_roi_align", reference.forward, "CompositeExplicitAutograd")
_library.impl("sa_roi_align_backward", reference.backward, "CompositeExplicitAutograd")


@torch.library.register_fake("mrrcnn::sa_roi_align", lib=_library)
def _fake(features, rois, prob, level, spatial_scales, pooled_h, pooled_w, *settings):
    first = features[0]
    shape = (rois.shape[0], first.shape[1], pooled_h, pooled_w)
    return torch.empty(
        shape, dtype=first.dtype, device=first.device, memory_format=reference.memory_format(first)
    )


@torch.library.register_fake("mrrcnn::sa_roi_align_backward", lib=_library)
def _fake_backward(grad, features, rois, prob, level, spatial_scales, *settings):
    need_f, need_p = settings[-2:]
    grad_features = [
        torch.empty(f.shape, dtype=f.dtype, device=f.device, memory_format=reference.memory_format(f))
        if need_f
        else f.new_empty(0)
        for f in features
    ]
    if need_p and prob is not None:
        return grad_features, torch.empty(prob.shape, dtype=prob.dtype, device=prob.device)
    return grad_features, features[0].new_empty(0)


def _save_inputs(ctx, inputs, output):
    features, rois, prob, level, *settings = inputs
    ctx.save_for_backward(rois, prob, level, *features)
    ctx.settings = settings


def _backward(ctx, grad):
    rois, prob, level, *features = ctx.saved_tensors
    need_f, need_p = any(ctx.needs_input_grad[0]), ctx.needs_input_grad[2]
    grad_features, grad_prob = torch.ops.mrrcnn.sa_roi_align_backward(
        grad, features, rois, prob, level, *ctx.settings, need_f, need_p
    )
    grad_features = [
        g if need else None for g, need in zip(grad_features, ctx.needs_input_grad[0], strict=True)
    ]
    # Boxes get no gradient, as in torchvision and in the paper.
    return grad_features, None, grad_prob if need_p else None, *[None] * (1 + len(ctx.settings))


def _double_backward(ctx, *grads):
    raise RuntimeError("sa_roi_align cannot be differentiated twice: its gradient has no gradient of its own")


torch.library.register_autograd("mrrcnn::sa_roi_align", _backward, setup_context=_save_inputs, lib=_library)
# Without this a second backward would pass in silence with wrong numbers.
torch.library.register_autograd("mrrcnn::sa_roi_align_backward", _double_backward, lib=_library)
