"""The `mrrcnn` command: parses, calls one function, and turns errors into one line and an exit code."""

import errno
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.errors import BAD_INPUT, INTERRUPTED, TERMINATED
from jobs.options import (
    RUN_DIR_HELP,
    Address,
    Checkpoint,
    ConfigFile,
    LauncherOption,
    MinWorkers,
    Out,
    Parallel,
    Redo,
    RunDir,
    Set,
    SweepSet,
    Workers,
)

app = typer.Typer(
    help="Instance segmentation where instances huddle together: Mask R-CNN and Mask Refining R-CNN.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    images: Annotated[int, typer.Option(help="Training images; validation has a fifth, at least 50.")] = 600,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    huddle: Annotated[float, typer.Option(help="Share of the instances that overlap another, 0 to 1.")] = 0.6,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 128,
) -> None:
    """Write a synthetic COCO data set of instances that huddle together."""
    from shards.errors import BadInput
    from shards.synthetic.synth import write_synthetic

    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: is not empty, and two data sets would mix; choose another folder or empty it")

    made = write_synthetic(out, images, seed, huddle=huddle, size=size)
    for split, coco in made.items():
        print(f"{split}: {len(coco['images'])} images, {len(coco['annotations'])} instances in {out}")


@app.command()
def shard(
    images: Annotated[str, typer.Option(help="Folder of the images; this and the next two may be URLs.")],
    annotations: Annotated[str, typer.Option(help="COCO instances file, or an image list.")],
    out: Annotated[str, typer.Option(help="Folder to write to; made if absent.")],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes, or Ray tasks at a time.", show_default="one per core"),
    ] = None,
    on_bad: Annotated[
        Literal["fail", "skip"], typer.Option(help="Refuse errors, or skip and list them in OUT/report.json.")
    ] = "fail",
    repair: Annotated[
        bool, typer.Option("--repair", help="Do what is certain: clip, measure the masks, drop repeats.")
    ] = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Images of more pixels are an error and are not decoded.")
    ] = 178_956_970,
    shard_size_mb: Annotated[int, typer.Option(help="Largest shard, MiB.")] = 256,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster that sees images and OUT: auto, or HEAD:6379.",
            show_default="this machine's processes",
        ),
    ] = None,
) -> None:
    """Validate COCO data and write it as tar shards with an index; resumable.

    Of JPEGs it checks markers and tables, which is fast and finds every file that does not decode to its end.
    Damage inside the coded pixels, which decodes to wrong ones, is told by `mrrcnn inspect`: it decodes all.
    """
    from jobs.verbs import shard_source

    options = {"on_bad": on_bad, "repair": repair, "max_pixels": max_pixels, "shard_size_mb": shard_size_mb}
    shard_source(images, annotations, out, workers, address, options)


@app.command()
def inspect(
    directory: Annotated[str, typer.Argument(help="A directory of shards, or a URL of one.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the two pictures; a URL needs one.", show_default="the directory"),
    ] = None,
) -> None:
    """Verify every checksum of shards, decode every image; statistics (with a picture), a contact sheet."""
    from jobs.verbs import inspect_directory

    inspect_directory(directory, out)


@app.command()
def run(
    config: ConfigFile,
    set_: Set = None,
    run_dir: Annotated[
        str | None, typer.Option(help=RUN_DIR_HELP, show_default="runs/ and the config's name")
    ] = None,
    workers: Workers = None,
    launcher: LauncherOption = "ray",
    address: Address = None,
    redo: Redo = None,
    min_workers: MinWorkers = None,
) -> None:
    """Run the stages that are not done; the same command again resumes."""
    from jobs.verbs import run_config

    run_config(config, set_, run_dir, workers, launcher, address, redo, min_workers)


