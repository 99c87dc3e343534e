"""Reads a config file, applies `--set key=value` overrides, and explains what is wrong with it."""

import difflib
import math
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.scaling import scale_schedules
from configs.schema import Config


class ConfigError(ValueError):
    """A config that cannot be used: one line naming file, key and remedy."""


def load_config(
    path: str | Path, overrides: tuple[str, ...] | list[str] = (), notes: list[str] | None = None
) -> Config:
    """Return the validated config of a YAML file with `key=value` overrides applied.

    A schedule with a `reference_batch` is scaled to its batch; what an override sets stays as set.

    Args:
        path: a YAML file; an absent or unreadable one is refused by name.
        overrides: dotted keys, for example `train.refine.lr=0.01`; values are YAML.
        notes: gets a line on each schedule that was written for a batch.

    Raises:
        ConfigError: file missing, no mapping, unknown key (the nearest one is named), bad value.
    """
    tree = read_tree(Path(path))
    for override in overrides:
        apply_override(tree, override)
    given = [override.partition("=")[0] for override in overrides]
    config, lines = scale_schedules(parse_config(tree, str(path)), given)
    if notes is not None:
        notes += lines
    return config


def parse_config(tree: dict[str, Any], name: str = "config") -> Config:
    """Return the validated config of a nested mapping; `name` appears in messages."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain(error)}") from None


def dump_config(config: Config) -> str:
    """Return the config as YAML, every default resolved, keys in schema order, a value in a line."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=math.inf)


def read_tree(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: it cannot be read, is not YAML, or holds something else.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the path of a YAML config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no mapping of keys; see configs/demo.yaml for the form")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key of a nested mapping from `key=value`.

    Raises:
        ConfigError: no `=`, or a value that is no YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: write it as key=value, for example train.refine.lr=0.01")
    try:
        value = _number(yaml.safe_load(text))
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not YAML; quote it") from None
    dotted(tree, key, value)


def dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key of a nested mapping, whose sections are made as needed."""
    *parents, leaf = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[leaf] = value


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as a string because it lacks the dot; users mean a number.
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def explain(error: ValidationError, section: type[BaseModel] = Config) -> str:
    """Return what is wrong with a tree in one line; unknown keys are told the section's nearest one."""
    return "; ".join(dict.fromkeys(_explain_one(item, section) for item in error.errors()))


def _explain_one(item: dict[str, Any], section: type[BaseModel]) -> str:
    location = [str(part) for part in item["loc"] if part not in ("shards", "coco")]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}{nearest_key(key, section)}"
    if item["type"] == "missing":
        remedy = f" or with --set {key}=..." if section is Config else ""
        return f"{key} is missing; set it in the file{remedy}"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = "" if isinstance(given, dict) else f" (given: {given!r})"
    return f"{key}: {message}{shown}" if key else message


def nearest_key(key: str, section: type[BaseModel]) -> str:
    """Return "; did you mean ...?" with the section's key that is most like this one, "" without any."""
    candidates = difflib.get_close_matches(key, list(known_keys(section)), n=1, cutoff=0.5)
    return f"; did you mean {candidates[0]}?" if candidates else ""


def known_keys(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every dotted key of a section with its default."""
    keys: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field.get_default(call_default_factory=True)
        for inner in _sections(field.annotation):
            keys.update(known_keys(inner, f"{prefix}{name}."))
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in get_args(annotation) for found in _sections(part)]
