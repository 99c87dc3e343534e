"""Region proposals: torchvision's RPN with a sampler seeded by the sample and un-normalised losses."""

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from configs.schema import Model
from pipeline.network.losses import Loss, box_loss, objectness_loss
from pipeline.network.sampling import balanced_sample, sample_generator

ASPECT_RATIOS = (0.5, 1.0, 2.0)
BETA = 1 / 9
POSITIVE_FRACTION = 0.5


def build_rpn(config: Model) -> "RPN":
    """Return the proposal network for the pyramid's five maps."""
    anchors = AnchorGenerator(tuple((s,) for s in config.anchor_sizes), (ASPECT_RATIOS,) * 5)
    return RPN(
        anchors,
        RPNHead(config.fpn_channels, len(ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.rpn_batch_per_image,
        positive_fraction=POSITIVE_FRACTION,
        pre_nms_top_n={"training": config.rpn_pre_nms_train, "testing": config.rpn_pre_nms_test},
        post_nms_top_n={"training": config.rpn_post_nms_train, "testing": config.rpn_post_nms_test},
        nms_thresh=0.7,
    )


class RPN(RegionProposalNetwork):
    """torchvision's RPN; only the sampling and the normalisation of its losses are ours."""

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
        return boxes, self._losses(anchors, objectness[:, 0], deltas, targets, seed)

    def _losses(self, anchors, objectness, deltas, targets, seed) -> dict[str, Loss]:
        labels, matched_boxes = self.assign_targets_to_anchors(anchors, targets)
        encoded = torch.cat(self.box_coder.encode(matched_boxes, anchors))
        rows = self._sample(labels, targets, seed)
        sampled = torch.cat(labels)[rows].long()
        return {
            "loss_objectness": objectness_loss(objectness[rows], sampled),
            # One regressor for all: as if class-specific, with the same delta for 0 and 1.
            "loss_rpn_box_reg": box_loss(deltas[rows, None].expand(-1, 2, -1), encoded[rows], sampled, BETA),
        }

    def _sample(self, labels: list[Tensor], targets: list[dict], seed: int) -> Tensor:
        size, rows, start = self.fg_bg_sampler.batch_size_per_image, [], 0
        for image_labels, target in zip(labels, targets, strict=True):
            generator = sample_generator(seed, target["position"], "rpn")
            drawn = balanced_sample(image_labels, size, POSITIVE_FRACTION, generator)
            rows.append(torch.cat(drawn) + start)
            start += len(image_labels)
        return torch.cat(rows)