@app.command()
def submit(
    config: ConfigFile,
    run_dir: Annotated[str, typer.Option(help=f"{RUN_DIR_HELP} A full path.")],
    address: Annotated[str, typer.Option(help="The head's job server.")] = "http://127.0.0.1:8265",
    set_: Set = None,
    workers: Annotated[int, typer.Option(min=1, help="Ranks on the cluster.")] = 1,
    redo: Redo = None,
    min_workers: MinWorkers = None,
) -> None:
    """Run as a job of a Ray cluster, follow its log, and end with its exit code."""
    from jobs.verbs import submit_config

    raise typer.Exit(submit_config(config, set_, run_dir, workers, address, redo, min_workers))


@app.command()
def sweep(
    table: Annotated[str, typer.Argument(metavar="SWEEP", help="YAML, such as configs/tables/table3.yaml.")],
    set_: SweepSet = None,
    run_dir: Annotated[
        str, typer.Option(help=f"{RUN_DIR_HELP} Tables in the same one share what they have in common.")
    ] = "runs/tables",
    workers: Workers = None,
    launcher: LauncherOption = "ray",
    address: Address = None,
    parallel: Parallel = None,
    min_workers: MinWorkers = None,
) -> None:
    """Do a table's rows that are not done, and compare them with the paper and each other."""
    from jobs.sweeping.sweep import run_sweep
    from jobs.verbs import default_workers

    ranks = default_workers(workers, launcher, 1)
    raise typer.Exit(run_sweep(table, set_ or [], run_dir, ranks, launcher, address, parallel, min_workers))


@app.command()
def sync(run_dir: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Deliver to MLflow what a dead server missed."""
    from pipeline.tracking.tracker import sync as deliver

    done = deliver(run_dir)
    print(f"{done['uri']}: {done['points']} points delivered")


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    shards: Annotated[str, typer.Option(metavar="DIR", help="A directory of shards, or a URL of one.")],
    out: Out,
    set_: Set = None,
    workers: Workers = None,
    launcher: LauncherOption = "local",
    address: Address = None,
) -> None:
    """Box, mask and huddled AP of a weights file; `--set test.KEY=VALUE` sets how it detects."""
    from jobs.verbs import evaluate_checkpoint

    evaluate_checkpoint(checkpoint, shards, out, set_, workers, launcher, address)


@app.command()
def predict(
    checkpoint: Checkpoint,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Out,
    score: Annotated[float, typer.Option(min=0, max=1, help="Least score that the pictures show.")] = 0.5,
    set_: Set = None,
) -> None:
    """Detect on image files: results.json and a picture of each; `--set test.KEY=VALUE` as in evaluate."""
    from jobs.verbs import predict_files

    predict_files(checkpoint, images, out, score, set_ or [])


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help="A Mask R-CNN checkpoint: .pth or .pkl.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write; a report is put beside it.")],
    categories: Annotated[
        Path | None,
        typer.Option(
            help="COCO annotation file of your own data: new class layers for its categories.",
            show_default="the file's own classes",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="New class layers for so many categories, without background.",
            show_default="the file's own classes",
        ),
    ] = None,
    keep_classes: Annotated[
        bool,
        typer.Option("--keep-classes", help="Keep the file's class layers: they are of --categories."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="model.KEY of a checkpoint with a changed setup; repeatable.",
        ),
    ] = None,
) -> None:
    """Convert a torchvision, detectron2 or maskrcnn-benchmark Mask R-CNN into a weights file."""
    from jobs.weights import import_file

    import_file(file, out, categories, num_classes, keep_classes, set_ or [])


@app.command("export-weights")
def export_weights(
    checkpoint: Checkpoint,
    to: Annotated[Literal["torchvision", "detectron2"], typer.Option(help="Whose names to write.")],
    out: Annotated[Path, typer.Option(help="A .pth file, or for detectron2 also .pkl.")],
) -> None:
    """Write a weights file's Mask R-CNN for torchvision or detectron2."""
    from jobs.weights import export_file

    export_file(checkpoint, to, out)


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run directories to compare.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to.",
            show_default="RUN_DIR/report; of several ./comparison",
        ),
    ] = None,
) -> None:
    """Tables, figures and pictures of runs: Markdown, PNG, one self-contained HTML."""
    from jobs.verbs import report_runs

    report_runs(run_dirs, out)


