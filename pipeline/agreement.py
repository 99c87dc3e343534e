"""What the ranks settle together outside of a step, which has a reduction of its own."""

import torch
import torch.distributed as dist


def on_any_rank(*facts: bool, device: torch.device | str) -> list[bool]:
    """Return for each of these whether it is so on any rank, on all of them the same.

    Collective: a rank that is gone makes it an error of torch.distributed's or gloo's.
    """
    counts = torch.tensor(facts, dtype=torch.float32, device=device)
    dist.all_reduce(counts)
    return [count > 0 for count in counts.tolist()]
