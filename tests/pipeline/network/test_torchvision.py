"""The baseline is torchvision's Mask R-CNN: same names, losses, gradients and detections."""

import pytest
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from configs.schema import Model, Sara, Test
from pipeline.model import build_model
from pipeline.network.sampling import balanced_sample, sample_generator
from pipeline.network.weights import fill
from tests.pipeline.tiny import tiny_image, tiny_target

SEED = 5
CLASSES = 11

CONFIG = Model(min_size=128, max_size=192, box_beta=1 / 9, rois_per_image=64, rpn_batch_per_image=64)


class SameIndices:
    """Stands in for torchvision's sampler: draws what ours draws for the given positions."""

    def __init__(self, sampler, positions, stage):
        self.sampler, self.positions, self.stage = sampler, positions, stage

    def __call__(self, labels):
        drawn = [self._masks(row, position) for row, position in zip(labels, self.positions, strict=True)]
        return [d[0] for d in drawn], [d[1] for d in drawn]

    def _masks(self, labels, position):
        size, fraction = self.sampler.batch_size_per_image, self.sampler.positive_fraction
        rows = balanced_sample(labels, size, fraction, sample_generator(SEED, position, self.stage))
        return [torch.zeros(len(labels), dtype=torch.uint8).index_fill_(0, r, 1) for r in rows]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = MaskRCNN(
        backbone,
        CLASSES,
        min_size=128,
        max_size=192,
        rpn_post_nms_top_n_train=1000,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
        box_score_thresh=0.0,
        box_detections_per_img=15,
    )
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    # Scores of random weights are nearly tied, and rounding would order them.
    model.roi_heads.box_predictor.cls_score.weight.data *= 50
    path = tmp_path_factory.mktemp("theirs") / "maskrcnn.pth"
    torch.save(model.state_dict(), path)
    return model, path


def ours(path, classes=CLASSES):
    model = build_model(CONFIG, classes, None, Sara(), Test(score=0.0, topk=15))
    fill(model, torch.load(path, weights_only=True), str(path))
    return model


def batch():
    images = [tiny_image(0, 96, 128), tiny_image(1, 100, 90)]
    return images, [tiny_target(3, 3, 96, 128), tiny_target(8, 2, 100, 90)]


def test_losses_and_gradients_equal_torchvision(theirs):
    model, path = theirs
    images, targets = batch()
    positions = [t["position"] for t in targets]
    for part, stage in ((model.rpn, "rpn"), (model.roi_heads, "roi")):
        part.fg_bg_sampler = SameIndices(part.fg_bg_sampler, positions, stage)
    expected = model.train()(images, targets)
    sum(expected.values()).backward()
    mine = ours(path).train()
    losses = {name: loss / count for name, (loss, count) in mine(images, targets, SEED).items()}
    sum(losses.values()).backward()
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=2e-5, atol=1e-6, msg=name)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in mine.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        if parameter.grad is not None:
            difference = (parameter.grad - gradients[name]).norm() / gradients[name].norm().clamp(min=1e-6)
            assert difference < 1e-3, (name, difference)


def test_detections_equal_torchvision(theirs):
    model, path = theirs
    images, _ = batch()
    with torch.no_grad():
        expected = model.eval()(images)
    for mine, other in zip(ours(path).eval()(images), expected, strict=True):
        assert len(mine["boxes"]) == 15
        assert mine["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-3, atol=1e-5)
        different = mine["masks"] != (other["masks"][:, 0] > 0.5)
        assert different.float().mean() < 1e-3
