"""One synthetic scene: instances placed so that a wanted share of them huddles, then painted."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.boxes import box_iou, box_of
from shards.synthetic.shapes import CATEGORIES, TEXTURES, coverage, outline, rasterize, texture

NEAR_SAME_BOX_IOU = 0.7
# A little inside the definition of huddled (0.3), so that a later shape's bite rarely ends a huddle.
AIMED_IOU = 0.33
MIN_VISIBLE_SHARE = 0.5
MIN_VISIBLE_PX = 40
PLACING_ATTEMPTS = 60


@dataclass(eq=False)
class Shape:
    """A shape in the scene; `mask` is its whole, `visible` what nearer shapes leave of it, bool `[S, S]`."""

    category: int
    centre: np.ndarray
    radius: float
    angle: float
    polygons: list[np.ndarray]
    mask: np.ndarray
    visible: np.ndarray
    crowd: bool = False
    parts: tuple["Shape", ...] = ()


def place_scene(rng: np.random.Generator, size: int, huddle: float) -> list[Shape]:
    """Return 2 to 5 shapes, far to near, of which about the share `huddle` (0..1) is huddled."""
    shapes: list[Shape] = _crowd(rng, size) if rng.random() < 0.04 else []
    wanted = int(rng.integers(2, 6))
    for group in _group_sizes(rng, wanted, huddle):
        shapes = _add_group(rng, shapes, group, size)
    return shapes


def paint_scene(rng: np.random.Generator, shapes: list[Shape], size: int) -> np.ndarray:
    """Return the picture, uint8 `[size, size, 3]`: uneven ground, soft shadows, textured shapes, noise."""
    hue = rng.random()
    ground = rng.uniform(0.2, 0.42)
    coarse = ground + 0.16 * (_clouds(rng, size, 5) - 0.5) + 0.08 * (_clouds(rng, size, 16) - 0.5)
    picture = coarse[..., None] * (0.75 + 0.5 * _colour(hue, 0.35))
    for shape in shapes:
        # A step away from the hue before: neighbours in depth often huddle, and have to be told apart.
        hue += rng.uniform(0.2, 0.8)
        for part in shape.parts or [shape]:
            picture = _paint(rng, picture, part, hue, size)
    light = 0.9 + 0.2 * _clouds(rng, size, 3)[..., None]
    noisy = picture * light + rng.normal(0, 0.02, picture.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)


def _group_sizes(rng: np.random.Generator, wanted: int, huddle: float) -> list[int]:
    huddled = int(wanted * huddle + rng.random())
    if huddled == 1:
        huddled = 2 * int(rng.random() < 0.5)
    groups = []
    while huddled:
        group = huddled if huddled <= 3 else 2
        groups.append(group)
        huddled -= group
    return groups + [1] * (wanted - sum(groups))


def _add_group(rng: np.random.Generator, shapes: list[Shape], group: int, size: int) -> list[Shape]:
    partner = None
    for _ in range(group):
        shapes, partner = _add(rng, shapes, partner, size)
        if partner is None:
            break
    return shapes


def _add(
    rng: np.random.Generator, shapes: list[Shape], partner: Shape | None, size: int
) -> tuple[list[Shape], Shape | None]:
    """Return the scene with one more shape and that shape; the scene as it was and None if none fits."""
    same_box = partner is not None and rng.random() < 0.25
    category = _category(rng, partner, same_box)
    for _ in range(PLACING_ATTEMPTS):
        shape = _draw(rng, category, partner, same_box, size)
        # Before or behind its partner: otherwise only what covers little could be a partner at all.
        behind = partner is not None and rng.random() < 0.5
        place = shapes.index(partner) if behind else len(shapes)
        scene = [*shapes[:place], shape, *shapes[place:]]
        _occlude(scene)
        if _acceptable(scene, shape, partner, same_box):
            return scene, shape
    _occlude(shapes)
    return shapes, None


def _category(rng: np.random.Generator, partner: Shape | None, same_box: bool) -> int:
    same_class = partner is not None and not same_box and rng.random() < 0.25
    if same_class:
        return partner.category
    return int(rng.choice([c for c in CATEGORIES if partner is None or c != partner.category]))


def _draw(rng: np.random.Generator, category: int, partner: Shape | None, same_box: bool, size: int) -> Shape:
    unit = size / 128
    if partner is None:
        radius = float(rng.uniform(13, 34)) * unit
        centre = rng.uniform(radius + 1, size - radius - 1, 2)
    else:
        spread = 0.25 if same_box else 0.6
        radius = float(np.clip(partner.radius * rng.uniform(0.75, 1.3), 12 * unit, 36 * unit))
        centre = partner.centre + rng.uniform(-spread, spread, 2) * partner.radius
        centre = np.clip(centre, radius + 1, size - radius - 1)
    return _shape(category, centre, radius, float(rng.uniform(0, 2 * np.pi)), size)


def _shape(category: int, centre: np.ndarray, radius: float, angle: float, size: int) -> Shape:
    polygons = [np.clip(p, 0, size) for p in outline(category, centre, radius, angle)]
    mask = rasterize(polygons, size)
    return Shape(category, centre, radius, angle, polygons, mask, mask)


def _occlude(shapes: list[Shape]) -> None:
    covered = np.zeros_like(shapes[0].mask) if shapes else None
    for shape in reversed(shapes):
        shape.visible = shape.mask & ~covered
        covered = covered | shape.mask


def _acceptable(shapes: list[Shape], added: Shape, partner: Shape | None, same_box: bool) -> bool:
    if any(not _seen_enough(shape) for shape in shapes):
        return False
    solid = [shape for shape in shapes if not shape.crowd]
    iou = box_iou(np.stack([box_of(shape.visible) for shape in solid]))[solid.index(added)]
    if partner is None:
        return bool((iou < 0.15).all())
    return bool(iou[solid.index(partner)] >= (NEAR_SAME_BOX_IOU if same_box else AIMED_IOU))


def _seen_enough(shape: Shape) -> bool:
    seen = np.count_nonzero(shape.visible)
    return seen >= MIN_VISIBLE_PX and seen >= MIN_VISIBLE_SHARE * np.count_nonzero(shape.mask)


def _crowd(rng: np.random.Generator, size: int) -> list[Shape]:
    """Many small shapes of one category side by side, annotated as COCO annotates a crowd."""
    unit = size / 128
    category = int(rng.choice(list(CATEGORIES)))
    corner = rng.uniform(12 * unit, size - 52 * unit, 2)
    spots = [corner + np.array([i % 3, i // 3]) * 12 * unit for i in range(9)]
    parts = [
        _shape(category, spot + rng.uniform(-2, 2, 2), float(rng.uniform(5, 7)) * unit, 0.0, size)
        for spot in spots
    ]
    mask = np.logical_or.reduce([part.mask for part in parts])
    return [Shape(category, corner, 0.0, 0.0, [], mask, mask, crowd=True, parts=tuple(parts))]


def _paint(rng: np.random.Generator, picture: np.ndarray, shape: Shape, hue: float, size: int) -> np.ndarray:
    own = list(CATEGORIES).index(shape.category)
    # Texture hints at the category but does not decide it: the shape does.
    pattern = TEXTURES[own] if rng.random() < 0.7 else str(rng.choice(TEXTURES))
    colour = _colour(hue, rng.uniform(0.35, 0.8)) * rng.uniform(0.75, 0.95)
    alpha = coverage(shape.polygons, size)
    soft = _blur(alpha)
    shadow = np.roll(soft, (2, 2), (0, 1))
    rim = 1 - 0.45 * np.clip(1.6 * (1 - soft) - 0.25, 0, 1)
    skin = colour * (texture(pattern, shape.centre, shape.radius, shape.angle, size) * rim)[..., None]
    shaded = picture * (1 - 0.3 * shadow)[..., None]
    return shaded * (1 - alpha[..., None]) + skin * alpha[..., None]


def _colour(hue: float, saturation: float) -> np.ndarray:
    wheel = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return 1 - saturation * (1 - np.clip(wheel, 0, 1))


def _clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    small = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.clip(np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)), 0, 1)


def _blur(alpha: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        alpha = sum(np.roll(alpha, step, axis) for step in (-2, -1, 0, 1, 2)) / 5
    return alpha
