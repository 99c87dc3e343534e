"""Shape-aware RoIAlign as a torch operator: compiled kernels where they were built, plain torch elsewhere."""

from ops import backend
from ops.backend import backend_info
from ops.sa_roi_align import multiscale_sa_roi_align, sa_roi_align

backend.load()

__all__ = ["backend_info", "multiscale_sa_roi_align", "sa_roi_align"]
