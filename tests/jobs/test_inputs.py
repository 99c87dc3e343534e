"""What a stage depends on: a file that cannot be read just now is no file that is not there."""

import errno
import os

import pytest

import jobs.inputs
from jobs.inputs import file_hash
from shards.errors import BadInput


@pytest.mark.parametrize(
    ("code", "kind"),
    [(code, BadInput) for code in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES)]
    + [(code, OSError) for code in (errno.EIO, errno.ESTALE, errno.EMFILE)],
)
def test_a_file_server_that_is_away_is_no_bad_input(monkeypatch, code, kind):
    def fail(path):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(jobs.inputs, "hash_file", fail)
    with pytest.raises(kind, match=rf"{os.strerror(code)}.*weights|weights.*{os.strerror(code)}"):
        file_hash("/weights")
