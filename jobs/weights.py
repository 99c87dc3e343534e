"""The two verbs that exchange weights with other programs."""

from collections.abc import Callable
from pathlib import Path

from configs.load import ConfigError, apply_override, parse_config
from configs.schema import Model
from jobs.console import say
from shards.errors import BadInput
from shards.storage.files import write_atomic


def import_file(
    file: Path, out: Path, categories: Path | None, num_classes: int | None, keep: bool, overrides: list[str]
) -> None:
    """Import a checkpoint, write the weights file and its report, and show the report's head."""
    if categories is not None and num_classes is not None:
        raise ConfigError("--num-classes: --categories counts them already; give one of the two")
    if keep and categories is None:
        raise ConfigError("--keep-classes: which categories they are is not said; add --categories FILE")
    _check_place(out)
    adjust = _adjusting(overrides)
    from pipeline.importing.categories import read_categories
    from pipeline.importing.importer import import_weights
    from pipeline.importing.words import summary, whole_report

    listed = None if categories is None else read_categories(categories)
    found = import_weights(file, out, listed, num_classes, keep, adjust)
    report = out.with_suffix(".import.txt")
    write_atomic(report, whole_report(found).encode())
    for line in summary(found):
        say(line)
    say(f"{out}: weights; {report}: every tensor and category")


def export_file(checkpoint: Path, target: str, out: Path) -> None:
    """Export a weights file and say by which rules the target has to compute."""
    _check_folder(out)
    from pipeline.importing.export import TARGETS, export_weights
    from pipeline.importing.words import profile_in_words, rows_in_words, to_build, unlike

    found, source = export_weights(checkpoint, target, out), TARGETS[target]
    say(f"{out}: Mask R-CNN under {target}'s names; the weights are made for these rules:")
    for line in profile_in_words(found.model):
        say(f"  {line}")
    say(rows_in_words(found.categories, found.first_row))
    say(f"{found.listing}: all of them; import-weights takes it as --categories with --keep-classes")
    say(f"{target} needs {to_build(found.model, source, len(found.categories))}")
    others = unlike(found.model, source)
    if others:
        say(
            f"warning: {target} does not compute so by itself, and gives other outputs until it does: "
            + ", ".join(others)
        )


def _check_place(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise BadInput(f"--out {out}: is safetensors; give it the ending .safetensors")
    _check_folder(out)


def _check_folder(out: Path) -> None:
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}; make it first")


def _adjusting(overrides: list[str]) -> Callable[[Model], Model]:
    for override in overrides:
        if not override.startswith("model.") or "=" not in override:
            raise ConfigError(f"--set {override}: only model.KEY=VALUE can be said of a checkpoint")

    def adjust(model: Model) -> Model:
        tree = {"data": {"train": "-", "val": "-"}, "model": model.model_dump()}
        for override in overrides:
            apply_override(tree, override)
        return parse_config(tree, "--set").model

    return adjust