@app.command()
def bench(
    what: Annotated[
        Literal["ops", "data", "train", "eval"],
        typer.Argument(
            help="ops: Shape-aware RoIAlign; data: sharding and loading; train: checkpoints and restarts; "
            "eval: scoring."
        ),
    ],
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Turns of every contender.", show_default="ops 10, data 5, train 5, eval 3"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file.", show_default="none")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="ops: where to measure.", show_default="cpu")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="ops: CPU threads; repeatable.", show_default="1")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="data: processes that shard, and that load; train: ranks.", show_default="2"
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="data, eval: made images.", show_default="data 4000, eval 5000"),
    ] = None,
    detections: Annotated[
        int | None, typer.Option(min=1, help="eval: made results an image.", show_default="100")
    ] = None,
    coco: Annotated[
        Path | None,
        typer.Option(help="data: a folder with train2017/ and annotations/.", show_default="synthetic"),
    ] = None,
    only: Annotated[
        Literal["sharding", "loading", "memory", "planning"] | None,
        typer.Option(help="data: one part of it.", show_default="all"),
    ] = None,
) -> None:
    """Speed as ratios against peers, alternating in one run."""
    from jobs.bench import run_benchmark

    asked = {"repeats": repeats, "out": out, "device": device, "threads": threads}
    asked |= {"workers": workers, "images": images, "coco": coco, "only": only, "detections": detections}
    raise typer.Exit(run_benchmark(what, asked))


@app.command()
def doctor(
    run_dir: Annotated[Path, typer.Option(help="Where runs will be; its file system is tried.")] = Path(
        "runs"
    ),
) -> None:
    """What this machine has, what is missing, and what to do about it."""
    from jobs.doctor import examine

    raise typer.Exit(examine(run_dir))


@app.command()
def demo(
    run_dir: RunDir = "runs/demo",
    seed: Annotated[int, typer.Option(help="Seed of the training; the images stay the same.")] = 0,
    set_: Set = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ranks.", show_default="one per GPU, at most 2; 2 without")
    ] = None,
    launcher: LauncherOption = "ray",
    address: Address = None,
) -> None:
    """Run everything on synthetic data: what `make demo` runs."""
    from jobs.demo import run_demo

    run_demo(run_dir, seed, set_, workers, launcher, address)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 on success, 2 on bad usage or input, 1 on failure."""
    try:
        code = app(args=arguments, prog_name="mrrcnn", standalone_mode=False)
    except typer.TyperException as error:
        # Without any argument the message is the help itself.
        message = error.format_message()
        if not arguments and len(sys.argv) < 2:
            print(message)
            sys.exit(BAD_INPUT)
        _fail(BAD_INPUT, f"{message} (see mrrcnn --help)")
    except (ValueError, RuntimeError) as error:
        code = _exit_code(error)
        if code is None:
            raise
        _fail(code, str(error))
    except OSError as error:
        fault = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        # A place the user named cannot be used; a full or failing disk is nobody's bad usage.
        usage = FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError | PermissionError
        if isinstance(error, usage):
            _fail(BAD_INPUT, f"{fault}; use another place")
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        _fail(1, f"{fault}; {'make room' if full else 'mend that'}, then the same command goes on")
    if code == INTERRUPTED:
        _fail(code, "interrupted; the same command goes on")
    sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    from configs.load import ConfigError
    from jobs.errors import JobFailed, Stopped
    from pipeline.lease import LeaseHeld, StaleAttempt
    from pipeline.tracking.tracker import NotDelivered
    from shards.errors import BadInput, CutShort

    if isinstance(error, BadInput | ConfigError | LeaseHeld):
        return BAD_INPUT
    if isinstance(error, Stopped):
        return TERMINATED
    return 1 if isinstance(error, CutShort | JobFailed | StaleAttempt | NotDelivered) else None


def _fail(code: int, message: str) -> None:
    from shards.storage.secrets import redact

    print(f"mrrcnn: {redact(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
