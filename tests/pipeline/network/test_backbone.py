"""Trunks: strides, freezing, normalisation."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from configs.schema import Model
from pipeline.network.backbone import build_backbone
from pipeline.network.folding import fold_frozen_norms
from shards.errors import BadInput

EXPANDED = ["resnet50", "resnet101", "resnext101_32x8d"]


@pytest.mark.parametrize("name", ["resnet18", *EXPANDED])
@pytest.mark.parametrize("norm", ["frozen_bn", "group"])
def test_every_trunk_gives_five_maps_at_strides_4_to_64(name, norm):
    with torch.device("meta"):
        backbone = build_backbone(Model(backbone=name, norm=norm, fpn_channels=32))
        maps = backbone(torch.zeros(2, 3, 128, 192))
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        key: (2, 32, 128 // stride, 192 // stride)
        for key, stride in zip(("0", "1", "2", "3", "pool"), (4, 8, 16, 32, 64), strict=True)
    }


@pytest.mark.parametrize("name", EXPANDED)
def test_stride_in_1x1_moves_the_stride_and_keeps_every_name_and_map(name):
    with torch.device("meta"):
        plain = build_backbone(Model(backbone=name))
        moved = build_backbone(Model(backbone=name, stride_in_1x1=True))
        maps = moved(torch.zeros(1, 3, 96, 64))
    assert [m.shape[-1] for m in maps.values()] == [16, 8, 4, 2, 1]
    assert plain.state_dict().keys() == moved.state_dict().keys()
    for layer in (moved.body.layer2, moved.body.layer3, moved.body.layer4):
        assert layer[0].conv1.stride == (2, 2) and layer[0].conv2.stride == (1, 1)
    assert moved.body.layer1[0].conv1.stride == (1, 1)


def test_stride_in_1x1_is_refused_where_there_is_no_1x1():
    with pytest.raises(BadInput, match="resnet18 has no 1x1"):
        build_backbone(Model(backbone="resnet18", stride_in_1x1=True))


@pytest.mark.parametrize("layers", range(6))
def test_trainable_layers_counts_from_the_last_block_and_spares_the_pyramid(layers):
    backbone = build_backbone(Model(backbone="resnet18", norm="group", trainable_layers=layers))
    blocks = {n.split(".")[0] for n, p in backbone.body.named_parameters() if p.requires_grad}
    expected = {"layer4", "layer3", "layer2", "layer1", "conv1", "bn1"}
    order = ["layer4", "layer3", "layer2", "layer1", "conv1"]
    assert blocks == (expected if layers == 5 else set(order[:layers]))
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_norms_are_what_the_config_says():
    frozen = build_backbone(Model(backbone="resnet18", norm_eps=0.0))
    norms = [m for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 20 and all(m.eps == 0.0 for m in norms)
    group = build_backbone(Model(backbone="resnet18", norm="group"))
    assert {m.num_groups for m in group.modules() if isinstance(m, nn.GroupNorm)} == {16}


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_a_deformable_trunk_starts_as_the_ordinary_one_and_learns_to_look_elsewhere(stride_in_1x1):
    torch.manual_seed(0)
    config = Model(backbone="resnet50", norm="group", stride_in_1x1=stride_in_1x1, trainable_layers=5)
    plain = build_backbone(config)
    deformable = build_backbone(config.model_copy(update={"backbone": "resnet50_dcn"}))
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    # 13 blocks in stages 3 to 5, each with weight and bias of its offsets.
    assert not unexpected and len(missing) == 26 and all(".conv2.offset." in name for name in missing)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = plain(image), deformable(image)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        deformable(image)["3"].float().square().mean().backward()
    offsets = [p for name, p in deformable.named_parameters() if ".offset.weight" in name]
    assert len(offsets) == 13 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in offsets)


def test_folded_norms_give_the_same_maps():
    backbone = build_backbone(Model(backbone="resnet50_dcn", norm_eps=0.1)).eval()
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
    image = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        expected = backbone(image)
        # 53 of a ResNet-50.
        assert fold_frozen_norms(backbone.body) == 53 and fold_frozen_norms(backbone.body) == 0
        for name, tensor in backbone(image).items():
            torch.testing.assert_close(
                tensor, expected[name], rtol=1e-4, atol=1e-4 * float(tensor.abs().max())
            )
    assert fold_frozen_norms(build_backbone(Model(backbone="resnet18", norm="group")).body) == 0
