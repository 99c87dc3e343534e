"""What the terminal shows: plain lines anywhere, a progress bar and tables where there is a terminal."""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POLL_S = 0.3
COUNT = re.compile(r"(\d+)(?:/| of )(\d+)\b")


def say(line: str) -> None:
    """Print one line at once, also into a pipe or a job's log."""
    print(line, flush=True)


def show_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table: drawn on a terminal, one plain line a row otherwise."""
    if not sys.stdout.isatty():
        shown = [columns, *rows] if any(columns) else rows
        widths = [max(len(row[place]) for row in shown) for place in range(len(columns))]
        say(title)
        for row in shown:
            say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # Single words stay whole, for two may begin alike; sentences give the room.
    wraps = [any(" " in row[place] for row in rows) for place in range(len(columns))]
    heads = [
        Column(name, no_wrap=not wrap, overflow="fold") for name, wrap in zip(columns, wraps, strict=True)
    ]
    table = Table(*heads, title=Text(title), show_header=any(columns))
    for row in rows:
        # Text: brackets in a cell are no markup.
        table.add_row(*map(Text, row))
    Console().print(table)


@contextmanager
def following(path: Path) -> Iterator[None]:
    """Show the lines that workers append to a file while the body runs, wherever they run."""
    path.touch()
    ended = threading.Event()
    with _display() as show:
        thread = threading.Thread(target=_follow, args=(path, show, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _follow(path: Path, show: Any, ended: threading.Event) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        pending = ""
        last = False
        while not last:
            last = ended.wait(POLL_S)
            pending += file.read()
            *lines, pending = pending.split("\n")
            for line in lines:
                show(line)


@contextmanager
def _display() -> Iterator[Any]:
    if not sys.stdout.isatty():
        yield lambda line: say(f"  {line}")
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("  {task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("starting workers", total=None)

        def show(line: str) -> None:
            count = COUNT.search(line)
            if count:
                progress.update(task, description=line, completed=int(count[1]), total=int(count[2]))
            else:
                progress.console.print(f"  {line}", highlight=False, markup=False)

        yield show
