"""RoI pooling over the feature pyramid: our operator behind torchvision's pooler interface."""

from torch import Tensor, nn

from ops import multiscale_sa_roi_align

LEVELS = ("0", "1", "2", "3")
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


class RoIPool(nn.Module):
    """Pools P2 to P5; each RoI reads the level that fits its own area."""

    def __init__(
        self, size: int, sampling_ratio: int = 2, aligned: bool = False, mask_mode: str = "half_pixel"
    ):
        super().__init__()
        self.size, self.sampling_ratio = size, sampling_ratio
        self.aligned, self.mask_mode = aligned, mask_mode

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
        return multiscale_sa_roi_align(
            [features[level] for level in LEVELS],
            boxes,
            masks,
            (self.size, self.size),
            list(SCALES),
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            mask_mode=self.mask_mode,
        )
