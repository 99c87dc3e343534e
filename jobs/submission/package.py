"""The code that travels to a cluster: our folders with the built operator, and nothing else."""

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.child import ROOT

FOLDERS = ("configs", "jobs", "ops", "pipeline", "shards")
# Ray leaves out what git ignores, and so the compiled operator; hence a package of our own.
SUFFIXES = {".py", ".so", ".yaml", ".json", ".cpp", ".cu", ".cuh", ".h"}


@contextmanager
def packaged(extra: dict[str, str] | None = None) -> Iterator[Path]:
    """Yield the path of a zip of the code, named by its content, which is there as long as the body runs.

    Data, runs and virtual environments stay behind. `extra` adds text files by name.
    """
    content = _zip(extra or {})
    with tempfile.TemporaryDirectory(prefix="mrrcnn-package-") as folder:
        path = Path(folder, f"mrrcnn-{hashlib.sha256(content).hexdigest()[:16]}.zip")
        path.write_bytes(content)
        yield path


def _zip(extra: dict[str, str]) -> bytes:
    files = {str(path.relative_to(ROOT)): path.read_bytes() for path in _sources()}
    files.update({name: text.encode() for name, text in extra.items()})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            # ZipInfo's fixed date: the same code is the same package, which a cluster keeps.
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, files[name])
    return buffer.getvalue()


def _sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]
