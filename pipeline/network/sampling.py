"""Random choices that depend on the sample only: never on rank, world size, batch or global RNG."""

import hashlib

import torch
from torch import Tensor


def sample_generator(seed: int, position: int, stage: str) -> torch.Generator:
    """Return a CPU generator that is a pure function of its arguments.

    Args:
        seed: the run's seed.
        position: the sample's place in the training order, counted over all epochs.
        stage: who draws ("rpn", "roi", ...), so that two draws of one sample are independent.
    """
    digest = hashlib.blake2b(f"{seed}/{position}/{stage}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def balanced_sample(
    labels: Tensor, size: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the indices of sampled positives and negatives, each in increasing order.

    At most `size * positive_fraction` rows with a label above 0, filled up to `size` with rows of
    label 0. Rows below 0 are never drawn. Empty labels give empty indices.
    """
    positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
    positive = choose(positive, int(size * positive_fraction), generator)
    return positive, choose(negative, size - len(positive), generator)


def choose(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` of the given row indices (all, if there are fewer), in increasing order."""
    # The permutation is drawn even when nothing is dropped: what is drawn next must not depend on it.
    drawn = torch.randperm(len(rows), generator=generator)[:count]
    return rows[drawn.sort().values.to(rows.device)]
