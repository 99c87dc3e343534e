"""Options that several verbs of the command share: their types, names and explanations."""

from pathlib import Path
from typing import Annotated, Literal

import typer

RUN_DIR_HELP = "Run directory on a POSIX file system that every node sees."
Stage = Literal["shard", "baseline", "refine", "control", "evaluate", "report"]
Launcher = Literal["ray", "torchrun", "local"]

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML config, such as configs/demo.yaml.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable.")
]
RunDir = Annotated[str, typer.Option(help=RUN_DIR_HELP)]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Ranks; local has one.", show_default="one per GPU of this machine, or 1 without"
    ),
]
LauncherOption = Annotated[
    Launcher, typer.Option(help="ray: Ray Train; torchrun: this machine; local: one process, no cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A running Ray cluster: auto, or HEAD:6379.", show_default="a private one on this machine"
    ),
]
MinWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Go on with as few when nodes of the cluster are lost, and grow again when they are back.",
        show_default="as many as --workers: wait for lost ones",
    ),
]
Redo = Annotated[
    Stage | None,
    typer.Option(
        help="Do this stage and what depends on it again; until the pipeline's end it goes on.",
        show_default="none",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder to write to; made if absent.")]
Checkpoint = Annotated[Path, typer.Argument(help="A weights.safetensors of a run.")]
SweepSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="preset=mini for the scaled-down twin, or a config key for every row; repeatable.",
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rows at a time, over Ray.",
        show_default="as many as the GPUs hold; 1 without, or with --min-workers",
    ),
]
