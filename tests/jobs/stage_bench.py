"""A run directory with stand-in stages, for tests of which stages run."""

import json
from contextlib import contextmanager
from pathlib import Path

import jobs.inputs
import jobs.stages
from configs.load import parse_config
from jobs.stages import run_pipeline

ALL = ["shard", "baseline", "refine", "control", "evaluate", "report"]


class SilentTracker:
    """A tracker that tells nobody."""

    def state(self):
        return {"uri": "sqlite:////nowhere.db", "runs": {}}

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Bench:
    """A run directory whose stages only write their output's name and content, and are counted."""

    def __init__(self, folder: Path, monkeypatch):
        self.run_dir, self.did, self.broken = folder / "run", [], {}
        for name in ("train.json", "val.json"):
            (folder / name).write_text("{}")
        self.tree = {
            "data": {
                split: {"images": str(folder), "annotations": str(folder / f"{split}.json")}
                for split in ("train", "val")
            },
            "model": {"norm": "group"},
            "train": {"baseline": {"batch": 4}, "refine": {"batch": 8}},
        }
        monkeypatch.setattr(jobs.stages, "STAGES", {stage: self.stage(stage) for stage in ALL})
        monkeypatch.setattr(jobs.stages, "tracking", self.tracking)
        monkeypatch.setattr(jobs.inputs, "dataset_hash", lambda place, _: f"hash of {Path(place).name}")

    def stage(self, name):
        def work(run):
            self.did.append(name)
            if name in ("baseline", "refine", "control"):
                self.write(f"{name}/checkpoints/step-000000001/state.json", "{}")
            if name in self.broken:
                raise self.broken[name]
            if name in ("baseline", "refine", "control"):
                self.write(f"{name}/weights.safetensors", name)
            if name == "evaluate":
                for network in ("baseline", "control", "refined"):
                    self.write(f"evaluate/{network}/metrics.json", "{}")

        return work

    def write(self, name, text):
        path = self.run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    @contextmanager
    def tracking(*_):
        yield SilentTracker()

    def run(self, redo=None, workers=2, stages=None, lender=None, **changes):
        """Run with `section__key=value` changes of the config; return the stages that were done."""
        tree = json.loads(json.dumps(self.tree))
        for key, value in changes.items():
            *parents, leaf = key.split("__")
            section = tree
            for parent in parents:
                section = section.setdefault(parent, {})
            section[leaf] = value
        self.did = []
        run_pipeline(
            parse_config(tree), self.run_dir, workers=workers, redo=redo, stages=stages, lender=lender
        )
        return self.did
