"""A sweep file: the rows of a table, each a config with a few keys set, and scaled-down twins of it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from configs.load import (
    ConfigError,
    apply_override,
    dotted,
    explain,
    known_keys,
    nearest_key,
    parse_config,
    read_tree,
)
from configs.scaling import scale_schedules
from configs.schema import Config, Positive, Section, Source

# MLflow's search quotes names, and folders are called by them.
Name = Annotated[str, Field(pattern=r"^[\w][\w .,+=()-]*$", max_length=80)]
Measure = Literal["AP_b", "AP_b50", "AP_b75", "AP_m", "AP_m50", "AP_m75"]
OWN_KEYS = ("preset", "evaluate_on")
# What MLflow's run of a whole table is called among its rows.
PIPELINE = "pipeline"
LONGEST_NAME = 60


class Base(Section):
    """A config file, relative to the sweep's, and dotted keys that are set in it."""

    file: str
    set: dict[str, Any] = Field(default_factory=dict)


class Row(Section):
    """One row: the AP of one network of one run.

    `cells` stand under the sweep's `columns`; `config` is one of its `configs`; `set` holds dotted config
    keys; `paper` is an id of configs/tables/paper.json.
    """

    name: Name
    cells: tuple[str, ...]
    config: str
    network: Literal["baseline", "control", "refined"] = "refined"
    set: dict[str, Any] = Field(default_factory=dict)
    paper: str | None = None


class Synthetic(Section):
    """A synthetic data set, made where the sweep runs unless it is there."""

    images: Positive
    seed: Annotated[int, Field(ge=0)] = 0


class Preset(Base):
    """A scaled-down twin: one config in the place of every row's, of only some rows; a row's keys stay."""

    rows: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    synthetic: Synthetic | None = None
    note: str = ""


class Sweep(Section):
    """A table.

    `measures` are the paper's columns. `curve` is a config key to draw AP against. `pictures` names the two
    rows whose detections are shown where they differ most. `evaluate_on` replaces `data.val` for detection:
    without annotations the rows give the COCO server's archives.
    """

    title: str
    columns: tuple[str, ...]
    measures: tuple[Measure, ...]
    configs: dict[str, Base]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    evaluate_on: Source | None = None
    curve: str | None = None
    pictures: tuple[str, str] | None = None
    presets: dict[str, Preset] = Field(default_factory=dict)
    preset: str | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self):
        names = [row.name for row in self.rows]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rows are called {name!r}; rows need names, each its own")
        if PIPELINE in names:
            raise ValueError(f"a row cannot be called {PIPELINE!r}: the table's own MLflow run is")
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"row {row.name!r} has {len(row.cells)} cells for {len(self.columns)} columns"
                )
            if row.config not in self.configs:
                raise ValueError(f"row {row.name!r}: there is no config {row.config!r} in configs")
        chosen = [name for preset in self.presets.values() for name in preset.rows or ()]
        unknown = [name for name in (*chosen, *(self.pictures or ())) if name not in names]
        if unknown:
            raise ValueError(f"there is no row {unknown[0]!r}")
        if self.preset is not None and self.preset not in self.presets:
            known = ", ".join(self.presets) or "none"
            raise ValueError(f"there is no preset {self.preset!r} here (known: {known})")
        if self.curve is not None and type(known_keys(Config).get(self.curve)) not in (int, float):
            nearest = nearest_key(self.curve, Config)
            raise ValueError(f"curve: {self.curve} is no config key that holds a number{nearest}")
        return self

    @property
    def chosen(self) -> Preset | None:
        """The preset asked for."""
        return None if self.preset is None else self.presets[self.preset]

    @property
    def chosen_rows(self) -> list[Row]:
        """The rows, or those of the preset, in the file's order."""
        wanted = self.chosen and self.chosen.rows
        return [row for row in self.rows if not wanted or row.name in wanted]


def load_sweep(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[Sweep, list[str]]:
    """Return a validated sweep and those overrides that are config keys, for every row.

    Args:
        path: a YAML file.
        overrides: `preset=NAME`, `evaluate_on...=...`, or dotted config keys.

    Raises:
        ConfigError: what is wrong with the file.
    """
    tree, others = read_tree(Path(path)), []
    for override in overrides:
        if override.partition("=")[0].split(".")[0] in OWN_KEYS:
            apply_override(tree, override)
        else:
            others.append(override)
    try:
        return Sweep.model_validate(tree), others
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Sweep)}") from None


def settings_name(overrides: list[str]) -> str:
    """Return what tells a table with these config keys from the same table without, "" for none.

    Where data and MLflow are is left out; what would make a long name of a folder becomes a hash.
    """
    told = sorted(item for item in overrides if item.split(".")[0] not in ("data", "tracking"))
    text = "".join(f"-{item}" for item in told)
    if len(text) <= LONGEST_NAME and re.fullmatch(r"[\w.,+=-]*", text):
        return text
    return "-" + hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def row_config(sweep: Sweep, path: str | Path, row: Row, overrides: list[str], data: Path | None) -> Config:
    """Return a row's resolved config: its file with its keys, then the row's, then the command line's.

    A schedule with a `reference_batch` is scaled to its batch; what anybody set stays as set.

    Args:
        sweep: of `load_sweep`.
        path: of the sweep file, which config files are relative to.
        row: one of its rows.
        overrides: `key=value` of the command line; they have the last word.
        data: folder of the preset's synthetic data set, None for the config's own data.

    Raises:
        ConfigError: names the row and what is wrong.
    """
    base = sweep.chosen or sweep.configs[row.config]
    file = Path(path).parent / base.file
    tree = read_tree(file)
    settings = [*base.set.items(), *row.set.items()]
    if data is not None:
        settings += [(f"data.{split}", _source(data, split)) for split in ("train", "val")]
    for key, value in settings:
        dotted(tree, key, value)
    for override in overrides:
        apply_override(tree, override)
    given = [key for key, _ in settings] + [override.partition("=")[0] for override in overrides]
    return scale_schedules(parse_config(tree, f"{path}: row {row.name} ({file.name})"), given)[0]


def paper_rows(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the rows of paper.json by id; AP in percent, None where the paper has none."""
    tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return {row["id"]: row for row in tree["rows"]}


def _source(folder: Path, split: str) -> dict[str, str]:
    annotations = folder / "annotations" / f"instances_{split}2017.json"
    return {"images": str(folder / f"{split}2017"), "annotations": str(annotations)}
