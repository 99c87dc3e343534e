"""Mask Refining R-CNN: boxes and masks of Mask R-CNN, refined once more with shape-aware features.

Symbols in comments are the paper's: R proposals, B base boxes, P base masks on B, B^r refined boxes,
F^- what the base mask head knew. Source: "Shape-aware Feature Extraction for Instance Segmentation".
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Model, Refine, Sara, Test
from ops import sa_roi_align
from pipeline.network.boxes import DeltaCoder, last_pixels
from pipeline.network.detections import Detections, select_detections
from pipeline.network.heads import BOX_SIZE, HIDDEN_SIZE, RefiningHeads
from pipeline.network.losses import Loss, box_loss, class_loss, mask_loss
from pipeline.network.maskrcnn import FirstStage, MaskRCNN
from pipeline.network.pool import RoIPool
from pipeline.network.sampling import choose, sample_generator
from pipeline.network.targets import (
    MIN_SIDE,
    Assigned,
    box_targets,
    decode_boxes,
    decode_rois,
    has_area,
    mask_targets,
    match,
    resample,
)
from pipeline.network.weights import fill


@dataclass(frozen=True)
class Guide:
    """Base boxes B (with their ground truth in training) and what the base mask head says of them.

    hidden: [n, M, 14, 14], the head's last hidden maps; masks: P [n, 28, 28], the probability of the
    class that moved the box; boxes without area stay in, so that rows keep their meaning.
    """

    assigned: Assigned
    hidden: Tensor
    masks: Tensor


class MRRCNN(MaskRCNN):
    """Mask R-CNN (torchvision's parameter names) and the refining module under `refine.`."""

    def __init__(self, config: Model, num_classes: int, refine: Refine, sara: Sara, test: Test):
        super().__init__(config, num_classes, test)
        self.refine_config, self.sara = refine, sara
        self.refine = RefiningHeads(config, num_classes, refine)
        self.refine_coder = DeltaCoder(refine.coder, config.profile)
        self.sara_pool = _sara_pool(sara, refine.use_sara, config.profile)
        if refine.freeze_base:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("refine."))

    def load_baseline(
        self, tensors: dict[str, Tensor], batch: tuple[list[Tensor], list[dict], int] | None = None
    ) -> None:
        """Copy the weights of a trained baseline, and its heads into the refining module too.

        `conv_res` has no counterpart there and keeps its initialisation.

        Args:
            tensors: weights of a `MaskRCNN` of the same config.
            batch: (images, targets, seed) as in training, for `refine.init_gain=mean_mask`, which
                measures P on it; the same on every rank, or the ranks' weights differ.
        """
        fill(self, tensors, "the baseline's weights", may_lack="refine.")
        self.refine.copy_from(self.roi_heads, self._init_gain(batch))

    def _init_gain(self, batch) -> float:
        if self.refine_config.init_gain == "none" or not self.refine_config.use_sara:
            return 1.0
        if batch is None:
            raise ValueError("refine.init_gain=mean_mask measures the masks on a batch: pass one")
        training = self.training
        gain = self.train().mean_guidance(*batch)
        self.train(training)
        return gain

    def losses(self, images: list[Tensor], targets: list[dict], seed: int) -> dict[str, Loss]:
        """Return {name: (sum, count)}: the base's five and the refining module's three losses.

        With `refine.freeze_base`, the refining module's only. Arguments as in `MaskRCNN.losses`.
        """
        images, targets = self.transform(images, targets)
        frozen = self.refine_config.freeze_base
        with torch.no_grad() if frozen else nullcontext():
            stage = self.first_stage(images, targets, seed)
            guide, losses = self._guide(stage, targets, images.image_sizes, seed)
        refined = self._refine_losses(stage.features, guide, targets, images.image_sizes, seed)
        return refined if frozen else {**stage.losses, **losses, **refined}

    def _guide(self, stage: FirstStage, targets, sizes, seed: int) -> tuple[Guide, dict[str, Loss]]:
        """Return B with its labels, hidden maps and P, and the base's mask loss."""
        used = self._base_labels(stage)
        base = self._base_boxes(stage, used, targets, sizes)
        if self.refine_config.resample:
            kept = resample(base, targets, seed, self.config.rois_per_image, "resample")
            base, used = base.take(kept), used[kept]
        # The second channel is that of B's own label, which the loss needs and P does not.
        channels = torch.stack([used, base.labels], 1)
        hidden, logits = self.base_masks(stage.features, base.rois, channels)
        masks = logits[:, 0].sigmoid()
        guide = Guide(base, hidden, masks.detach() if self.refine_config.detach_mask else masks)
        if self.refine_config.freeze_base:
            return guide, {}
        if self.refine_config.base_mask_on == "R":
            return guide, {"loss_mask": self.base_mask_loss(stage, targets)}
        rows = torch.where((base.labels > 0) & has_area(base.rois))[0]
        wanted = mask_targets(base.take(rows), targets, self.profile.legacy_boxes)
        return guide, {"loss_mask": mask_loss(logits[rows, 1], wanted)}

    def _base_labels(self, stage: FirstStage) -> Tensor:
        """Return y~ [n] in 1..K: the ground truth's label, or for background the best foreground class."""
        predicted = foreground_labels(stage.logits)
        if self.refine_config.train_mask_label == "pred":
            return predicted
        return torch.where(stage.sampled.labels > 0, stage.sampled.labels, predicted)

    def _base_boxes(self, stage: FirstStage, used: Tensor, targets, sizes) -> Assigned:
        """Return B, decoded with the deltas of class y~ and matched anew."""
        sampled, rows = stage.sampled, torch.arange(len(used), device=used.device)
        rois = decode_rois(self.box_coder, stage.deltas[rows, used], sampled.rois, sizes)
        if self.refine_config.gt == "zero_delta":
            rois = torch.where(sampled.is_gt[:, None], sampled.rois, rois)
        return Assigned(rois, *match(rois, targets, self.refine_config.iou), sampled.is_gt)

    def _refine_losses(self, features, guide: Guide, targets, sizes, seed: int) -> dict[str, Loss]:
        logits, deltas = self.refine_boxes(features, guide)
        # Regression targets of boxes without area are inf or NaN: left out by index, not by weight.
        rows = torch.where(has_area(guide.assigned.rois))[0]
        base = guide.assigned.take(rows)
        encoded = box_targets(self.refine_coder, base, targets)
        box = box_loss(deltas[rows], encoded, base.labels, self.config.box_beta)
        weight = self.refine_config.loss_w
        return {
            "refine_classifier": _weighted(class_loss(logits[rows], base.labels), weight.cls),
            "refine_box_reg": _weighted(box, weight.box),
            "refine_mask": _weighted(
                self._refine_mask_loss(features, guide, deltas, targets, sizes, seed), weight.mask
            ),
        }

    def _refine_mask_loss(self, features, guide: Guide, deltas: Tensor, targets, sizes, seed: int) -> Loss:
        rows = torch.where((guide.assigned.labels > 0) & has_area(guide.assigned.rois))[0]
        refined = self._refined_positives(guide.assigned.take(rows), deltas[rows], targets, sizes)
        kept = self._cap(refined, targets, seed)
        rows, refined = rows[kept], refined.take(kept)
        base_rois, hidden = guide.assigned.rois[rows], guide.hidden[rows]
        logits = self.refine_masks(features, refined.rois, refined.labels, base_rois, hidden)
        return mask_loss(logits, mask_targets(refined, targets, self.profile.legacy_boxes))

    def _refined_positives(self, base: Assigned, deltas: Tensor, targets, sizes) -> Assigned:
        """Return B^r of positive rows of B, with the labels of their own match."""
        rows = torch.arange(len(base.labels), device=deltas.device)
        rois = decode_rois(self.refine_coder, deltas[rows, base.labels], base.rois, sizes)
        if self.refine_config.gt == "zero_delta":
            rois = torch.where(base.is_gt[:, None], base.rois, rois)
        labels, matched = match(rois, targets, self.refine_config.iou)
        return replace(base, rois=rois, labels=torch.where(has_area(rois), labels, 0), matched=matched)

    def _cap(self, refined: Assigned, targets: list[dict], seed: int) -> Tensor:
        """Return the rows of positives, at most `mask_pos_cap` an image, drawn by sample."""
        kept = []
        for image, target in enumerate(targets):
            rows = torch.where((refined.rois[:, 0] == image) & (refined.labels > 0))[0]
            generator = sample_generator(seed, target["position"], "mask")
            kept.append(choose(rows, self.refine_config.mask_pos_cap, generator))
        return torch.cat(kept)

    def refine_boxes(self, features: dict[str, Tensor], guide: Guide) -> tuple[Tensor, Tensor]:
        """Return refined class logits [n, K+1] and deltas [n, K+1, 4] of base boxes and their masks."""
        factor = self.guidance(guide.masks) if self.refine_config.use_sara else None
        return self.refine.boxes(self.sara_pool(features, guide.assigned.rois, masks=factor))

    def guidance(self, masks: Tensor) -> Tensor:
        """Return what features are multiplied with: P, or 1 + P."""
        return masks + 1 if self.sara.guidance == "residual" else masks

    def refine_masks(
        self, features: dict[str, Tensor], rois: Tensor, labels: Tensor, base_rois: Tensor, hidden: Tensor
    ) -> Tensor:
        """Return refined mask logits [m, 28, 28] of boxes B^r.

        Args:
            features: the pyramid.
            rois: B^r, [m, 5].
            labels: the class whose mask is wanted, [m].
            base_rois: the boxes B that `rois` came from, [m, 5].
            hidden: the base mask head's hidden maps on `base_rois`, [m, M, 14, 14].
        """
        chunk = self.config.mask_chunk
        rows = torch.arange(len(rois), device=rois.device).split(chunk)
        return torch.cat(
            [self._refine_chunk(features, rois[r], labels[r], base_rois[r], hidden[r]) for r in rows]
        )

    def _refine_chunk(self, features, rois, labels, base_rois, hidden) -> Tensor:
        pooled = self.mask_pool(features, rois)
        if self.refine_config.fminus == "htc":
            hidden = self.roi_heads.mask_hidden(pooled)
        elif self.refine_config.fminus == "relative":
            # The maps cover what was pooled.
            pooled_on = (last_pixels(r, self.profile.legacy_boxes) for r in (base_rois, rois))
            hidden = recrop(hidden, *pooled_on)
        summed = pooled + self.refine.residual(hidden)
        return self.refine.mask_logits(self.refine.mask_hidden(summed), labels[:, None])[:, 0]

    def find(self, features, rois: Tensor, sizes: list[tuple[int, int]]) -> tuple[Detections, Tensor]:
        """Return refined detections and their mask probabilities [d, 28, 28], of proposals [n, 5]."""
        if self.test.order == "refine_after_nms":
            found = self.base_detections(features, rois, sizes)
            rois, used = rois[found.rows], found.labels
            logits, deltas = self.roi_heads.boxes(self.box_pool(features, rois))
        else:
            logits, deltas = self.roi_heads.boxes(self.box_pool(features, rois))
            used = foreground_labels(logits)
        guide = self._guide_at_test(features, rois, deltas, used, sizes)
        refined_logits, refined_deltas = self.refine_boxes(features, guide)
        scores = fuse(logits, refined_logits, self.test).softmax(1)
        base_rois = guide.assigned.rois
        if self.test.reg:
            boxes = decode_boxes(self.refine_coder, refined_deltas, base_rois, sizes)
        else:
            boxes = decode_boxes(self.box_coder, deltas, rois, sizes)
        found = select_detections(scores, boxes, rois[:, 0], self.test, self.profile)
        base_rois, hidden = base_rois[found.rows], guide.hidden[found.rows]
        return found, self.refine_masks(features, found.rois, found.labels, base_rois, hidden).sigmoid()

    def _guide_at_test(self, features, rois: Tensor, deltas: Tensor, used: Tensor, sizes) -> Guide:
        rows = torch.arange(len(used), device=used.device)
        base = decode_rois(self.box_coder, deltas[rows, used], rois, sizes)
        hidden, logits = self.base_masks(features, base, used[:, None])
        return Guide(Assigned(base, used, used, used < 0), hidden, logits[:, 0].sigmoid())

    @torch.no_grad()
    def mean_guidance(self, images: list[Tensor], targets: list[dict], seed: int) -> float:
        """Return the mean factor of shape guidance over the RoIs sampled from a batch; 1 without RoIs."""
        images, targets = self.transform(images, targets)
        stage = self.first_stage(images, targets, seed)
        masks = self._guide(stage, targets, images.image_sizes, seed)[0].masks
        return float(self.guidance(masks).mean()) if len(masks) else 1.0


