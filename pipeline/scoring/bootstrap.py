"""How sure a difference of AP is: the paired bootstrap over images.

Two results on the same images are compared on the same resamples of those images (drawn with
replacement, as many as there are), so what both share (hard images, rare categories) cancels out. Every
image is matched once (`pipeline.scoring.matches`); a resample only weighs the images anew. The interval is
the percentile interval of the resampled differences. It speaks of the choice of images, not of the
training seed.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.scoring.matches import Matches, average_precision


@dataclass(frozen=True)
class Resampled:
    """AP of the whole set (None if undefined) and of resamples of its images, [R] with NaN for None."""

    whole: float | None
    drawn: np.ndarray
    seed: int


@dataclass(frozen=True)
class Interval:
    """A difference of AP (b - a, fractions), its 95% interval, and how both were obtained."""

    difference: float | None
    low: float | None
    high: float | None
    resamples: int
    seed: int


def resample(matches: list[Matches], resamples: int = 500, seed: int = 0) -> Resampled:
    """Return AP of the set and of `resamples` resamples of it; equal seeds draw equal images."""
    num_images = len(matches[0].truths)
    generator = np.random.default_rng(seed)
    draws = (generator.multinomial(num_images, np.full(num_images, 1 / num_images)) for _ in range(resamples))
    drawn = [average_precision(matches, weights) for weights in draws]
    return Resampled(average_precision(matches), np.array(drawn, dtype=np.float64), seed)


def paired_interval(a: Resampled, b: Resampled) -> Interval:
    """Return AP(b) - AP(a) with its 95% interval; None where no image has a ground truth that counts.

    Raises:
        ValueError: the two were not resampled alike.
    """
    resamples = len(b.drawn)
    if (a.seed, len(a.drawn)) != (b.seed, resamples):
        raise ValueError("results that were resampled differently are not paired")
    if a.whole is None or b.whole is None:
        return Interval(None, None, None, resamples, b.seed)
    low, high = np.nanpercentile(b.drawn - a.drawn, [2.5, 97.5])
    return Interval(b.whole - a.whole, float(low), float(high), resamples, b.seed)
