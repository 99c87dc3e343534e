"""The shapes and textures of the synthetic data set: what makes each category what it is."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw
from pycocotools import mask as coco_mask

# Ids have gaps on purpose, as COCO's do: code that takes an id for an index fails on this data set.
CATEGORIES = {1: "disc", 2: "ring", 3: "square", 5: "triangle", 8: "cross", 13: "bar"}
TEXTURES = ("shaded", "rays", "checker", "stripes", "dots", "gradient")
SUPERSAMPLING = 4


def outline(category: int, centre: np.ndarray, radius: float, angle: float) -> list[np.ndarray]:
    """Return the polygons, each `[V, 2]` float xy in pixels, whose even-odd area is the shape.

    Args:
        category: a key of CATEGORIES.
        centre: `[2]` xy in pixels.
        radius: of the circle around the shape, in pixels.
        angle: rotation in radians.
    """
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [np.round(centre + radius * polygon @ turn, 2) for polygon in _UNIT_OUTLINES[category]]


def rasterize(polygons: list[np.ndarray], size: int) -> np.ndarray:
    """Return the shape's mask, bool `[size, size]`, as COCO rasterises polygons."""
    filled = [
        coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], size, size))[..., 0]
        for polygon in polygons
    ]
    return np.bitwise_xor.reduce(filled).astype(bool)


def coverage(polygons: list[np.ndarray], size: int) -> np.ndarray:
    """Return how much of each pixel the shape covers, float `[size, size]` in 0..1, for soft edges."""
    large = (size * SUPERSAMPLING, size * SUPERSAMPLING)
    inside = Image.new("L", large)
    for polygon in polygons:
        canvas = Image.new("L", large)
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in polygon * SUPERSAMPLING], fill=255)
        inside = ImageChops.difference(inside, canvas)
    return np.asarray(inside.reduce(SUPERSAMPLING)) / 255


def texture(name: str, centre: np.ndarray, radius: float, angle: float, size: int) -> np.ndarray:
    """Return a brightness factor around 1, float `[size, size]`, moving and turning with the shape."""
    y, x = np.mgrid[:size, :size] + 0.5
    dx, dy = (x - centre[0]) / radius, (y - centre[1]) / radius
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = np.cos(angle) * dy - np.sin(angle) * dx
    pattern = {
        "shaded": lambda: 1 - np.hypot(dx + 0.3, dy + 0.3),
        "rays": lambda: np.sign(np.sin(12 * np.arctan2(v, u))),
        "checker": lambda: np.sign(np.sin(7 * u) * np.sin(7 * v)),
        "stripes": lambda: np.sign(np.sin(11 * v)),
        "dots": lambda: np.where(np.cos(10 * u) * np.cos(10 * v) > 0.3, 1.0, -0.5),
        "gradient": lambda: 1.3 * u,
    }[name]()
    return 1 + 0.2 * np.clip(pattern, -1.5, 1.5)


def _circle(radius: float, corners: int = 40) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _rectangle(half_width: float, half_height: float) -> np.ndarray:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (half_width, half_height)


def _cross(arm: float) -> np.ndarray:
    far, near = 0.95, arm
    quarter = np.array([[near, -far], [near, -near], [far, -near]])
    turns = [np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) for t in np.arange(4) * np.pi / 2]
    return np.concatenate([quarter @ turn for turn in turns])


_UNIT_OUTLINES = {
    1: [_circle(0.9)],
    2: [_circle(1.0), _circle(0.55)],
    3: [_rectangle(0.75, 0.75)],
    5: [_circle(1.05, corners=3)],
    8: [_cross(0.3)],
    13: [_rectangle(1.05, 0.27)],
}
