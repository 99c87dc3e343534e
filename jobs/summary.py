"""What a finished run shows: AP of the networks side by side, and where to look next."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.console import say, show_table
from jobs.ledger import Ledger

TITLES = {"baseline": "Mask R-CNN", "control": "control", "refined": "MR R-CNN"}
COLUMNS = ("box AP", "box AP50", "mask AP", "mask AP50", "huddled box AP", "huddled mask AP")
MOST_PICTURES = 8
# Of "bbox clipped to [0, 0, 5, 5]" and "area taken from the mask: 12", what is of this one annotation.
DETAIL = re.compile(r": .*| to \[.*")
MOST_CATEGORIES = 30


def show_summary(run_dir: Path) -> None:
    """Print AP of baseline, control and MR R-CNN, the pictures, the report, and MLflow's line."""
    found = {}
    for name, title in TITLES.items():
        path = run_dir / "evaluate" / name / "metrics.json"
        if path.exists():
            found[title] = json.loads(path.read_text(encoding="utf-8"))
    if found:
        show_metrics(found)
    for picture in sorted((run_dir / "report").rglob("*.png"))[:MOST_PICTURES]:
        say(f"picture: {picture}")
    for page in sorted((run_dir / "report").glob("*.html")):
        say(f"report:  {page}")
    uri = Ledger.load(run_dir).tree["tracking"].get("uri", "")
    local = uri.startswith("sqlite:")
    say(f"MLflow:  mlflow ui --backend-store-uri {uri}" if local else f"MLflow:  {uri}")


@contextmanager
def showing_findings(shards: str | Path) -> Iterator[None]:
    """Print what the body's sharding found, also when it refuses the data set for it."""
    from shards.validation.findings import Refused

    try:
        yield
    except Refused:
        show_findings(shards)
        raise
    show_findings(shards)


def show_findings(shards: str | Path) -> None:
    """Print what `shard` read and kept, and a row for each kind of finding with the first one as example.

    What became of one kind in two ways has two rows.
    """
    from shards.storage.folder import folder_at

    folder = folder_at(shards)
    report = json.loads(folder.read("report.json"))
    kept, read = report["kept"], report["read"]
    say(
        f"{folder}: {kept['images']} of {read['images']} images and "
        f"{kept['annotations']} of {read['annotations']} annotations are in"
    )
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for found in report["findings"]:
        alike.setdefault(_outcome(found), []).append(found)
    rows = [
        [severity, kind, str(len(alike[outcome])), _where(alike[outcome][0]), done, repair]
        for outcome in sorted(alike)
        for severity, kind, done, repair in [outcome]
    ]
    if rows:
        _show_rows(rows, f"each is listed in {folder.name_of('report.json')}")


def _show_rows(rows: list[list[str]], where: str) -> None:
    columns = ["", "finding", "count", "such as"]
    plain = {"error": {"refused", "skipped"}, "warning": {"kept"}}
    if all(done in plain[severity] for severity, *_, done, _ in rows):
        # Then one word says what was done to all errors, and there is room for what could be done.
        words = {done for severity, *_, done, _ in rows if severity == "error"}
        titles = [f"errors are {words.pop()}", where] if words else [where]
        show_table("; ".join(titles), [*columns, "--repair"], [[*row[:4], row[5]] for row in rows])
    else:
        # Of a data set that is refused nothing is done.
        refused = any(done == "refused" for *_, done, _ in rows)
        show_table(where, [*columns, "--repair" if refused else "done"], [row[:5] for row in rows])


def show_statistics(found: dict[str, Any]) -> None:
    """Print what `inspect` found in a directory of shards, damage last."""
    apart = ("damaged", "complaints", "categories")
    rows = [[name.replace("_", " "), _in_words(value)] for name, value in found.items() if name not in apart]
    show_table("shards", ["", ""], rows)
    _show_categories(found["categories"])
    if found["complaints"]:
        say("trained on as they are, but perhaps damaged before they were sharded:")
    for line in found["complaints"]:
        say(f"  {line}")
    say("every checksum is right" if not found["damaged"] else "damaged:")
    for line in found["damaged"]:
        say(f"  {line}")


def _show_categories(counts: dict[str, int]) -> None:
    order = sorted(counts, key=lambda name: (-counts[name], name))
    shown, hidden = order[:MOST_CATEGORIES], order[MOST_CATEGORIES:]
    # repr: a hostile name shall not write control characters to the terminal.
    rows = [[name if name.isprintable() else repr(name), str(counts[name])] for name in shown]
    if hidden:
        rows.append([f"{len(hidden)} more", str(sum(counts[name] for name in hidden))])
    show_table("instances of each category", ["category", "instances"], rows)


def show_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    """Print a row of AP, in percent, for each of {name: metrics.json's content}."""
    rows = [[name, *map(_percent, _values(one))] for name, one in metrics.items()]
    show_table("AP in percent", ["", *COLUMNS], rows)


def _outcome(found: dict[str, Any]) -> tuple[str, ...]:
    """Return severity, kind, what was done and what `--repair` does, without this one finding's numbers."""
    done, repair = (DETAIL.sub("", found[name] or "-") for name in ("action", "repair"))
    return found["severity"], found["kind"], done, repair


def _where(found: dict[str, Any]) -> str:
    for name in ("annotation", "image"):
        if found[f"{name}_id"] is not None:
            return f"{name} {found[f'{name}_id']}"
    return Path(found["file"]).name


def _values(metrics: dict[str, Any]) -> list[float | None]:
    box, mask, huddled = metrics["bbox"], metrics["segm"], metrics["huddled"]
    values = [box["AP"], box["AP50"], mask["AP"], mask["AP50"]]
    return [*values, huddled["bbox"]["AP"], huddled["segm"]["AP"]]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
