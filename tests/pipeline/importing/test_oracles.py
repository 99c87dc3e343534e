"""An imported model computes what its own program computes, and by other rules it does not."""

from functools import partial

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.made_checkpoints import benchmark_checkpoint, detectron2_checkpoint, torchvision_checkpoint
from configs.profile import SourceProfile
from configs.schema import Test
from tests.oracles.benchmark_inference import Benchmark
from tests.oracles.cases import (
    CATEGORIES,
    CLASSES,
    POST,
    PRE,
    SMALL,
    built,
    converted,
    differences,
    imported,
    limited,
    picture,
)
from tests.oracles.detectron2_inference import Detectron2

IDS = torch.tensor([0, *(category["id"] for category in CATEGORIES)])
# A landscape whose long side is cut, and a portrait: 128 x 157.9, padded to an odd number of cells of 32 px.
IMAGES = [picture(1, 100, 170), picture(2, 111, 90)]
# Of the network's size: boxes are pooled from every level, and no limit on proposals is small.
LARGE, LARGE_LIMITS = picture(3, 480, 640), (480, 640, 1000, 1000)
# Added to the deltas of the three anchors: boxes seven times as large, as most are of the finest map's.
LARGER = torch.tensor([0.0, 0, 2, 2]).repeat(3)


def levels(boxes):
    """Return the levels, counted from P2, that boxes of the network's size are pooled from."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return set((4 + torch.log2(sides.prod(1).sqrt() / 224)).floor().clamp(2, 5).sub(2).tolist())


class Case:
    """A checkpoint of a program, our model of it, and what the program's oracle makes of the images."""

    def __init__(self, program, tensors, made, arch="R50", images=IMAGES):
        self.program, self.images, self.tensors, self.arch = program, images, tensors, arch
        self.model, self.found = made
        self.answers = self.ask(images, *SMALL)

    def ask(self, images, *limits, score=0.0, **tensors):
        make = Detectron2 if self.program == "detectron2" else Benchmark
        oracle = make({**self.tensors, **tensors}, self.arch, *limits)
        with torch.inference_mode():
            return [self.answer(oracle, image, score) for image in images]

    def answer(self, oracle, image, score):
        maps, _ = oracle.features(image)
        expected = oracle.detect(image, score=score)
        if self.program == "detectron2":
            expected["labels"] = expected["labels"] + 1
        else:
            # As COCO results: width and height count the last pixel.
            expected["boxes"] = torch.cat(
                [expected["boxes"][:, :2], expected["boxes"][:, :2] + expected["boxes"][:, 2:]], 1
            )
        return maps, {**expected, "labels": IDS[expected["labels"]]}

    def differences(self, model=None, answers=None):
        model = model or self.model
        for image, (maps, found) in zip(self.images, answers or self.answers, strict=True):
            yield from differences(model, image, maps, found)

    def changed(self, **changes):
        """Return the model with other rules and the same weights."""
        own = {key: changes.pop(key) for key in list(changes) if key in SourceProfile.model_fields}
        profile = self.found.model.profile.model_copy(update=own)
        config = self.found.model.model_copy(update={**changes, "profile": profile})
        return built(self.found, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("imported")


@pytest.fixture(scope="module")
def detectron2(folder):
    tensors = detectron2_checkpoint(seed=4, classes=CLASSES)
    return Case("detectron2", tensors, imported(tensors, folder, "detectron2"))


@pytest.fixture(scope="module")
def benchmark(folder):
    tensors = benchmark_checkpoint(seed=3, classes=CLASSES + 1)
    return Case("maskrcnn_benchmark", tensors, imported(tensors, folder, "benchmark"))


@pytest.mark.parametrize("program", ["detectron2", "benchmark"])
def test_a_resnet_50_gives_its_programs_outputs(program, request):
    case = request.getfixturevalue(program)
    assert list(case.differences()) == []
    labels = torch.cat([found["labels"] for _, found in case.answers])
    sizes = torch.cat([(found["boxes"][:, 2:] - found["boxes"][:, :2]).amin(1) for _, found in case.answers])
    masks = torch.cat([found["masks"].flatten(1).sum(1) for _, found in case.answers])
    # The case can tell: several classes, boxes of many sizes, masks that are neither empty nor full.
    assert len(labels.unique()) >= 4 and sizes.max() > 4 * sizes.min() and (masks > 50).float().mean() > 0.2


def middle(found):
    """Return a score threshold amid the widest gap of the scores' middle half: rounding cannot cross it."""
    scores = torch.cat([one["scores"] for one in found]).sort().values
    scores = scores[len(scores) // 4 : -(len(scores) // 4)]
    widest = scores.diff().argmax()
    return float((scores[widest] + scores[widest + 1]) / 2)


@pytest.mark.parametrize("program", ["detectron2", "benchmark"])
def test_a_score_threshold_leaves_the_programs_detections(program, request, monkeypatch):
    case = request.getfixturevalue(program)
    score = middle([found for _, found in case.answers])
    answers = case.ask(case.images, *SMALL, score=score)
    left, before = (sum(len(found["scores"]) for _, found in some) for some in (answers, case.answers))
    assert before / 4 <= left <= before * 3 / 4
    monkeypatch.setattr(case.model, "test", case.model.test.model_copy(update={"score": score}))
    assert list(case.differences(answers=answers)) == []


@pytest.mark.parametrize("program", ["detectron2", "benchmark"])
def test_a_large_picture_with_a_thousand_proposals_does_too(program, request):
    case = request.getfixturevalue(program)
    bias = case.found.taken["rpn.head.bbox_pred.bias"][0]
    maps, found = case.ask([LARGE], *LARGE_LIMITS, **{bias: case.tensors[bias] + LARGER})[0]
    model = case.changed(**limited(case.found.model, LARGE_LIMITS).model_dump(exclude={"profile"}))
    model.rpn.head.bbox_pred.bias.data += LARGER
    assert differences(model, LARGE, maps, found) == []
    assert levels(found["boxes"]) >= {2, 3}, "the small pictures show the finer ones"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arch", "dcn", "trunk"),
    [
        ("detectron2", "X101", False, "resnext101_32x8d"),
        ("maskrcnn_benchmark", "X101", False, "resnext101_32x8d"),
        ("maskrcnn_benchmark", "R101", False, "resnet101"),
        ("detectron2", "R101", True, "resnet101_dcn"),
        ("maskrcnn_benchmark", "R50", True, "resnet50_dcn"),
    ],
)
def test_the_larger_trunks_give_their_programs_outputs(program, arch, dcn, trunk):
    make, extra = (detectron2_checkpoint, 0) if program == "detectron2" else (benchmark_checkpoint, 1)
    tensors = make(5, arch, dcn, CLASSES + extra, 16)
    case = Case(program, tensors, converted(tensors), arch, IMAGES[:1])
    assert case.found.model.backbone == trunk and list(case.differences()) == []


WIDTH = 32


def torchvisions(tensors, short, long, pre, post):
    """Return torchvision's own model, narrow, with the tensors of a file."""
    with torch.device("meta"):
        trunk = resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=0.0))
    stages = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    model = MaskRCNN(
        BackboneWithFPN(trunk, stages, [256, 512, 1024, 2048], WIDTH),
        min_size=short, max_size=long, rpn_pre_nms_top_n_test=pre, rpn_post_nms_top_n_test=post,
        box_score_thresh=0.0,
        box_head=TwoMLPHead(WIDTH * 49, 2 * WIDTH),
        box_predictor=FastRCNNPredictor(2 * WIDTH, CLASSES + 1),
        mask_head=MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, CLASSES + 1),
    )  # fmt: skip
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@pytest.mark.parametrize(("images", "limits"), [(IMAGES, SMALL), ([LARGE], LARGE_LIMITS)])
def test_torchvisions_model_gives_its_own_outputs(images, limits, folder):
    tensors = torchvision_checkpoint(seed=3, classes=CLASSES + 1, width=WIDTH)
    if limits is LARGE_LIMITS:
        tensors["rpn.head.bbox_pred.bias"] += LARGER
    model, (ours, _) = torchvisions(dict(tensors), *limits), imported(tensors, folder, "torchvision", limits)
    answers = [torchvisions_answer(model, image) for image in images]
    for image, answer in zip(images, answers, strict=True):
        assert differences(ours, image, *answer) == []
    assert limits is SMALL or levels(answers[-1][1]["boxes"]) >= {2, 3}
    score = middle([found for _, found in answers])
    model.roi_heads.score_thresh, ours.test = score, ours.test.model_copy(update={"score": score})
    for image, (_, found) in zip(images, answers, strict=True):
        maps, fewer = torchvisions_answer(model, image)
        assert 0 < len(fewer["scores"]) < len(found["scores"])
        assert differences(ours, image, maps, fewer) == []