def foreground_labels(logits: Tensor) -> Tensor:
    """Return the best class but background [n], in 1..K; the lowest one of equals."""
    return logits.detach()[:, 1:].argmax(1) + 1


def fuse(base: Tensor, refined: Tensor, test: Test) -> Tensor:
    """Return the logits that score detections [n, K+1].

    The mean of both with weight `alpha` on the refined ones; `cls=false` keeps the base's,
    `cls_scores=refined` the refined ones alone.
    """
    if not test.cls:
        return base
    if test.cls_scores == "refined":
        return refined
    return (base + test.alpha * refined) / (1 + test.alpha)


def recrop(hidden: Tensor, base_rois: Tensor, rois: Tensor) -> Tensor:
    """Return maps [m, M, 14, 14] on B read again at `rois`; what lies outside B is 0.

    One sample at every cell's centre, so that rois equal to base_rois give back the maps.
    """
    origin, side = base_rois[:, 1:3], (base_rois[:, 3:] - base_rois[:, 1:3]).clamp(min=MIN_SIDE)
    corners = (rois[:, 1:].unflatten(1, (2, 2)) - origin[:, None]) / side[:, None] * HIDDEN_SIZE
    index = torch.arange(len(rois), device=rois.device).to(rois)
    local = torch.cat([index[:, None], corners.flatten(1)], 1)
    return sa_roi_align(hidden, local, None, HIDDEN_SIZE, sampling_ratio=1, aligned=True)


def _sara_pool(sara: Sara, use_sara: bool, profile: SourceProfile) -> RoIPool:
    # Without guidance the pool is an ordinary one and follows the source.
    aligned = profile.aligned if sara.aligned == "source" or not use_sara else sara.aligned
    mode = "half_pixel" if sara.delta == 0.5 else "paper"
    return RoIPool(BOX_SIZE, sara.sampling_ratio, aligned, mode, profile)


def _weighted(loss: Loss, weight: float) -> Loss:
    return loss[0] * weight, loss[1]
