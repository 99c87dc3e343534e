"""What is looked at before anything starts: a weights file that cannot be read just now is not missing."""

import errno
import os

import pytest

import jobs.checks
from configs.load import parse_config
from jobs.checks import check_weights
from shards.errors import BadInput


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOENT, BadInput), (errno.EACCES, BadInput), (errno.EIO, OSError), (errno.ESTALE, OSError)],
)
def test_a_file_server_that_is_away_does_not_make_the_weights_wrong(monkeypatch, code, kind):
    def fail(path, _):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(jobs.checks, "open", fail, raising=False)
    config = parse_config({"data": {"train": "t", "val": "v"}, "model": {"weights": "/weights"}})
    with pytest.raises(kind, match=os.strerror(code)):
        check_weights(config)
