"""What training relies on in the network: sampling, empty images, precision, sizes."""

import pytest
import torch

from pipeline.network.sampling import balanced_sample, sample_generator
from tests.pipeline.tiny import tiny_base, tiny_image, tiny_refined, tiny_target, total


def both():
    return pytest.mark.parametrize("build", [tiny_base, tiny_refined], ids=["base", "refined"])


def test_sample_generator_depends_on_seed_position_and_stage_only():
    draws = {
        (seed, position, stage): torch.rand(4, generator=sample_generator(seed, position, stage)).tolist()
        for seed in (0, 1)
        for position in (0, 1, 10**12)
        for stage in ("rpn", "roi")
    }
    assert len({tuple(d) for d in draws.values()}) == len(draws)
    torch.rand(3)
    again = torch.rand(4, generator=sample_generator(1, 10**12, "roi")).tolist()
    assert again == draws[1, 10**12, "roi"]


def test_balanced_sample_keeps_quota_fills_up_and_never_draws_ignored_rows():
    labels = torch.tensor([0] * 50 + [2] * 30 + [-1] * 20)
    positive, negative = balanced_sample(labels, 40, 0.25, sample_generator(0, 0, "roi"))
    assert len(positive) == 10 and len(negative) == 30
    assert (labels[positive] == 2).all() and (labels[negative] == 0).all()
    few = labels[:55]
    positive, negative = balanced_sample(few, 40, 0.25, sample_generator(0, 0, "roi"))
    assert len(positive) == 5 and len(negative) == 35
    positive, negative = balanced_sample(labels[:0], 40, 0.25, sample_generator(0, 0, "roi"))
    assert len(positive) == len(negative) == 0


@both()
def test_losses_of_a_batch_are_the_sums_of_its_images_in_any_order(build):
    """Sampling does not know the batch, so any split over ranks trains on the same RoIs."""
    model = build().train()
    images, targets = [tiny_image(0), tiny_image(1)], [tiny_target(7), tiny_target(4, 2)]
    whole = model(images, targets, 3)
    swapped = model(images[::-1], targets[::-1], 3)
    parts = [model([i], [t], 3) for i, t in zip(images, targets, strict=True)]
    for name, (loss, count) in whole.items():
        assert count == swapped[name][1] == sum(p[name][1] for p in parts)
        torch.testing.assert_close(loss, swapped[name][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loss, sum(p[name][0] for p in parts), rtol=1e-4, atol=1e-4)


@both()
def test_sampling_changes_with_seed_and_position_and_leaves_the_global_rng_alone(build):
    model = build().train()
    state = torch.get_rng_state()

    def losses(position, seed):
        target = {**tiny_target(7), "position": position}
        return [loss.item() for loss, _ in model([tiny_image(0)], [target], seed).values()]

    assert losses(1, 3) == losses(1, 3)
    assert losses(1, 3) != losses(2, 3)
    assert losses(1, 3) != losses(1, 4)
    assert torch.equal(state, torch.get_rng_state())


@both()
@pytest.mark.parametrize("case", ["no objects", "no proposals", "nothing at all", "objects and none"])
def test_every_parameter_gets_a_gradient_whatever_the_batch_holds(build, case, monkeypatch):
    """M11: the reduction over ranks waits for every parameter; a missing gradient hangs it."""
    model = build().train()
    objects = (0, 0) if case in ("no objects", "nothing at all") else (2, 0)
    if case in ("no proposals", "nothing at all"):
        inner = model.rpn.forward

        def empty(*args):
            boxes, losses = inner(*args)
            return [b[:0] for b in boxes], losses

        monkeypatch.setattr(model.rpn, "forward", empty)
    targets = [tiny_target(i, n) for i, n in enumerate(objects)]
    losses = model([tiny_image(0), tiny_image(1)], targets, 0)
    total(losses).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if objects == (0, 0):
        for name in ("loss_box_reg", "loss_mask", "refine_box_reg", "refine_mask"):
            assert losses.get(name, (0, 0))[0] == 0
    if case == "no objects":
        assert losses["loss_classifier"][0] > 0 and losses["loss_classifier"][1] == 96
    if case == "nothing at all":
        assert all(losses[n] == (0, 0) for n in losses if "rpn" not in n and "objectness" not in n)


@both()
def test_bfloat16_autocast_gives_float32_losses_near_those_of_float32(build):
    model = build().train()
    batch = [tiny_image(0)], [tiny_target(7)], 3
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*batch)
    total(rough).backward()
    for name, (loss, _) in rough.items():
        assert loss.dtype == torch.float32
        assert abs(float(loss) - float(exact[name][0])) < 0.3 * float(exact[name][0]) + 1, name
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert len(model([tiny_image(0)])[0]["boxes"])


@both()
def test_a_diverged_model_gives_a_loss_that_is_not_finite_and_no_crash(build):
    model = build().train()
    torch.nn.init.constant_(model.roi_heads.box_predictor.bbox_pred.weight, float("nan"))
    torch.nn.init.constant_(model.rpn.head.bbox_pred.weight, float("inf"))
    losses = model([tiny_image(0)], [tiny_target(7)], 3)
    assert not torch.isfinite(total(losses))
    model.eval()([tiny_image(0)])


@both()
def test_images_of_any_size_give_masks_of_their_own_size(build):
    model = build().eval()
    shapes = [(1, 1), (1, 500), (40, 30), (300, 200)]
    images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes]
    for found, (height, width) in zip(model(images), shapes, strict=True):
        assert found["masks"].shape[1:] == (height, width) and found["masks"].dtype == torch.bool
        assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"]) == len(found["masks"])
        limits = torch.tensor([width, height, width, height]) + 1e-3
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= limits).all()
        assert (found["labels"] >= 1).all() and (found["labels"] <= 3).all()


def test_uint8_and_float_images_are_the_same_image():
    model = tiny_base().eval()
    image = torch.randint(0, 256, (3, 80, 90), dtype=torch.uint8)
    first, second = model([image])[0], model([image.float() / 255])[0]
    assert all(torch.equal(first[k], second[k]) for k in first)


@both()
def test_chunks_of_the_mask_head_do_not_change_the_result(build):
    """M10."""
    whole, chunked = build(), build(mask_chunk=5)
    batch = [tiny_image(0)], [tiny_target(7)], 3
    expected = whole.train()(*batch)
    for name, (loss, count) in chunked.train()(*batch).items():
        torch.testing.assert_close(loss, expected[name][0], rtol=1e-5, atol=1e-4)
        assert count == expected[name][1]
    found, other = whole.eval()([tiny_image(0)])[0], chunked.eval()([tiny_image(0)])[0]
    torch.testing.assert_close(found["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
    assert (found["masks"] != other["masks"]).float().mean() < 1e-3


def test_anchors_and_boxes_are_float32_under_autocast():
    """Bfloat16 has 8 bits: beyond 256 pixels neighbours would be one."""
    model, seen = tiny_base().eval(), []
    model.rpn.anchor_generator.register_forward_hook(lambda _, __, anchors: seen.extend(anchors))
    with torch.autocast("cpu", torch.bfloat16):
        found = model([tiny_image(0)])[0]
    assert seen[0].dtype == found["boxes"].dtype == found["scores"].dtype == torch.float32
