"""What a finished run shows: AP of the networks side by side, and where to look next."""

import json
from pathlib import Path
from typing import Any

from jobs.console import say, show_table
from jobs.ledger import Ledger

TITLES = {"baseline": "Mask R-CNN", "control": "control", "refined": "MR R-CNN"}
COLUMNS = ("box AP", "box AP50", "mask AP", "mask AP50", "huddled box AP", "huddled mask AP")
MOST_PICTURES = 8


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


def show_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    """Print a row of AP, in percent, for each of {name: metrics.json's content}."""
    rows = [[name, *map(_percent, _values(one))] for name, one in metrics.items()]
    show_table("AP in percent", ["", *COLUMNS], rows)


def _values(metrics: dict[str, Any]) -> list[float | None]:
    box, mask, huddled = metrics["bbox"], metrics["segm"], metrics["huddled"]
    values = [box["AP"], box["AP50"], mask["AP"], mask["AP50"]]
    return [*values, huddled["bbox"]["AP"], huddled["segm"]["AP"]]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
