"""RoI pooling over the feature pyramid: our operator behind torchvision's pooler interface."""

import torch
from torch import Tensor, nn

from configs.profile import SourceProfile
from ops import multiscale_sa_roi_align
from pipeline.network.boxes import last_pixels
from pipeline.network.targets import to_rois

LEVELS = ("0", "1", "2", "3")
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
FINEST, COARSEST = 2, 5
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4
OWN = SourceProfile()


class RoIPool(nn.Module):
    """Pools P2 to P5; each RoI reads the level that fits its own area.

    `sampling_ratio` and `aligned` are the profile's unless given.
    """

    def __init__(
        self,
        size: int,
        sampling_ratio: int | None = None,
        aligned: bool | None = None,
        mask_mode: str = "half_pixel",
        profile: SourceProfile = OWN,
    ):
        super().__init__()
        self.size, self.mask_mode, self.profile = size, mask_mode, profile
        self.sampling_ratio = profile.sampling_ratio if sampling_ratio is None else sampling_ratio
        self.aligned = profile.aligned if aligned is None else aligned

    def forward(
        self,
        features: dict[str, Tensor],
        boxes: Tensor | list[Tensor],
        image_shapes: list[tuple[int, int]] | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return pooled features [n, C, size, size].

        Args:
            features: the pyramid; strides are 4 to 32, so `image_shapes` is not needed to infer them.
            boxes: [n, 5] (image index, xyxy in input pixels) or one [n_i, 4] an image.
            image_shapes: accepted for torchvision's sake.
            masks: [n, Hp, Wp] guidance that weighs every sample (SaRoIAlign); None is RoIAlign.
        """
        rois = boxes if isinstance(boxes, Tensor) else to_rois(boxes)
        return multiscale_sa_roi_align(
            [features[level] for level in LEVELS],
            last_pixels(rois, self.profile.legacy_boxes),
            masks,
            (self.size, self.size),
            list(SCALES),
            levels=pyramid_levels(rois[:, 1:], self.profile),
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            mask_mode=self.mask_mode,
        )


def pyramid_levels(boxes: Tensor, profile: SourceProfile) -> Tensor | None:
    """Return the map of each box [n, 4], int64 [n] counted from P2; None where the operator's rule is it."""
    if (profile.level_eps, profile.level_eps_in_log) == (OWN.level_eps, OWN.level_eps_in_log):
        return None
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).float().sqrt() / CANONICAL_SIZE
    if profile.level_eps_in_log:
        level = CANONICAL_LEVEL + torch.log2(size + profile.level_eps)
    else:
        level = CANONICAL_LEVEL + torch.log2(size) + profile.level_eps
    level = torch.nan_to_num(level.floor(), nan=FINEST).clamp(FINEST, COARSEST)
    return level.to(torch.int64) - FINEST
