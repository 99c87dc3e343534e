"""Linear scaling: rate, steps and warm-up of a recipe for another global batch than it was written for."""

from collections.abc import Iterable

from configs.schema import Config, Schedule

STAGES = ("baseline", "refine")


def scale_schedules(config: Config, given: Iterable[str] = ()) -> tuple[Config, list[str]]:
    """Return a config whose schedules fit their batch, and a line on each of them that says how.

    With batch b for a reference batch r: lr * b/r; iters, steps and warmup * r/b, rounded; one step at least
    stays of any. Schedules without a reference batch stay as they are, and say nothing.

    Args:
        config: as read from the file.
        given: dotted keys that the user set by hand: they stay.
    """
    stages, lines = {}, []
    for stage in STAGES:
        schedule, prefix = getattr(config.train, stage), f"train.{stage}."
        if schedule.reference_batch is not None:
            kept = {key.removeprefix(prefix) for key in given if key.startswith(prefix)}
            stages[stage] = _scaled(schedule, kept)
            lines.append(_line(stage, schedule, stages[stage], kept))
    return config.model_copy(update={"train": config.train.model_copy(update=stages)}), lines


def _scaled(schedule: Schedule, kept: set[str]) -> Schedule:
    longer = schedule.reference_batch / schedule.batch
    values = {
        "lr": schedule.lr / longer,
        "iters": max(1, round(schedule.iters * longer)) if schedule.iters else 0,
        "steps": tuple(max(1, round(step * longer)) for step in schedule.steps),
        "warmup": round(schedule.warmup * longer),
    }
    changes = {key: value for key, value in values.items() if key not in kept}
    return schedule.model_copy(update={**changes, "reference_batch": None})


def _line(stage: str, before: Schedule, after: Schedule, kept: set[str]) -> str:
    if after.iters == 0:
        return f"train.{stage}: no steps" + (
            "; model.weights is taken as it is" if stage == "baseline" else ""
        )
    drops = ", ".join(map(str, after.steps)) or "none"
    text = (
        f"train.{stage}: global batch {after.batch}, lr {after.lr:g}, {after.iters} steps, drops at {drops}, "
        f"warm-up {after.warmup}"
    )
    if before.batch == before.reference_batch:
        return f"{text}; the recipe as written"
    by_hand = ", ".join(sorted(kept & {"lr", "iters", "steps", "warmup"}))
    scaled = f"{text}; scaled from batch {before.reference_batch}"
    return f"{scaled}, but as set by hand: {by_hand}" if by_hand else scaled