def torchvisions_answer(model, image):
    """Return P2 to P6 of torchvision's model, and its detections as the oracles give them."""
    with torch.inference_mode():
        batch, _ = model.transform([image.float() / 255])
        found = model([image.float() / 255])[0]
        maps = list(model.backbone(batch.tensors).values())
    soft = found["masks"][:, 0]
    return maps, {**found, "labels": IDS[found["labels"]], "masks": soft > 0.5, "soft": soft}


OWN = SourceProfile()
# What these pictures do not show (the last stride, ties, eps of levels, thin boxes, what proposals are
# ranked by, how groups are suppressed) is in network/test_profile.py.
BROKEN = [
    *(("detectron2", {key: getattr(OWN, key)}) for key in ("aligned", "sampling_ratio", "paste", "anchors")),
    *(("detectron2", {key: getattr(OWN, key)}) for key in ("pixel_mean", "resize", "size_rounding")),
    ("detectron2", {"pixel_std": (2.0, 1.0, 1.0)}),
    ("detectron2", {"pixel_range": 1}),
    ("detectron2", {"stride_in_1x1": False}),
    ("detectron2", {"norm_eps": 0.0}),
    ("detectron2", {"box_coder": (9.0, 10.0, 5.0, 5.0)}),
    ("detectron2", {"delta_clip": 0.1}),
    ("detectron2", {"rpn_pre_nms_test": PRE // 4}),
    ("detectron2", {"rpn_post_nms_test": POST - 20}),
    *(("benchmark", {key: getattr(OWN, key)}) for key in ("anchors", "legacy_boxes", "resize", "pixel_mean")),
    ("benchmark", {"size_rounding": "half_up"}),
    ("benchmark", {"aligned": True}),
    ("benchmark", {"sampling_ratio": 0}),
    ("benchmark", {"stride_in_1x1": False}),
    ("benchmark", {"norm_eps": 1e-5}),
    ("benchmark", {"paste": "exact"}),
]


@pytest.mark.parametrize(("program", "change"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_model_by_another_of_these_rules_is_told_apart(program, change, request):
    case = request.getfixturevalue(program)
    assert any(case.differences(case.changed(**change)))


def test_the_norms_are_folded_and_nothing_else_is(detectron2):
    """What `load_model` returns differs from the unfolded model by rounding alone."""
    unfolded = detectron2.changed()
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in detectron2.model.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in unfolded.modules())
    assert list(detectron2.differences(unfolded)) == []


def test_the_own_paste_is_the_default_and_can_be_overruled(detectron2, benchmark):
    assert (detectron2.model.test.paste, benchmark.model.test.paste) == ("exact", "legacy")
    assert Test().paste == "legacy"
