"""The refining module: what holds exactly at its start, and what each of its rules means."""

import pytest
import torch

from configs.schema import Model, Refine, Sara, Test
from pipeline.model import build_model
from pipeline.network.mrrcnn import Guide, foreground_labels, fuse, recrop
from pipeline.network.pool import RoIPool
from pipeline.network.targets import Assigned, to_rois
from tests.pipeline.tiny import CLASSES, TEST, tiny_base, tiny_image, tiny_refined, tiny_target, total

SIZES = [(96, 96)]


def features_of(model, image=0):
    batch, _ = model.transform([tiny_image(image)])
    return model.backbone(batch.tensors)


def guide_of(model, features, count=12):
    """Return a guide on `count` boxes and the boxes."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(count, 2, generator=generator) * 50
    rois = to_rois([torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 30], 1)])
    labels = torch.arange(count) % (CLASSES - 1) + 1
    hidden, logits = model.base_masks(features, rois, labels[:, None])
    return Guide(Assigned(rois, labels, labels, labels < 0), hidden, logits[:, 0].sigmoid()), rois


def test_step_0_without_box_refinement_is_mask_rcnn_bit_for_bit():
    """M1: with conv_res zero, the refining mask head is the base's, on the base's boxes."""
    base = tiny_base().eval()
    refined = tiny_refined(test=TEST.model_copy(update={"cls": False, "reg": False})).eval()
    images = [tiny_image(0), tiny_image(1, 70, 96)]
    for first, second in zip(base(images), refined(images), strict=True):
        assert len(first["boxes"]) == 20
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("test", [{}, {"cls": False}, {"reg": False}])
def test_step_0_with_refinement_is_another_model(test):
    """The switches of the other rows act: M1 does not pass because nothing is refined."""
    base, refined = tiny_base().eval(), tiny_refined(test=TEST.model_copy(update=test)).eval()
    first, second = base([tiny_image(0)])[0], refined([tiny_image(0)])[0]
    assert not torch.equal(first["boxes"], second["boxes"])


def test_step_0_with_masks_of_ones_is_the_base_box_head_on_the_base_boxes():
    """M2."""
    model = tiny_refined().eval()
    features = features_of(model)
    guide, rois = guide_of(model, features)
    ones = Guide(guide.assigned, guide.hidden, torch.ones_like(guide.masks))
    expected_logits, expected_deltas = model.roi_heads.boxes(model.box_pool(features, rois))
    logits, deltas = model.refine_boxes(features, ones)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, expected_deltas, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model.refine_boxes(features, guide)[0], expected_logits, atol=1e-3)


def test_fusion_of_equal_logits_does_not_depend_on_alpha_and_alpha_leads_from_base_to_refined():
    """M3."""
    base, refined = torch.randn(9, CLASSES), torch.randn(9, CLASSES)
    for alpha in (0.0, 0.3, 1.0, 10.0):
        torch.testing.assert_close(fuse(base, base, Test(alpha=alpha)), base)
    assert torch.equal(fuse(base, refined, Test(alpha=0.0)), base)
    torch.testing.assert_close(fuse(base, refined, Test(alpha=1e6)), refined, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fuse(base, refined, Test()), (base + refined) / 2)
    assert torch.equal(fuse(base, refined, Test(cls=False)), base)
    assert torch.equal(fuse(base, refined, Test(cls_scores="refined")), refined)


def test_alpha_0_gives_the_detections_of_reg_only():
    """The paper's Table 5 at alpha=0 and Table 4's REG row are one computation."""
    model, images = tiny_refined().eval(), [tiny_image(0)]
    model.test = TEST.model_copy(update={"alpha": 0.0})
    first = model(images)[0]
    model.test = TEST.model_copy(update={"cls": False})
    second = model(images)[0]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_fused_probabilities_do_not_see_a_constant_added_to_a_row():
    """M4."""
    base, refined, shift = torch.randn(9, CLASSES), torch.randn(9, CLASSES), torch.randn(9, 1) * 5
    expected = fuse(base, refined, Test()).softmax(1)
    torch.testing.assert_close(fuse(base + shift, refined, Test()).softmax(1), expected)
    torch.testing.assert_close(fuse(base, refined + shift, Test()).softmax(1), expected)


def trained(model, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        losses = model.train()([tiny_image(0)], [tiny_target(step)], 0)
        total(losses).backward()
        optimizer.step()
    return losses


def test_a_frozen_base_stays_bit_identical_and_the_module_learns():
    """M5."""
    model, base = tiny_refined(Refine(freeze_base=True)), tiny_base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = trained(model)
    assert set(losses) == {"refine_classifier", "refine_box_reg", "refine_mask"}
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == {n for n in before if n.startswith("refine.")}
    features, other = features_of(model.eval()), features_of(base.eval())
    assert all(torch.equal(features[k], other[k]) for k in features)


def test_joint_training_changes_every_parameter():
    model = tiny_refined()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = trained(model)
    assert len(losses) == 8
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


def test_the_module_starts_as_a_copy_of_the_base_heads_in_its_own_storage():
    """M6."""
    model = tiny_refined()
    base, refine = model.roi_heads.state_dict(), model.refine.state_dict()
    assert set(refine) - set(base) == {"conv_res.weight", "conv_res.bias"} and set(base) <= set(refine)
    for name, tensor in base.items():
        assert torch.equal(tensor, refine[name]) and tensor.data_ptr() != refine[name].data_ptr()
    assert not refine["conv_res.weight"].any() and not refine["conv_res.bias"].any()


def test_pseudo_labels_are_foreground_and_do_not_see_the_background_logit():
    """M7."""
    logits = torch.randn(200, CLASSES)
    labels = foreground_labels(logits)
    assert labels.min() >= 1 and labels.max() < CLASSES
    logits[:, 0] += 100
    assert torch.equal(foreground_labels(logits), labels)
    assert foreground_labels(torch.zeros(3, CLASSES)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("label", ["gt", "pred"])
def test_base_labels_are_the_ground_truth_where_there_is_one(label):
    """M7: and with train_mask_label=pred the prediction everywhere, as at test."""
    model = tiny_refined(Refine(train_mask_label=label)).train()
    batch, targets = model.transform([tiny_image(0)], [tiny_target(7)])
    stage = model.first_stage(batch, targets, 0)
    used, positive = model._base_labels(stage), stage.sampled.labels > 0
    assert positive.any() and (used >= 1).all()
    predicted = foreground_labels(stage.logits)
    assert torch.equal(used[~positive], predicted[~positive])
    expected = stage.sampled.labels if label == "gt" else predicted
    assert torch.equal(used[positive], expected[positive])
    assert not torch.equal(stage.sampled.labels[positive], predicted[positive])


@pytest.mark.parametrize("detach", [False, True])
def test_the_refined_class_loss_reaches_the_base_mask_head_unless_detached(detach):
    """M8."""
    model = tiny_refined(Refine(detach_mask=detach)).train()
    losses = model([tiny_image(0)], [tiny_target(7)], 0)
    head = model.roi_heads.mask_predictor.conv5_mask.weight
    gradient = torch.autograd.grad(
        losses["refine_classifier"][0], head, allow_unused=True, retain_graph=True
    )[0]
    assert (gradient is None or not gradient.any()) if detach else gradient.any()
    losses["refine_mask"][0].backward()
    assert model.refine.conv_res.weight.grad.any(), "a zero conv_res must still learn"


def test_the_order_of_rois_is_only_an_order():
    """M9."""
    model = tiny_refined().eval()
    features = features_of(model)
    guide, rois = guide_of(model, features)
    order = torch.randperm(len(rois), generator=torch.Generator().manual_seed(3))
    shuffled = Guide(guide.assigned.take(order), guide.hidden[order], guide.masks[order])
    for first, second in zip(
        model.refine_boxes(features, guide), model.refine_boxes(features, shuffled), strict=True
    ):
        torch.testing.assert_close(first[order], second, rtol=1e-4, atol=1e-5)
    found, masks = model.find(features, rois, SIZES)
    other, other_masks = model.find(features, rois[order], SIZES)
    assert torch.equal(found.rows, order[other.rows])
    torch.testing.assert_close(masks, other_masks, rtol=1e-3, atol=1e-4)


def test_masks_tell_apart_objects_that_share_a_box():
    """M12, the paper's motive: one box, two objects; a linear probe on pooled features."""
    generator = torch.Generator().manual_seed(0)
    left = torch.zeros(28, 28)
    left[:, :14] = 1
    masks, rois = torch.stack([left, 1 - left]), torch.tensor([[0, 32.0, 32.0, 144.0, 144.0]]).repeat(2, 1)
    rows, plain, labels = [], [], []
    for _ in range(40):
        maps = {str(i): torch.rand(1, 4, 64 >> i, 64 >> i, generator=generator) for i in range(4)}
        swapped = int(torch.rand(1, generator=generator) < 0.5)
        # Each class has its own channel, and the objects change sides at random.
        maps["1"][0, swapped, :, : 32 // 2 - 5] += 1
        maps["1"][0, 1 - swapped, :, 32 // 2 - 5 :] += 1
        plain.append(RoIPool(7)(maps, rois).flatten(1))
        rows.append(RoIPool(7)(maps, rois, masks=masks).flatten(1))
        labels += [swapped, 1 - swapped]
    target = torch.tensor(labels).float() * 2 - 1
    assert all(torch.equal(p[0], p[1]) for p in plain)
    assert not any(torch.allclose(r[0], r[1]) for r in rows)
    assert accuracy(torch.cat(rows), target) == 1.0
    # The two rows of a scene are one: at most one of them can be right.
    assert accuracy(torch.cat(plain), target) <= 0.5


def accuracy(features, target):
    """Return what a ridge probe, trained on half of the scenes, gets right on the others."""
    half = len(features) // 2
    seen = torch.cat([features, torch.ones(len(features), 1)], 1)
    train = seen[:half]
    weights = torch.linalg.solve(train.T @ train + torch.eye(train.shape[1]), train.T @ target[:half])
    return float(((seen[half:] @ weights).sign() == target[half:]).float().mean())


def test_the_module_adds_the_parameters_the_paper_adds():
    """R50 with 80 classes: box head 14,310,805, mask head 2,643,537, conv_res 65,792."""
    with torch.device("meta"):
        model = build_model(Model(), 81, Refine(), Sara(), Test())
    count = sum(p.numel() for p in model.refine.parameters())
    assert count == 14_310_805 + 2_643_537 + 65_792


def test_recrop_on_the_same_box_is_the_identity_and_on_a_quarter_the_quarter():
    hidden = torch.rand(2, 3, 14, 14)
    base = torch.tensor([[0, 10.0, 20.0, 38.0, 48.0], [0, 5.0, 5.0, 61.0, 33.0]])
    torch.testing.assert_close(recrop(hidden, base, base), hidden, rtol=1e-4, atol=1e-5)
    quarter = base.clone()
    quarter[:, 3:] = (base[:, 1:3] + base[:, 3:]) / 2
    small = recrop(hidden, base, quarter)
    # Cell 1 of the quarter has its centre at 0.75 of the box's first cell.
    expected = hidden[:, :, 0, 0] * 0.75**2 + hidden[:, :, 1, 1] * 0.25**2
    expected = expected + 0.75 * 0.25 * (hidden[:, :, 0, 1] + hidden[:, :, 1, 0])
    torch.testing.assert_close(small[:, :, 1, 1], expected, rtol=1e-4, atol=1e-5)


def test_a_doubled_coder_describes_the_same_boxes():
    """refine.coder: the copied regressor is rescaled, so step 0 decodes the same boxes."""
    images = [tiny_image(0)]
    first = tiny_refined().eval()(images)[0]
    second = tiny_refined(Refine(coder=(20.0, 20.0, 10.0, 10.0))).eval()(images)[0]
    torch.testing.assert_close(first["boxes"], second["boxes"], rtol=1e-4, atol=1e-3)
    assert torch.equal(first["labels"], second["labels"])


def test_the_mean_mask_gain_keeps_the_magnitude_of_the_copied_heads_input():
    model = tiny_refined(Refine(init_gain="mean_mask"))
    mean = model.train().mean_guidance([tiny_image(0)], [tiny_target(0)], 0)
    assert 0 < mean < 1
    torch.testing.assert_close(model.refine.box_head.fc6.weight * mean, model.roi_heads.box_head.fc6.weight)
    bare = build_model(model.config, CLASSES, Refine(init_gain="mean_mask"), Sara(), TEST)
    with pytest.raises(ValueError, match="pass one"):
        bare.load_baseline(tiny_base().state_dict())


def test_ground_truth_rows_stay_ground_truth_with_zero_delta():
    target = [tiny_target(7)]
    for gt, same in (("zero_delta", True), ("plain", False)):
        model = tiny_refined(Refine(gt=gt)).train()
        batch, targets = model.transform([tiny_image(0)], target)
        stage = model.first_stage(batch, targets, 0)
        guide, _ = model._guide(stage, targets, batch.image_sizes, 0)
        rows = stage.sampled.is_gt
        truth = {tuple(box) for box in targets[0]["boxes"].tolist()}
        assert rows.any()
        assert all(
            (tuple(r[1:]) in truth) == flag for r, flag in zip(stage.sampled.rois.tolist(), rows, strict=True)
        )
        assert torch.equal(guide.assigned.rois[rows], stage.sampled.rois[rows]) is same


def test_resampling_keeps_a_quarter_of_positives():
    model = tiny_refined(Refine(resample=True, iou=0.0), rois_per_image=24).train()
    batch, targets = model.transform([tiny_image(0)], [tiny_target(7)])
    guide, _ = model._guide(model.first_stage(batch, targets, 0), targets, batch.image_sizes, 0)
    assert (guide.assigned.labels > 0).sum() <= 6


def test_the_mask_cap_limits_every_image():
    model = tiny_refined(Refine(mask_pos_cap=2, iou=0.3)).train()
    images, targets = [tiny_image(0), tiny_image(1)], [tiny_target(7), tiny_target(8)]
    assert model(images, targets, 0)["refine_mask"][1] == 2 * 2 * 28 * 28


def test_boxes_without_area_are_left_out_of_the_refining_losses():
    model = tiny_refined().train()
    features = features_of(model)
    guide, rois = guide_of(model, features)
    flat = rois.clone()
    flat[:5, 3] = flat[:5, 1]
    assigned = Assigned(flat, guide.assigned.labels, guide.assigned.labels * 0, guide.assigned.is_gt)
    losses = model._refine_losses(
        features, Guide(assigned, guide.hidden, guide.masks), [tiny_target(7)], SIZES, 0
    )
    assert losses["refine_classifier"][1] == losses["refine_box_reg"][1] == len(rois) - 5
    assert torch.isfinite(total(losses))
    total(losses).backward()
    assert torch.isfinite(model.refine.box_predictor.bbox_pred.weight.grad).all()


BASE_TERMS = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
TRAINING_KEYS = [
    {"refine": {"use_sara": False}},
    {"refine": {"iou": 0.2}},
    {"refine": {"coder": (20.0, 20.0, 10.0, 10.0)}},
    {"refine": {"resample": True, "iou": 0.1}, "against": {"iou": 0.1}, "rois_per_image": 12},
    {"refine": {"gt": "zero_delta"}},
    {"refine": {"init_gain": "mean_mask"}},
    {"refine": {"fminus": "htc", "conv_res_init": "identity"}, "against": {"conv_res_init": "identity"}},
    {"refine": {"fminus": "relative", "conv_res_init": "identity"}, "against": {"conv_res_init": "identity"}},
    {"refine": {"conv_res_init": "kaiming"}},
    {"refine": {"conv_res_init": "kaiming", "conv_res_act": "relu"}, "against": {"conv_res_init": "kaiming"}},
    {"refine": {"conv_res_init": "identity"}},
    {"refine": {"base_mask_on": "R"}},
    {"refine": {"mask_pos_cap": 1}},
    {"refine": {"loss_w": {"cls": 2.0, "box": 1.0, "mask": 1.0}}},
    {"refine": {"loss_w": {"cls": 1.0, "box": 0.0, "mask": 1.0}}},
    {"refine": {"loss_w": {"cls": 1.0, "box": 1.0, "mask": 0.5}}},
    {"refine": {"train_mask_label": "pred"}},
    {"sara": {"aligned": True}},
    {"sara": {"sampling_ratio": 1}},
    {"sara": {"delta": 0.0}},
    {"sara": {"guidance": "residual"}},
]


@pytest.mark.parametrize("keys", TRAINING_KEYS, ids=str)
def test_every_training_key_changes_the_losses_and_nothing_of_the_base(keys):
    def losses(refine, sara):
        extra = {k: v for k, v in keys.items() if k == "rois_per_image"}
        model = tiny_refined(Refine(**refine), Sara(**sara), **extra).train()
        found = model([tiny_image(0)], [tiny_target(7)], 0)
        total(found).backward()
        assert all(p.grad is not None for p in model.parameters())
        return {name: (loss.item(), count.item()) for name, (loss, count) in found.items()}

    expected, changed = (
        losses(keys.get("against", {}), {}),
        losses(keys.get("refine", {}), keys.get("sara", {})),
    )
    assert all(expected[name] == changed[name] for name in BASE_TERMS)
    assert expected != changed


@pytest.mark.parametrize("fminus", ["literal", "htc", "relative"])
def test_every_way_of_f_minus_detects(fminus):
    model = tiny_refined(Refine(fminus=fminus, conv_res_init="identity")).eval()
    other = tiny_refined().eval()
    first, second = model([tiny_image(0)])[0], other([tiny_image(0)])[0]
    assert torch.equal(first["boxes"], second["boxes"]) and not torch.equal(first["masks"], second["masks"])


def test_refining_after_nms_refines_the_detections_with_their_own_class(monkeypatch):
    model = shuffled_classes(tiny_refined(test=TEST.model_copy(update={"order": "refine_after_nms"}))).eval()
    features = features_of(model)
    _, rois = guide_of(model, features)
    seen, inner = [], model._guide_at_test
    monkeypatch.setattr(model, "_guide_at_test", lambda *args: seen.append(args) or inner(*args))
    model.find(features, rois, SIZES)
    found = model.base_detections(features, rois, SIZES)
    assert len(set(found.labels.tolist())) > 1
    assert torch.equal(seen[0][1], rois[found.rows]) and torch.equal(seen[0][3], found.labels)
    # B is then the detection itself.
    base = inner(*seen[0]).assigned.rois
    torch.testing.assert_close(base, found.rois, rtol=1e-5, atol=1e-4)


def shuffled_classes(model):
    """Return the model with base scores spread over the classes."""
    model.roi_heads.box_predictor.cls_score.weight.data *= 20
    return model


TEST_KEYS = [
    {"alpha": 3.0},
    {"cls": False},
    {"reg": False},
    {"order": "refine_after_nms"},
    {"score": 0.5},
    {"nms": 0.1},
    {"topk": 3},
    {"paste": "exact"},
    {"cls_scores": "refined"},
]


@pytest.mark.parametrize("keys", TEST_KEYS, ids=str)
def test_every_test_key_changes_the_detections_of_one_trained_model(keys):
    model = tiny_refined().eval()
    expected = model([tiny_image(0)])[0]
    model.test = TEST.model_copy(update=keys)
    changed = model([tiny_image(0)])[0]
    assert any(
        expected[k].shape != changed[k].shape or not torch.equal(expected[k], changed[k]) for k in expected
    )
