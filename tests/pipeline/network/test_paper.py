"""MR R-CNN equals the paper read step by step, one image, whole tensors, torchvision's own pooling."""

import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou, clip_boxes_to_image

from configs.schema import Refine
from pipeline.model import build_model
from tests.pipeline.tiny import CLASSES, TEST, tiny_image, tiny_refined, tiny_target

SIZE = (96, 96)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def pool(features, boxes, size, ratio=2):
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], size, ratio)
    return pooler(features, [boxes], [SIZE])


def shape_aware(features, boxes, masks):
    """SaRoIAlign by its factorisation: finer RoIAlign times pooled masks, then averaged."""
    return F.avg_pool2d(pool(features, boxes, 14, 1) * F.avg_pool2d(masks[:, None], 2), 2)


def box_head(heads, pooled):
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    return logits, deltas.view(len(logits), CLASSES, 4)


def all_masks(heads, hidden):
    return heads.mask_predictor(hidden)


def decode(deltas, boxes):
    moved = CODER.decode_single(deltas.flatten(1), boxes).view(len(boxes), -1, 4)
    return clip_boxes_to_image(moved, SIZE).detach()


def pick(of_classes, labels):
    return of_classes[torch.arange(len(labels)), labels]


def shaken(refine=None):
    """Return a model whose refining module is no longer a copy, conv_res included."""
    model = tiny_refined(refine, test=TEST.model_copy(update={"score": 0.02, "topk": 60}))
    generator = torch.Generator().manual_seed(9)
    for parameter in model.refine.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += noise * (parameter.std() if parameter.any() else 0.02) * 0.5
    # Boxes that move and scores that differ: a fault in either must show.
    for heads in (model.roi_heads, model.refine):
        heads.box_predictor.bbox_pred.weight.data *= 5
        heads.box_predictor.cls_score.weight.data *= 5
    return model


def test_detections_are_the_papers():
    model = shaken().eval()
    with torch.no_grad():
        batch, _ = model.transform([tiny_image(0)])
        features = model.backbone(batch.tensors)
        proposals = model.rpn(batch, features)[0][0]
        base_logits, base_deltas = box_head(model.roi_heads, pool(features, proposals, 7))
        pseudo = base_logits[:, 1:].argmax(1) + 1
        boxes = pick(decode(base_deltas, proposals), pseudo)
        hidden = model.roi_heads.mask_head(pool(features, boxes, 14))
        masks = pick(all_masks(model.roi_heads, hidden), pseudo).sigmoid()
        logits, deltas = box_head(model.refine, shape_aware(features, boxes, masks))
        scores = ((base_logits + logits) / 2).softmax(1)
        refined = decode(deltas, boxes)
        rows, labels = torch.where(scores[:, 1:] > 0.02)
        labels = labels + 1
        kept = batched_nms(refined[rows, labels], scores[rows, labels], labels, 0.5)[:60]
        rows, labels = rows[kept], labels[kept]
        final = refined[rows, labels]
        summed = pool(features, final, 14) + model.refine.conv_res(hidden[rows])
        masks = pick(all_masks(model.refine, model.refine.mask_head(summed)), labels).sigmoid()
        found, probabilities = model.find(features, torch.cat([proposals[:, :1] * 0, proposals], 1), [SIZE])
    assert len(found.labels) == 60 and len(set(found.labels.tolist())) > 1
    assert torch.equal(found.labels, labels) and torch.equal(found.rows, rows)
    torch.testing.assert_close(found.rois[:, 1:], final, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.scores, scores[rows, labels], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities, masks, rtol=1e-3, atol=1e-4)


def matched(boxes, target, iou):
    best, index = box_iou(target["boxes"], boxes).max(0)
    return torch.where(best >= iou, target["labels"][index], 0), index


def box_term(deltas, labels, boxes, gt_boxes):
    positive = labels > 0
    encoded = CODER.encode_single(gt_boxes[positive], boxes[positive])
    return F.smooth_l1_loss(pick(deltas, labels)[positive], encoded, beta=1.0, reduction="sum")


def mask_term(logits, labels, boxes, index, target):
    crops = project_masks_on_boxes(target["masks"], boxes, index, 28)
    return F.binary_cross_entropy_with_logits(pick(logits, labels), crops, reduction="sum")


def paper_losses(model, features, proposals, labels, target):
    """Steps 2 to 12 of training, for the sampled RoIs of one image."""
    base_logits, base_deltas = box_head(model.roi_heads, pool(features, proposals, 7))
    used = torch.where(labels > 0, labels, base_logits[:, 1:].argmax(1) + 1)
    boxes = pick(decode(base_deltas, proposals), used)
    base_labels, index = matched(boxes, target, model.refine_config.iou)
    hidden = model.roi_heads.mask_head(pool(features, boxes, 14))
    mask_logits = all_masks(model.roi_heads, hidden)
    logits, deltas = box_head(model.refine, shape_aware(features, boxes, pick(mask_logits, used).sigmoid()))
    positive = torch.where(base_labels > 0)[0]
    refined = pick(decode(deltas[positive], boxes[positive]), base_labels[positive])
    refined_labels, refined_index = matched(refined, target, model.refine_config.iou)
    kept = refined_labels > 0
    summed = pool(features, refined[kept], 14) + model.refine.conv_res(hidden[positive][kept])
    refined_logits = all_masks(model.refine, model.refine.mask_head(summed))
    rows = positive
    assert (used[rows] != base_labels[rows]).any(), "the case must tell the two channels apart"
    return {
        "loss_mask": mask_term(mask_logits[rows], base_labels[rows], boxes[rows], index[rows], target),
        "refine_classifier": F.cross_entropy(logits, base_labels, reduction="sum"),
        "refine_box_reg": box_term(deltas, base_labels, boxes, target["boxes"][index]),
        "refine_mask": mask_term(
            refined_logits, refined_labels[kept], refined[kept], refined_index[kept], target
        ),
    }


def test_losses_and_gradients_are_the_papers():
    # A low threshold makes many positives, and pseudo labels among them that are not the match's label.
    # In float64: in float32 gradients through the whole backbone differ by a part in a thousand on some
    # processors. Heads and losses have a float32 of their own.
    model = shaken(Refine(iou=0.02)).train().double()
    image, target = tiny_image(0).double(), tiny_target(7)
    target["boxes"] = target["boxes"].double()
    batch, targets = model.transform([image], [target])
    stage = model.first_stage(batch, targets, 3)
    proposals, labels = stage.sampled.rois[:, 1:], stage.sampled.labels
    expected = paper_losses(model, stage.features, proposals, labels, targets[0])
    losses = model([image], [target], 3)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name][0].double(), loss, rtol=1e-6, atol=1e-6, msg=name)
        parameters = dict(model.named_parameters())
        mine = torch.autograd.grad(losses[name][0], parameters.values(), retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
        for parameter, first, second in zip(parameters, mine, theirs, strict=True):
            first = torch.zeros(1) if first is None else first
            second = torch.zeros_like(first) if second is None else second
            assert (first - second).norm() <= 1e-4 * second.norm() + 1e-6, (name, parameter)


def test_the_base_of_mr_rcnn_is_the_baseline():
    """Joint training leaves the base's own losses what they are without the module."""
    model, target = shaken().train(), tiny_target(7)
    base = build_model(model.config, CLASSES, None, model.sara, TEST).train()
    base.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("refine.")})
    expected, found = base([tiny_image(0)], [target], 3), model([tiny_image(0)], [target], 3)
    for name in set(expected) - {"loss_mask"}:
        assert torch.equal(expected[name][0], found[name][0]) and expected[name][1] == found[name][1]
