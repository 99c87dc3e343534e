"""What C libraries write to the standard error, for those that tell of damage nowhere else."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_ERROR = 2


@contextmanager
def heard_errors() -> Iterator[list[str]]:
    """Yield a list that holds, after the body, the lines written to the standard error's file in it.

    They are not shown. Of the whole process: what another thread writes meanwhile is taken as well.
    """
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(STANDARD_ERROR)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), STANDARD_ERROR)
            try:
                yield lines
            finally:
                os.dup2(kept, STANDARD_ERROR)
                file.seek(0)
                lines += file.read().decode(errors="replace").splitlines()
    finally:
        os.close(kept)
