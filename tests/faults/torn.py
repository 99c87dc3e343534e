"""Files cut at 0, at 1 byte, at half and before their last byte: every cut is noticed, and little is lost."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.ledger import Ledger
from pipeline.checkpoint import newest_checkpoint
from pipeline.tracking.outbox import append_event, outbox_damage
from tests.faults.case import CHECKPOINT_EVERY, OneStage, log_of, trained
from tests.faults.kills import Kill, steps, strike
from tests.faults.watch import end, orphans, wait_for

CUTS = {"0": 0.0, "1 byte": 1, "half": 0.5, "end - 1": -1}
SNAPSHOT = (
    '{"ray_version": "2.60.0", "checkpoint_results": [], "checkpoint_report_indices": [], '
    '"latest_checkpoint_result": null, "pending_training_results": [], "pending_validation_specs": [], '
    '"current_report_index": 0}'
)
Say = Callable[[str], None]


def tear(folder: Path, say: Say) -> list[str]:
    """Return what went unnoticed, or cost more than one interval between checkpoints."""
    stage = OneStage.make(folder)
    stage.finish(folder / "undisturbed", "torchrun")
    run = folder / "run"
    process = stage.start(run, "ray")
    wait_for(process, lambda: steps(run / "baseline") > 2 * CHECKPOINT_EVERY, run)
    strike(process, Kill("step", "driver", "baseline", 0, 0.0, 0.0), run)
    end(orphans(run))
    faults = _checkpoints(run / "baseline" / "checkpoints", folder / "copy", say)
    faults += _ledger(folder / "ledger", say) + _outbox(folder / "outbox", say)
    return faults + _ray_and_newest(stage, run, folder / "undisturbed", say)


def _checkpoints(checkpoints: Path, copy: Path, say: Say) -> list[str]:
    newest = newest_checkpoint(checkpoints)
    faults, cuts = [], 0
    for file in sorted(newest.iterdir()):
        for name, _ in torn(file):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(checkpoints, copy)
            found, cuts = newest_checkpoint(copy), cuts + 1
            lost = _step(newest) - _step(found) if found else _step(newest)
            if found is None or found.name == newest.name or lost > CHECKPOINT_EVERY:
                faults.append(f"{file.name} cut at {name}: goes on from {found}")
    say(f"checkpoint: {cuts - len(faults)} of {cuts} cuts noticed, {CHECKPOINT_EVERY} steps lost by each")
    return faults


def _ledger(folder: Path, say: Say) -> list[str]:
    folder.mkdir()
    ledger, faults = Ledger.load(folder), []
    ledger.begin("shard", {"a": 1}, 1)
    ledger.finish("shard", {"train": "x"})
    ledger.begin("baseline", {"b": 1}, 1)
    for name, _ in torn(folder / "ledger.json"):
        again = Ledger.load(folder, attempt=1)
        if not again.recovered or again.tree != ledger.tree:
            faults.append(f"ledger.json cut at {name}: {again.recovered} {again.tree}")
    say(f"ledger: {len(CUTS) - len(faults)} of {len(CUTS)} cuts noticed and mended from its copy")
    return faults


def _outbox(folder: Path, say: Say) -> list[str]:
    folder.mkdir()
    for number in range(5):
        append_event(folder, {"kind": "started", "stage": f"stage {number}"})
    outbox = folder / "outbox.jsonl"
    unnoticed = [name for name, _ in torn(outbox) if not outbox_damage(folder, 0)]
    # Whole lines are gone: the rest looks like an outbox in which less was noted.
    content = outbox.read_bytes()
    outbox.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    unnoticed += [] if outbox_damage(folder, 0) else ["its last line"]
    cuts = len(CUTS) + 1
    say(f"outbox: {cuts - len(unnoticed)} of {cuts} cuts noticed (how it is mended: test_outbox.py)")
    return [f"outbox.jsonl cut at {name}: unnoticed" for name in unnoticed]


def _ray_and_newest(stage: OneStage, run: Path, calm: Path, say: Say) -> list[str]:
    snapshots = list(_planted(run / ".jobs" / "baseline-2" / "ray"))
    newest = newest_checkpoint(run / "baseline" / "checkpoints")
    _cut(newest / "weights.safetensors", 0.5)
    stage.finish(run, "ray")
    read = any(path.exists() and path.read_bytes() == content for path, content in snapshots)
    same = trained(run) == trained(calm)
    told = f"{newest.name} is broken: weights.safetensors differ" in log_of(run).read_text()
    told_of = f"{len(snapshots)} torn snapshots laid where Ray looks"
    say(f"{told_of}: {'STILL THERE' if read else 'deleted before it does'}")
    verdict = f"{'told' if told else 'NOT TOLD'}, {'all the same' if same else 'DIFFERS'}"
    say(f"the newest checkpoint cut: {verdict}")
    broken = read or not told or not same
    return ["a run with torn snapshots of Ray's and a torn newest checkpoint"] if broken else []


def _planted(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield snapshots, each cut in another way, where the second attempt's starts would keep theirs."""
    # Ray writes none for us, as it is told of no checkpoint, and cannot start from a torn one.
    for start, keep in enumerate(CUTS.values()):
        path = folder / f"baseline-2-{start}" / "checkpoint_manager_snapshot.json"
        path.parent.mkdir(parents=True)
        path.write_text(SNAPSHOT)
        _cut(path, keep)
        yield path, path.read_bytes()


def torn(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the file cut in each way in turn; afterwards it is whole again."""
    content = path.read_bytes()
    for name, keep in CUTS.items():
        _cut(path, keep)
        yield name, path
        path.write_bytes(content)


def _cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if 0 < keep < 1 else int(keep)])


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
