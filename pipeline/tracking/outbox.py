"""The outbox between a run and MLflow: files that hold everything until it is delivered.

Metrics wait in RUN/STAGE/metrics.jsonl, which training writes anyway; everything else (stages begun
and ended, parameters, data sets, files) waits in RUN/outbox.jsonl, one JSON object a line. How many bytes it
has is in RUN/outbox.size: nothing else would tell that whole lines were cut off.
"""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.storage.files import flush, write_atomic

LINES_AT_ONCE = 50
SIZE = "outbox.size"
Event = dict[str, Any]


def append_event(run_dir: Path, event: Event) -> None:
    """Append an event to the outbox; it is on the disk when this returns."""
    line = json.dumps(event).encode() + b"\n"
    with (run_dir / "outbox.jsonl").open("ab+") as file:
        # A line torn by a kill must not swallow the next one.
        if file.tell() and _last_byte(file) != b"\n":
            line = b"\n" + line
        file.write(line)
        flush(file)
        size = file.tell()
    # Last, so that a kill in between leaves more than is said and never less.
    write_atomic(run_dir / SIZE, b"%d\n" % size)


def read_events(run_dir: Path, start: int = 0) -> list[tuple[Event, int]]:
    """Return (event, offset behind it) of every complete event from byte `start` on."""
    path, events = run_dir / "outbox.jsonl", []
    if not path.exists():
        return events
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            event = _parse(line)
            if event is not None:
                events.append((event, start))
    return events


def outbox_damage(run_dir: Path, delivered: int) -> str:
    """Return what is wrong with an outbox of which so many bytes were delivered; "" when nothing is.

    Nothing ever shortens it, and every line ends: a shorter one, or half a line, has lost events.
    """
    path = run_dir / "outbox.jsonl"
    content = path.read_bytes() if path.exists() else b""
    if not content or len(content) < delivered:
        return f"it has {len(content)} bytes, of which {delivered} were delivered already"
    # Runs of earlier versions have no such file.
    said = (run_dir / SIZE).read_bytes() if (run_dir / SIZE).exists() else b"0\n"
    if not re.fullmatch(rb"\d+\n", said):
        return f"{SIZE}, which says how long it is, is torn"
    if len(content) < int(said):
        return f"it has {len(content)} of the {int(said)} bytes that were noted"
    if not content.endswith(b"\n"):
        return "its last line is torn"
    torn = sum(_parse(line) is None for line in content.splitlines(keepends=True))
    return f"{torn} of its lines cannot be read" if torn else ""


@dataclass(frozen=True)
class Batch:
    """Lines of a metrics log, when they were first seen (ms since 1970), and where they end."""

    rows: list[dict[str, Any]]
    seen_ms: int
    end: int
    last: bytes


class MetricsTail:
    """The undelivered end of one metrics.jsonl, a bounded batch at a time.

    Training cuts the log back to its checkpoint when it resumes. The tail notices that what it read
    last is no longer there and begins again; whoever delivers leaves out the steps he has delivered.
    """

    def __init__(self, path: Path):
        self.path = path
        self._end, self._last = 0, b""
        self._batch: Batch | None = None

    def batch(self) -> Batch | None:
        """Return the next lines, the very same ones with the same time until `advance`; None if none.

        The time has to stay: MLflow drops a point that it is sent twice only if all of it is equal.
        """
        if self._batch is None:
            self._batch = self._read()
        return self._batch

    def advance(self) -> None:
        """Go on behind the batch, which has been delivered."""
        if self._batch is not None:
            self._end, self._last = self._batch.end, self._batch.last
            self._batch = None

    def _read(self) -> Batch | None:
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            file.seek(self._end - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._end, self._last = 0, b""
                file.seek(0)
            lines = []
            while len(lines) < LINES_AT_ONCE and (line := file.readline()).endswith(b"\n"):
                lines.append(line)
        if not lines:
            return None
        rows = [row for row in map(_parse, lines) if row is not None and "step" in row]
        end = self._end + sum(map(len, lines))
        return Batch(rows, int(time.time() * 1000), end, lines[-1])


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        tree = json.loads(line)
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
