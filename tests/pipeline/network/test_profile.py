"""The rules of a profile one by one, where a whole model would hide them."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms

from benchmarks.made_checkpoints import BENCHMARK_CELLS
from configs.profile import SourceProfile
from configs.schema import Model, Test
from pipeline.importing.detectron2_source import PROFILE as DETECTRON2
from pipeline.importing.maskrcnn_benchmark_source import PROFILE as BENCHMARK
from pipeline.importing.torchvision_source import PROFILE as TORCHVISION
from pipeline.network.anchors import Anchors, cell_anchors
from pipeline.network.boxes import at_least_a_pixel, clip_boxes, image_limits, last_pixels, rescale_boxes
from pipeline.network.detections import Detections, select_detections
from pipeline.network.nms import sides_at_least, suppress
from pipeline.network.pool import pyramid_levels
from pipeline.network.rpn import RPN, build_rpn
from pipeline.network.transform import network_size
from tests.pipeline.tiny import MODEL, tiny_base, tiny_image, tiny_target

OWN = SourceProfile()
SIZES = (32, 64, 128, 256, 512)
sides = st.integers(1, 4000)


@given(sides, sides)
def test_the_own_size_is_torchvisions(height, width):
    scale = min(800 / min(height, width), 1333 / max(height, width))
    expected = [math.floor(float(side) * scale) for side in (height, width)]
    assert network_size((height, width), 800, 1333, "floor") == tuple(max(1, side) for side in expected)


@given(sides, sides)
def test_other_roundings_differ_by_a_pixel_and_never_exceed_the_limits(height, width):
    own = network_size((height, width), 800, 1333, "floor")
    for rounding in ("half_up", "legacy"):
        found = network_size((height, width), 800, 1333, rounding)
        assert min(found) <= 800 and max(found) <= 1333 + (rounding == "legacy") * max(own) / min(own)
        if rounding == "half_up":
            assert all(0 <= other - mine <= 1 for mine, other in zip(own, found, strict=True))


def test_the_sizes_that_the_programs_give_a_common_photograph():
    assert network_size((480, 640), 800, 1333, "floor") == (800, 1066)
    assert network_size((480, 640), 800, 1333, "half_up") == (800, 1067)
    assert network_size((480, 640), 800, 1333, "legacy") == (800, 1066)
    # The long side is cut: the short one is rounded, and the long one follows from it.
    assert network_size((427, 1000), 800, 1333, "legacy") == (569, 1332)


def test_anchors_of_each_program():
    rounded = cell_anchors(SIZES, OWN)
    exact = cell_anchors(SIZES, DETECTRON2)
    legacy = cell_anchors(SIZES, BENCHMARK)
    for level in range(5):
        assert torch.equal(exact[level].round(), rounded[level]) and not torch.equal(
            exact[level], rounded[level]
        )
        area = (exact[level][:, 2] - exact[level][:, 0]) * (exact[level][:, 3] - exact[level][:, 1])
        torch.testing.assert_close(area, torch.full((3,), float(SIZES[level] ** 2)))
        inclusive = torch.tensor(BENCHMARK_CELLS[level], dtype=torch.float32)
        assert torch.equal(last_pixels(legacy[level], True), inclusive)


def test_the_last_stride_is_64_only_where_it_is_fixed():
    """A padded side of 800 has 13 cells on P6: torchvision makes their stride 61."""
    maps = [torch.zeros(1, 1, math.ceil(800 / stride), 1) for stride in (4, 8, 16, 32, 64)]
    images = type("Images", (), {"tensors": torch.zeros(1, 3, 800, 64), "image_sizes": [(800, 64)]})
    for profile, stride in ((OWN, 61), (DETECTRON2, 64), (BENCHMARK, 64)):
        (anchors,) = Anchors(SIZES, profile)(images, maps)
        last = anchors[-3 * 13 :].view(13, 3, 4)
        step = last[1:, :, 1] - last[:-1, :, 1]
        torch.testing.assert_close(step, torch.full((12, 3), float(stride)), rtol=0, atol=1e-3)


boxes = st.lists(
    st.tuples(*[st.floats(-50, 250, width=32)] * 2, *[st.floats(0.125, 200, width=32)] * 2),
    min_size=1,
    max_size=9,
).map(lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows]))


@given(boxes)
def test_legacy_boxes_are_clipped_resized_and_pooled_as_inclusive_ones(found):
    """Every rule against the same one said in inclusive coordinates."""
    inclusive = found - torch.tensor([0.0, 0, 1, 1])
    size, new = (120, 200), (77, 260)
    limits = image_limits(size, found)
    expected = inclusive.clamp(min=0).minimum(limits - 1)
    clipped = clip_boxes(found, limits, True)
    torch.testing.assert_close(last_pixels(clipped, True), expected)
    assert (clipped[:, 2:] - clipped[:, :2] > 0.1).all()
    scale = torch.tensor([260 / 200, 77 / 120] * 2)
    rescaled = rescale_boxes(clipped, size, new, True)
    torch.testing.assert_close(last_pixels(rescaled, True), expected * scale, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(last_pixels(torch.cat([found[:, :1], found], 1), True)[:, 1:], inclusive)


@given(boxes)
def test_own_boxes_are_clipped_as_torchvision_does(found):
    clipped = clip_boxes(found, image_limits((120, 200), found), False)
    assert torch.equal(clipped[:, 0::2], found[:, 0::2].clamp(0, 200))
    assert torch.equal(clipped[:, 1::2], found[:, 1::2].clamp(0, 120))
    assert last_pixels(found, False) is found and at_least_a_pixel(found, False) is found


def test_ground_truth_is_a_pixel_wide_where_ends_are_inclusive():
    thin = torch.tensor([[3.0, 4.0, 3.25, 9.0]])
    assert torch.equal(at_least_a_pixel(thin, True), torch.tensor([[3.0, 4.0, 4.0, 9.0]]))


def test_levels_change_at_the_same_sizes_but_for_their_eps():
    side = torch.tensor([1.0, 111.0, 112.0, 223.0, 224.0, 448.0, 5000.0, 224 * (1 - 3e-7), 224 * (1 - 2e-6)])
    square = torch.stack([torch.zeros(9), torch.zeros(9), side, side], 1)
    assert pyramid_levels(square, OWN) is None
    by_program = {
        "detectron2": pyramid_levels(square, DETECTRON2).tolist(),
        "benchmark": pyramid_levels(square, BENCHMARK).tolist(),
    }
    assert by_program["detectron2"] == [0, 0, 1, 1, 2, 3, 3, 1, 1]
    # An eps of 1e-6 inside of the logarithm lifts what lacks less than that of the next level.
    assert by_program["benchmark"] == [0, 0, 1, 1, 2, 3, 3, 2, 1]
    assert pyramid_levels(torch.full((1, 4), float("nan")), DETECTRON2).tolist() == [0]


def slow_suppress(found, scores, groups, iou):
    kept, order = [], sorted(range(len(found)), key=lambda row: -scores[row])
    for row in order:
        if all(groups[row] != groups[other] or overlap(found[row], found[other]) <= iou for other in kept):
            kept.append(row)
    return kept


def overlap(one, other):
    shared = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    common = max(shared[0], 0) * max(shared[1], 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return common / (sum(areas) - common)


@given(boxes, st.integers(0, 99))
def test_separate_suppression_is_the_rule_itself(found, seed):
    chance = random.Random(seed)
    groups = torch.tensor([chance.randrange(3) for _ in found])
    scores = torch.tensor(chance.sample(range(100), len(found))) / 100
    kept = suppress(found, scores, groups, 0.5, "separate").tolist()
    assert kept == slow_suppress(found.tolist(), scores.tolist(), groups.tolist(), 0.5)
    assert torch.equal(suppress(found, scores, groups, 0.5, "joint"), batched_nms(found, scores, groups, 0.5))


def test_thin_boxes():
    found = torch.tensor([[0, 0, 5, 5], [0, 0, 5, 0], [0, 0, 5, 5e-4], [0, 0, float("nan"), 5]])
    assert sides_at_least(found, 1e-3).tolist() == [True, False, False, False]
    assert sides_at_least(found, 0.0).tolist() == [True, False, True, False]
    assert sides_at_least(found, None).tolist() == [True, True, True, False]


def test_ties_with_the_last_detection_stay_where_the_program_keeps_them():
    apart = torch.arange(4.0)[:, None, None] * 50 + torch.tensor([0.0, 0, 10, 10])
    probabilities = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.5, 0.5], [0.8, 0.2]])
    test = Test(score=0.0, topk=2)
    arguments = probabilities, apart.expand(4, 2, 4), torch.zeros(4), test
    assert select_detections(*arguments).rows.tolist() == [0, 1]
    assert select_detections(*arguments, BENCHMARK).rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("straddle_px", "trained_on"), [(None, 4), (0.0, 2), (1.0, 4)])
def test_anchors_outside_of_the_image_are_not_trained_on_where_they_straddle(straddle_px, trained_on):
    profile = OWN.model_copy(update={"straddle_px": straddle_px})
    rpn = build_rpn(MODEL.model_copy(update={"profile": profile}))
    anchors = torch.tensor([[-1.0, 0, 10, 10], [0, 0, 96, 96], [0, 0, 97, 96], [5, 5, 20, 20]])
    targets = [{"boxes": torch.tensor([[5.0, 5, 20, 20]]), "labels": torch.tensor([1]), "position": 0}]
    losses = rpn._losses([anchors], torch.zeros(4), torch.zeros(4, 4), [(96, 96)], targets, 0)
    assert [count.item() for _, count in losses.values()] == [trained_on, trained_on]


@pytest.mark.parametrize(("profile", "loss"), [(TORCHVISION, 0.2), (DETECTRON2, 0.2), (BENCHMARK, 0.045)])
def test_the_rpns_box_loss_turns_linear_where_the_program_of_the_weights_had_it(profile, loss):
    """Four deltas off by 0.05: L1 gives 0.2, smooth L1 of beta 1/9 half the square times 9."""
    rpn = build_rpn(MODEL.model_copy(update={"profile": profile}))
    box = torch.tensor([[5.0, 5, 20, 20]])
    targets = [{"boxes": box, "labels": torch.tensor([1]), "position": 0}]
    losses = rpn._losses([box], torch.zeros(1), torch.full((1, 4), 0.05), [(96, 96)], targets, 0)
    assert losses["loss_rpn_box_reg"][0].item() == pytest.approx(loss, rel=1e-4)


def proposals_of(profile, boxes, logits, levels, size=(96, 96)):
    """Return the proposals [n, 4] and scores [n] of one image whose levels have so many anchors."""
    rpn = build_rpn(MODEL.model_copy(update={"profile": profile})).eval()
    found, scores = rpn.filter_proposals(
        torch.tensor(boxes)[None], torch.tensor(logits)[:, None], [size], levels
    )
    return found[0], scores[0]


# The first makes the others' group lie so far away that float32 has only multiples of 8 there: they are one.
FAR = [[0.0, 0, 1e8, 1e8], [0, 0, 10, 10], [1, 1, 9, 5]]


@pytest.mark.parametrize(("profile", "left"), [(DETECTRON2, 2), (BENCHMARK, 3)])
def test_proposals_are_suppressed_as_the_profile_says(profile, left):
    profile = profile.model_copy(update={"legacy_boxes": False})
    found, _ = proposals_of(profile, FAR, [3.0, 2.0, 1.0], [1, 2], (10**8, 10**8))
    assert len(found) == left


@pytest.mark.parametrize(("profile", "left"), [(DETECTRON2, 2), (BENCHMARK, 3)])
def test_detections_are_suppressed_as_the_profile_says(profile, left):
    probabilities = torch.tensor([[0.0, 1, 0], [0, 0, 0.9], [0, 0, 0.8]])
    # Of label 2, which takes them twice as far away.
    boxes = torch.tensor([[0.0, 0, 5e7, 5e7], *FAR[1:]])[:, None].expand(3, 3, 4)
    found = select_detections(probabilities, boxes, torch.zeros(3), Test(score=0.05), profile)
    assert len(found.rows) == left


@pytest.mark.parametrize(("profile", "left"), [(OWN, [0]), (DETECTRON2, [0, 1]), (BENCHMARK, [0, 1, 2])])
def test_thin_proposals_are_dropped_as_the_profile_says(profile, left):
    profile = profile.model_copy(update={"legacy_boxes": False})
    boxes = [[0.0, 0, 9, 9], [20, 0, 40, 5e-4], [50, 0, 70, 0]]
    found, _ = proposals_of(profile, boxes, [3.0, 2.0, 1.0], [3])
    assert torch.equal(found, torch.tensor(boxes)[left])


@pytest.mark.parametrize(("profile", "left"), [(OWN, [0]), (DETECTRON2, [0, 1])])
def test_thin_detections_are_dropped_as_the_profile_says(profile, left):
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 40, 5e-3]])[:, None].expand(2, 2, 4)
    probabilities = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    found = select_detections(probabilities, boxes, torch.zeros(2), Test(score=0.05), profile)
    assert found.rows.tolist() == left


@pytest.mark.parametrize(
    ("how", "before", "after"),
    [("logit", "logit", "logit"), ("sigmoid", "share", "share"), ("sigmoid_late", "logit", "share")],
)
def test_proposals_are_ranked_by_what_the_profile_says(how, before, after, monkeypatch):
    """Before suppression and in it: the probabilities of logits from 17 on are all 1."""
    logits = [20.0, 30.0, -1.0]
    values = {"logit": torch.tensor(logits), "share": torch.tensor(logits).sigmoid()}
    ranked, own = [], RPN._get_top_n_idx
    monkeypatch.setattr(RPN, "_get_top_n_idx", lambda self, *args: ranked.append(args[0]) or own(self, *args))
    boxes = [[0.0, 0, 9, 9], [20, 0, 40, 9], [50, 0, 70, 9]]
    _, scores = proposals_of(OWN.model_copy(update={"proposal_scores": how}), boxes, logits, [3])
    assert torch.equal(ranked[0][0], values[before])
    assert torch.equal(scores, values[after].sort(descending=True).values)


@pytest.mark.parametrize(("profile", "left"), [(OWN, 2), (DETECTRON2, 1)])
def test_empty_detections_are_dropped_at_last_where_the_program_does(profile, left):
    rois = torch.tensor([[0.0, 1, 1, 20, 20], [0, 30, 5, 30, 20]])
    rows = torch.arange(2)
    found = Detections(rois, rows + 1, torch.tensor([0.9, 0.8]), rows)
    result = tiny_base(profile=profile)._of_image(found, torch.rand(2, 28, 28), 0, (96, 96), (96, 96))
    assert [len(result[key]) for key in ("boxes", "labels", "scores", "masks")] == [left] * 4


@pytest.mark.parametrize(("profile", "level"), [(DETECTRON2, 1), (BENCHMARK, 2)])
def test_a_model_pools_from_the_level_that_its_profile_says(profile, level):
    maps = {str(i): torch.full((1, 1, 64 // 2**i, 64 // 2**i), float(i)) for i in range(4)}
    side = 224 * (1 - 3e-7)
    pooled = tiny_base(profile=profile).box_pool(maps, torch.tensor([[0.0, 0, 0, side, side]]))
    assert pooled.max().round() == level


def test_a_models_anchors_have_the_strides_of_its_profile():
    assert not tiny_base(profile=OWN).rpn.anchor_generator.fixed
    assert tiny_base(profile=DETECTRON2).rpn.anchor_generator.fixed


@pytest.mark.parametrize("profile", [DETECTRON2, BENCHMARK], ids=lambda profile: profile.name)
def test_models_of_other_profiles_train(profile):
    """Losses are finite, no parameter is left out, and they are not those of our own rules."""
    images, targets = [tiny_image(0), tiny_image(1)], [tiny_target(7), tiny_target(4, 0)]
    own = tiny_base().train()(images, targets, 3)
    model = tiny_base(profile=profile).train()
    losses = model(images, targets, 3)
    sum(loss / count.clamp(min=1) for loss, count in losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(losses[name][0] != own[name][0] for name in own)


def test_the_own_profile_transforms_as_torchvision():
    image = tiny_image(3, 90, 133)
    theirs = GeneralizedRCNNTransform(96, 140, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()
    config = Model(min_size=96, max_size=140)
    from pipeline.network.transform import build_transform

    assert torch.equal(build_transform(config)([image])[0].tensors, theirs([image])[0].tensors)
