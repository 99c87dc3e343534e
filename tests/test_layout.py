"""The house keeps its walls: who may import whom, what stands at the top, how large things grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "ops": set(),
    "shards": set(),
    "configs": set(),
    "pipeline": {"ops", "shards", "configs"},
    "jobs": {"ops", "shards", "configs", "pipeline"},
}
TOP = {
    *MAY_IMPORT,
    *("tests", "docs", "benchmarks", "setup.py", "pyproject.toml", "constraints.txt"),
    *("README.md", "LICENSE", "Makefile", "Dockerfile"),
}
# What building, running and testing leave behind; git ignores all of it.
LEFT_BEHIND = {
    "build",
    "runs",
    "data",
    "mlflow.db",
    "mlruns",
    "mlartifacts",
    "mrrcnn.egg-info",
    "__pycache__",
    "shared",
}
HEAVY = {"ray", "deepspeed", "mlflow"}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> set[str]:
    """Return the top names of every import anywhere in a module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", sources(*MAY_IMPORT), ids=name)
def test_arrows_go_down_only(path):
    folder = path.relative_to(ROOT).parts[0]
    forbidden = (MAY_IMPORT.keys() | {"tests", "benchmarks"}) - MAY_IMPORT[folder] - {folder}
    assert not imported(ast.parse(path.read_text())) & forbidden


def test_the_operator_needs_torch_alone():
    import sys

    allowed = {"torch", "ops", *sys.stdlib_module_names}
    for path in sources("ops"):
        assert imported(ast.parse(path.read_text())) <= allowed, path


@pytest.mark.parametrize("path", sources(*MAY_IMPORT), ids=name)
def test_ray_deepspeed_and_mlflow_are_imported_where_they_are_used(path):
    top_level = ast.Module(body=ast.parse(path.read_text()).body, type_ignores=[])
    top_level.body = [node for node in top_level.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not imported(top_level) & HEAVY


def test_nothing_else_stands_at_the_top():
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found <= TOP | LEFT_BEHIND
    assert TOP - found <= {"docs", "benchmarks"}


@pytest.mark.parametrize("path", [*sources(*MAY_IMPORT, "tests"), ROOT / "setup.py"], ids=name)
def test_files_and_functions_fit_a_reader(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name} is too long"


CATCH_ALL = {"pipeline/tracking/tracker.py", "pipeline/tracking/delivery.py", "jobs/sweeping/running.py"}


@pytest.mark.parametrize("path", sources(*MAY_IMPORT), ids=name)
def test_every_module_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)
    # Tracking never touches training, and a row that fails does not stop the others: they alone catch all.
    if name(path) not in CATCH_ALL:
        caught = [node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        assert not [
            item
            for item in caught
            if item is None or getattr(item, "id", "") in ("Exception", "BaseException")
        ]


def test_unsafe_loading_is_not_used_anywhere():
    for path in sources(*MAY_IMPORT):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "yaml.load",
                "pickle.load",
            ):
                safe = {word.arg: ast.unparse(word.value) for word in node.keywords}.get(
                    "weights_only"
                ) == "True"
                assert safe, f"{path}:{node.lineno}"


UNPICKLERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
HARMLESS = {"UnpicklingError", "dumps"}
# One admits numpy arrays alone; the other's bytes never leave the memory of one command.
ADMITTED = {"pipeline/importing/unpickle.py": {"Unpickler"}, "shards/validation/source.py": {"marshal"}}


@pytest.mark.parametrize("path", sources(*MAY_IMPORT), ids=name)
def test_no_pickle_is_read(path):
    """A pickle runs what it likes: torch.load reads tensors only, and nothing else of the kind is called."""
    tree = ast.parse(path.read_text())
    admitted = ADMITTED.get(name(path), set())
    assert not imported(tree) & UNPICKLERS - admitted
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr in HARMLESS | admitted, f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            assert {item.name for item in node.names} <= HARMLESS, f"{path}:{node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute) and node.attr == "read_pickle":
            pytest.fail(f"{path}:{node.lineno}")
