"""The networks: Mask R-CNN out of torchvision's parts, MR R-CNN upon it, and their weights."""
