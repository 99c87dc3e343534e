"""The digest of the operator's sources: compiled into each library, compared when it is loaded.

Free of torch and of the package: setup.py runs this file by its path, before there is anything to import.
"""

import hashlib
from pathlib import Path


def digest(csrc: Path, library: str) -> str:
    """Returns the digest of what `library`, "cpu" or "cuda", is built from: its folder and shared files."""
    files = sorted(csrc.glob("*.h")) + sorted(one for one in (csrc / library).iterdir() if one.is_file())
    total = hashlib.sha256()
    for one in files:
        total.update(one.name.encode() + b"\0" + one.read_bytes() + b"\0")
    return total.hexdigest()[:16]
