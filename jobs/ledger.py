"""RUN/ledger.json: which stages are done, from which inputs, with which outputs."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.lease import check_attempt
from shards.errors import BadInput
from shards.storage.files import write_atomic
from shards.storage.folder import naming

Values = dict[str, Any]
# Of these only a verdict follows: EIO or a stale handle, as of a server that is away, says nothing of a file.
ABSENT = (FileNotFoundError, NotADirectoryError)


class Ledger:
    """The stages of one run directory. Every change is on the disk before the method returns.

    The file before the last change is kept beside it, so that a damaged ledger costs one change
    at most; stages are idempotent, so repeating that change is harmless.
    """

    def __init__(
        self, run_dir: Path, tree: dict[str, Any], recovered: str | None = None, attempt: int | None = None
    ):
        """Use `Ledger.load`."""
        self.path = run_dir / "ledger.json"
        self.tree, self.attempt = tree, attempt
        self.recovered = recovered

    @classmethod
    def load(cls, run_dir: str | Path, attempt: int | None = None) -> "Ledger":
        """Return the ledger of a run directory, empty when nothing has run there.

        `ledger.recovered` is a line to show when the previous copy had to be used, else None. `attempt` is
        that of the lease under which it will be changed: once a newer one has begun, every change raises
        StaleAttempt instead. Without one nothing is written: somebody else's run may be changing the ledger.

        Raises:
            BadInput: the ledger is damaged and there is no good previous copy.
            OSError: it cannot be read just now, which says nothing of it; names the file.
        """
        run_dir = Path(run_dir)
        path, previous = run_dir / "ledger.json", run_dir / "ledger.previous.json"
        try:
            return cls(run_dir, _read(path), attempt=attempt)
        except (*ABSENT, ValueError) as error:
            absent, wrong = isinstance(error, ABSENT), f"{path}: is damaged ({error})"
        try:
            used = f"{wrong}; the copy {previous.name} is used instead"
            ledger = cls(run_dir, _read(previous), used, attempt)
        except (*ABSENT, ValueError) as error:
            if absent and isinstance(error, ABSENT):
                return cls(run_dir, _nothing(), attempt=attempt)
            raise BadInput(f"{wrong}; put back a copy of it or choose another --run-dir") from None
        if attempt is not None:
            write_atomic(path, previous.read_bytes())
        return ledger

    def state(self, stage: str) -> str:
        """Return "pending", "running", "done", "failed", or "forgotten": to be done again from nothing."""
        return self.tree["stages"].get(stage, {}).get("state", "pending")

    def inputs(self, stage: str) -> Values:
        """Return the value of every input that a stage was begun with; empty if it never was."""
        return self.tree["stages"].get(stage, {}).get("inputs", {})

    def name(self, stage: str) -> str:
        """Return what tells a stage that was begun from all others: stable while it goes on.

        The hash of its inputs, and for one that was begun after it had been forgotten also the attempt that
        began it: the same inputs again are another training.
        """
        entry = self.tree["stages"][stage]
        return entry["input_hash"] + (f"-{entry['attempt']}" if entry.get("anew") else "")

    def outputs(self, stage: str) -> Values:
        """Return the hash of every output of a finished stage; empty otherwise."""
        return self.tree["stages"].get(stage, {}).get("outputs", {})

    def begin(self, stage: str, inputs: Values, attempt: int) -> None:
        """Note that a stage runs, from these inputs.

        The attempt that first began it from them stays with it: what is told of it twice is told alike.
        """
        first = self.tree["stages"].get(stage, {})
        goes_on = first.get("inputs") == inputs
        self.tree["attempt"] = attempt
        self.tree["stages"][stage] = {
            "state": "running",
            "attempt": first["attempt"] if goes_on else attempt,
            "anew": first.get("anew", False) if goes_on else first.get("state") == "forgotten",
            "inputs": inputs,
            "input_hash": hash_of(inputs),
            "outputs": {},
        }
        # Twice, so that the copy knows it too: it is what hours of training would fall back to.
        self.save()
        self.save()

    def finish(self, stage: str, outputs: Values) -> None:
        """Note that a running stage is done, with these outputs."""
        self.tree["stages"][stage].update(state="done", outputs=outputs)
        self.save()

    def fail(self, stage: str, reason: str) -> None:
        """Note that a running stage ended with an error; the same command will try it again."""
        self.tree["stages"][stage].update(state="failed", reason=reason)
        self.save()

    def redoing(self) -> list[str]:
        """Return the stages that `--redo` has begun anew since the pipeline last came to its end."""
        return self.tree.get("redo", [])

    def forget(self, stages: list[str], redo: str | None = None) -> None:
        """Note that stages are to be done again; what they have written may be deleted from now on.

        The `redo` that asked for it is noted with the same write: a kill makes it forget nothing twice.
        """
        for stage in stages:
            self.tree["stages"][stage] = {"state": "forgotten"}
        if redo is not None and redo not in self.redoing():
            self.tree["redo"] = [*self.redoing(), redo]
        if stages:
            self.save()

    def end_redo(self, stages: list[str]) -> None:
        """Note that all of these stages are done: another `--redo` of one of them begins it anew."""
        left = [stage for stage in self.redoing() if stage not in stages]
        if left != self.redoing():
            self.tree["redo"] = left
            self.save()

    def train_with(self, workers: int, threads: str) -> str | None:
        """Note how many workers train, each with so many threads; return the threads of as many before."""
        before = self.tree.get("workers", {})
        if before != {"number": workers, "threads": threads}:
            self.tree["workers"] = {"number": workers, "threads": threads}
            self.save()
        return before.get("threads") if before.get("number") == workers else None

    def track(self, tracking: Values) -> None:
        """Keep MLflow's absolute URI and the run ids."""
        if tracking != self.tree["tracking"]:
            self.tree["tracking"] = tracking
            self.save()

    def save(self) -> None:
        """Replace the file as a whole, keeping the one before."""
        if self.attempt is not None:
            check_attempt(self.path.parent, self.attempt)
        if self.path.exists():
            write_atomic(self.path.with_name("ledger.previous.json"), self.path.read_bytes())
        write_atomic(self.path, json.dumps(self.tree, sort_keys=True, indent=1).encode() + b"\n")


def changed_keys(before: Values, now: Values) -> list[str]:
    """Return the keys whose values differ, sorted."""
    absent = object()
    return sorted(
        key for key in before.keys() | now.keys() if before.get(key, absent) != now.get(key, absent)
    )


def hash_of(values: Values) -> str:
    """Return the sha256 of values as sorted-key JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _nothing() -> dict[str, Any]:
    return {"format": 1, "attempt": 0, "stages": {}, "tracking": {}}


def _read(path: Path) -> dict[str, Any]:
    with naming(str(path)):
        text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError("its end is missing")
    tree = json.loads(text)
    if not isinstance(tree, dict) or tree.get("format") != 1 or "stages" not in tree:
        raise ValueError("it is no ledger of this version")
    return tree
