"""Region proposals: torchvision's RPN with a sampler seeded by the sample and un-normalised losses."""

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.network.anchors import ASPECT_RATIOS, Anchors
from pipeline.network.boxes import DeltaCoder, clip_boxes, image_limits
from pipeline.network.losses import Loss, box_loss, objectness_loss
from pipeline.network.nms import sides_at_least, suppress
from pipeline.network.sampling import balanced_sample, sample_generator

CODER = (1.0, 1.0, 1.0, 1.0)
NMS_IOU = 0.7
POSITIVE_FRACTION = 0.5


def build_rpn(config: Model) -> "RPN":
    """Return the proposal network for the pyramid's five maps."""
    rpn = RPN(
        Anchors(config.anchor_sizes, config.profile),
        RPNHead(config.fpn_channels, len(ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.rpn_batch_per_image,
        positive_fraction=POSITIVE_FRACTION,
        pre_nms_top_n={"training": config.rpn_pre_nms_train, "testing": config.rpn_pre_nms_test},
        post_nms_top_n={"training": config.rpn_post_nms_train, "testing": config.rpn_post_nms_test},
        nms_thresh=NMS_IOU,
    )
    rpn.profile, rpn.box_coder = config.profile, DeltaCoder(CODER, config.profile)
    return rpn


class RPN(RegionProposalNetwork):
    """torchvision's RPN by the rules of a profile; sampling and normalisation of its losses are ours."""

    profile: SourceProfile

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict] | None = None, seed: int = 0
    ) -> tuple[list[Tensor], dict[str, Loss]]:
        """Return proposals [n, 4] xyxy of each image, best first, and in training the two losses."""
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        per_level = [o[0].numel() for o in objectness]
        objectness, deltas = (t.float() for t in concat_box_prediction_layers(objectness, deltas))
        # Anchors take the maps' dtype, and bfloat16 cannot tell pixel 257 from 258.
        anchors = self.anchor_generator(images, [m[:, :1].float() for m in maps])
        proposals = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, objectness, images.image_sizes, per_level)
        if not self.training:
            return boxes, {}
        return boxes, self._losses(anchors, objectness[:, 0], deltas, images.image_sizes, targets, seed)

    def filter_proposals(
        self, proposals: Tensor, objectness: Tensor, image_shapes: list, num_anchors_per_level: list[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return each image's best proposals [n, 4] and their scores [n], best first.

        Args:
            proposals: [N, A, 4] xyxy of all levels.
            objectness: logits of N * A anchors.
            image_shapes: (height, width) of each image, before padding.
            num_anchors_per_level: how the A anchors divide into levels.
        """
        scores = objectness.detach().reshape(len(proposals), -1)
        if self.profile.proposal_scores == "sigmoid":
            scores = scores.sigmoid()
        # Each level by itself, before any suppression.
        best = self._get_top_n_idx(scores, num_anchors_per_level)
        if self.profile.proposal_scores == "sigmoid_late":
            scores = scores.sigmoid()
        counts = torch.tensor(num_anchors_per_level, device=best.device)
        levels = torch.arange(len(counts), device=best.device).repeat_interleave(counts)
        kept = [
            self._of_image(boxes[rows], score[rows], levels[rows], size)
            for boxes, score, rows, size in zip(proposals, scores, best, image_shapes, strict=True)
        ]
        return [boxes for boxes, _ in kept], [scores for _, scores in kept]

    def _of_image(self, boxes: Tensor, scores: Tensor, levels: Tensor, size) -> tuple[Tensor, Tensor]:
        boxes = clip_boxes(boxes, image_limits(size, boxes), self.profile.legacy_boxes)
        kept = torch.where(sides_at_least(boxes, self.profile.proposal_min_side) & ~scores.isnan())[0]
        boxes, scores, levels = boxes[kept], scores[kept], levels[kept]
        kept = suppress(boxes, scores, levels, self.nms_thresh, self.profile.nms)[: self.post_nms_top_n()]
        return boxes[kept], scores[kept]

    def _losses(self, anchors, objectness, deltas, sizes, targets, seed) -> dict[str, Loss]:
        labels, matched_boxes = self.assign_targets_to_anchors(anchors, targets)
        if self.profile.straddle_px is not None:
            labels = [self._inside(*row) for row in zip(labels, anchors, sizes, strict=True)]
        encoded = torch.cat(self.box_coder.encode(matched_boxes, anchors))
        rows, beta = self._sample(labels, targets, seed), self.profile.rpn_beta
        sampled = torch.cat(labels)[rows].long()
        return {
            "loss_objectness": objectness_loss(objectness[rows], sampled),
            # One regressor for all: as if class-specific, with the same delta for 0 and 1.
            "loss_rpn_box_reg": box_loss(deltas[rows, None].expand(-1, 2, -1), encoded[rows], sampled, beta),
        }

    def _inside(self, labels: Tensor, anchors: Tensor, size) -> Tensor:
        # The ends are compared as inclusive ones.
        limits, margin = image_limits(size, anchors), self.profile.straddle_px
        inside = (anchors[:, :2] >= -margin) & (anchors[:, 2:] - 1 < limits[2:] + margin)
        return torch.where(inside.all(1), labels, -1.0)

    def _sample(self, labels: list[Tensor], targets: list[dict], seed: int) -> Tensor:
        size, rows, start = self.fg_bg_sampler.batch_size_per_image, [], 0
        for image_labels, target in zip(labels, targets, strict=True):
            generator = sample_generator(seed, target["position"], "rpn")
            drawn = balanced_sample(image_labels, size, POSITIVE_FRACTION, generator)
            rows.append(torch.cat(drawn) + start)
            start += len(image_labels)
        return torch.cat(rows)
