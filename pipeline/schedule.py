"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

from bisect import bisect_right

from configs.schema import Schedule


def lr_at(schedule: Schedule, step: int) -> float:
    """Return the learning rate of optimizer step `step` (the first is 0).

    Linear warm-up from `warmup_factor` over `warmup` steps times `gamma` for every passed
    milestone, as maskrcnn-benchmark's WarmupMultiStepLR does.
    """
    warm = min(step / schedule.warmup, 1.0) if schedule.warmup else 1.0
    factor = schedule.warmup_factor * (1 - warm) + warm
    return schedule.lr * factor * schedule.gamma ** bisect_right(sorted(schedule.steps), step)
