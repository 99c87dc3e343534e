"""Mask R-CNN: the baseline, and the first stage of Mask Refining R-CNN."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.schema import Model, Test
from pipeline.network.backbone import build_backbone
from pipeline.network.boxes import DeltaCoder, clip_boxes, image_limits, last_pixels, rescale_boxes
from pipeline.network.detections import Detections, select_detections
from pipeline.network.heads import BOX_SIZE, HIDDEN_SIZE, Heads
from pipeline.network.losses import Loss, box_loss, class_loss, mask_loss
from pipeline.network.nms import sides_at_least
from pipeline.network.paste import paste_masks
from pipeline.network.pool import RoIPool
from pipeline.network.rpn import build_rpn
from pipeline.network.targets import Assigned, box_targets, decode_boxes, mask_targets, sample_rois, to_rois
from pipeline.network.transform import build_transform
from pipeline.network.weights import fill


@dataclass(frozen=True)
class FirstStage:
    """What the base knows of its RoIs: features, sampled RoIs, class logits, deltas, losses so far."""

    features: dict[str, Tensor]
    sampled: Assigned
    logits: Tensor
    deltas: Tensor
    losses: dict[str, Loss]


class MaskRCNN(nn.Module):
    """Mask R-CNN with torchvision's parameter names.

    In training mode, `model(images, targets, seed)` returns {name: (loss sum, count)}; in eval mode,
    `model(images)` returns one dict an image: boxes, labels, scores, masks (see `detect`).
    `test` may be replaced at any time: every test key acts on the trained model. So may `paste`:
    with `paste_runs`, the masks of detections are run lengths and never all there in pixels.
    `config.profile` says by which program's rules it computes.
    """

    def __init__(self, config: Model, num_classes: int, test: Test):
        super().__init__()
        self.config, self.num_classes, self.test = config, num_classes, test
        self.category_ids: list[int] | None = None
        self.paste = paste_masks
        self.transform = build_transform(config)
        self.backbone = build_backbone(config)
        self.rpn = build_rpn(config)
        self.roi_heads = Heads(config, num_classes)
        self.profile = profile = config.profile
        self.box_pool, self.mask_pool = (RoIPool(size, profile=profile) for size in (BOX_SIZE, HIDDEN_SIZE))
        self.box_coder = DeltaCoder(profile.box_coder, profile)

    def forward(self, images: list[Tensor], targets: list[dict] | None = None, seed: int = 0):
        """Return losses in training mode, detections in eval mode."""
        images = [i if i.is_floating_point() else i.float() / 255 for i in images]
        return self.losses(images, targets, seed) if self.training else self.detect(images)

    def load_baseline(self, tensors: dict[str, Tensor]) -> None:
        """Copy the weights of a trained baseline."""
        fill(self, tensors, "the baseline's weights")

    def losses(self, images: list[Tensor], targets: list[dict], seed: int) -> dict[str, Loss]:
        """Return {name: (sum, count)} of the five losses.

        Args:
            images: float [3, H, W] in 0..1.
            targets: boxes [G, 4] xyxy in the image's pixels, labels int64 [G] from 1, masks uint8
                [G, H, W] or `GroundTruthMasks`, position (the sample's place in the training order).
                G may be 0.
            seed: with `position`, decides which anchors and RoIs are sampled.
        """
        images, targets = self.transform(images, targets)
        stage = self.first_stage(images, targets, seed)
        return {**stage.losses, "loss_mask": self.base_mask_loss(stage, targets)}

    def first_stage(self, images, targets: list[dict], seed: int) -> FirstStage:
        """Return features, sampled RoIs, their predictions, and the proposal and box losses."""
        features = self.backbone(images.tensors)
        proposals, losses = self.rpn(images, features, targets, seed)
        sampled = sample_rois(proposals, targets, seed, self.config.rois_per_image)
        logits, deltas = self.roi_heads.boxes(self.box_pool(features, sampled.rois))
        encoded = box_targets(self.box_coder, sampled, targets)
        losses["loss_classifier"] = class_loss(logits, sampled.labels)
        losses["loss_box_reg"] = box_loss(deltas, encoded, sampled.labels, self.config.box_beta)
        return FirstStage(features, sampled, logits, deltas, losses)

    def base_mask_loss(self, stage: FirstStage, targets: list[dict]) -> Loss:
        """Return the mask loss of the base on its positive RoIs."""
        positive = stage.sampled.positives()
        _, logits = self.base_masks(stage.features, positive.rois, positive.labels[:, None])
        return mask_loss(logits[:, 0], mask_targets(positive, targets, self.profile.legacy_boxes))

    def base_masks(
        self, features: dict[str, Tensor], rois: Tensor, channels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the base mask head's hidden maps [n, M, 14, 14] and logits [n, c, 28, 28].

        In chunks of `config.mask_chunk` RoIs: the same numbers in bounded memory.
        """
        chunk = self.config.mask_chunk
        hidden = [self.roi_heads.mask_hidden(self.mask_pool(features, r)) for r in rois.split(chunk)]
        pairs = zip(hidden, channels.split(chunk), strict=True)
        return torch.cat(hidden), torch.cat([self.roi_heads.mask_logits(h, c) for h, c in pairs])

    @torch.no_grad()
    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return one dict an image, best detection first.

        boxes float [D, 4] xyxy in the image's own pixels; labels int64 [D], 1..K, or category ids for
        a model from `load_model`; scores [D]; masks bool [D, H, W]. D may be 0.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        batch, _ = self.transform(images)
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, features)
        found, masks = self.find(features, to_rois(proposals), batch.image_sizes)
        scaled = zip(sizes, batch.image_sizes, strict=True)
        return [self._of_image(found, masks, i, size, net) for i, (size, net) in enumerate(scaled)]

    def find(self, features, rois: Tensor, sizes: list[tuple[int, int]]) -> tuple[Detections, Tensor]:
        """Return detections and their mask probabilities [d, 28, 28], of proposals [n, 5]."""
        found = self.base_detections(features, rois, sizes)
        _, logits = self.base_masks(features, found.rois, found.labels[:, None])
        return found, logits[:, 0].sigmoid()

    def base_detections(self, features, rois: Tensor, sizes: list[tuple[int, int]]) -> Detections:
        """Return the base's detections among proposals [n, 5]."""
        logits, deltas = self.roi_heads.boxes(self.box_pool(features, rois))
        boxes = decode_boxes(self.box_coder, deltas, rois, sizes)
        return select_detections(logits.softmax(1), boxes, rois[:, 0], self.test, self.profile)

    def _of_image(self, found: Detections, masks: Tensor, image: int, size, net_size) -> dict[str, Tensor]:
        rows = torch.where(found.rois[:, 0] == image)[0]
        boxes = rescale_boxes(found.rois[rows, 1:], net_size, size, self.profile.legacy_boxes)
        if self.profile.drop_empty:
            boxes = clip_boxes(boxes, image_limits(size, boxes), False)
            kept = torch.where(sides_at_least(boxes, 0.0))[0]
            rows, boxes = rows[kept], boxes[kept]
        labels = found.labels[rows]
        if self.category_ids is not None:
            labels = labels.new_tensor([0, *self.category_ids])[labels]
        pixels = last_pixels(boxes, self.profile.legacy_boxes)
        pasted = self.paste(masks[rows], pixels, size, self.test.paste)
        return {"boxes": boxes, "labels": labels, "scores": found.scores[rows], "masks": pasted}
