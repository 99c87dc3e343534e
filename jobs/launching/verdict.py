"""Which errors of a worker end the job, and which are worth another try."""

import json
import os
import re
import traceback
import uuid
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from configs.load import ConfigError
from pipeline.lease import StaleAttempt, Superseded
from pipeline.notice import ASKED, Preempted
from shards.errors import BadInput

VERDICT = "verdict.json"
OURS = ("configs", "jobs", "ops", "pipeline", "shards")
TWICE = "twice the same error, so it is not tried again: "
FIRST = "asked to stop, but this came first, so that the last steps may be lost: "


class Judging:
    """Looks at the error its body ends with.

    One that a new try would only repeat is written to SCRATCH/verdict.json at once, any other when an
    earlier start of the workers has ended with its like at the same place in the same step, on any rank. An
    error that comes of a dead or newer peer says nothing of this one, and is never held against the job.
    Once the task is asked to stop, nobody tries again: what fails then is written at once too.

    Collective: the ranks of one start, which may all meet the same error, agree here on that start's name.
    """

    def __init__(self, scratch: Path, stop_file: str | None = None, again: bool = True):
        """Judge for the task of `scratch`, which `stop_file` asks to end; not `again`: nobody tries again."""
        self._scratch, self._again = scratch, again
        self._stop_file = None if stop_file is None else Path(stop_file)
        names = [uuid.uuid4().hex]
        dist.broadcast_object_list(names)
        self._start = names[0]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            # What failed is told, not that a full disk does not take the verdict either.
            with suppress(OSError):
                self._judge(error)

    def _judge(self, error: Exception) -> None:
        if isinstance(error, _final_errors()):
            self._write(VERDICT, _verdict(error, ""))
        elif self._again and _is_of_a_peer(error):
            return
        elif ASKED in _notes(error) or (self._stop_file is not None and self._stop_file.exists()):
            self._write(VERDICT, _verdict(error, FIRST))
        elif not self._again and not isinstance(error, OSError):
            # For what the system refuses the command itself has a remedy.
            self._write(VERDICT, _verdict(error, ""))
        elif self._happened_before(error):
            self._write(VERDICT, _verdict(error, TWICE))

    def _happened_before(self, error: Exception) -> bool:
        this = _kind_of(error)
        files = [path for path in self._scratch.glob("error-*.json") if self._start not in path.name]
        earlier = [path.read_text(encoding="utf-8") for path in files]
        self._write(f"error-{self._start}-{os.environ['RANK']}.json", this)
        return json.dumps(this) in earlier

    def _write(self, name: str, content: dict[str, object]) -> None:
        path = self._scratch / name
        temporary = path.with_name(f"{name}-{os.environ['RANK']}.tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, path)


def _final_errors() -> tuple[type[BaseException], ...]:
    from pipeline.train import NonFiniteLoss

    return (ValueError, TypeError, NonFiniteLoss, StaleAttempt, Preempted)


def _is_of_a_peer(error: Exception) -> bool:
    # gloo has no class of its own for a connection that a dying peer has closed.
    lost = isinstance(error, RuntimeError) and re.search(r"\bgloo\b", str(error), re.IGNORECASE)
    return bool(lost) or isinstance(error, Superseded | dist.DistError | ConnectionError)


def _verdict(error: Exception, said: str) -> dict[str, object]:
    step = "".join(f" ({note})" for note in _notes(error) if note != ASKED) if said else ""
    return {
        "input": isinstance(error, BadInput | ConfigError),
        "stopped": isinstance(error, Preempted) or said == FIRST,
        "expected": type(error).__module__.split(".")[0] in OURS and not said,
        "message": said + (" ".join(str(error).split()) or type(error).__name__) + step,
        "traceback": "".join(traceback.format_exception(error)),
    }


def _kind_of(error: Exception) -> dict[str, object]:
    # Not the message: it may name a process or an address.
    place = traceback.extract_tb(error.__traceback__)[-1]
    return {"type": type(error).__name__, "at": f"{place.filename}:{place.lineno}", "notes": _notes(error)}


def _notes(error: Exception) -> list[str]:
    return list(getattr(error, "__notes__", []))
