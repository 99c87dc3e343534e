"""Mask R-CNN weights of other programs: read safely, renamed, described, and written back."""
