"""What a command that was submitted before does when it is given again with `--redo`."""

import pytest

from jobs.submission.submit import submit
from shards.errors import BadInput
from tests.jobs.submission.job_server import CONFIG, HEAD


def test_a_redo_that_ended_while_nobody_looked_is_not_begun_anew_unasked(client):
    client.code = 1
    submit(CONFIG, "/nfs/run", 4, HEAD, "refine")
    client.code = 0
    assert submit(CONFIG, "/nfs/run", 4, HEAD, "refine") == 0, "the first had failed: the second goes on"
    done = client.jobs[1].submission_id
    with pytest.raises(BadInput, match=rf"job {done} has done this --redo refine .*job delete {done} --a"):
        submit(CONFIG, "/nfs/run", 4, HEAD, "refine")
    assert len(client.jobs) == 2
    submit(CONFIG, "/nfs/run", 4, HEAD)
    assert submit(CONFIG, "/nfs/run", 4, HEAD, "refine") == 0, "another job came after it"
    del client.jobs[-1]
    assert submit(CONFIG, "/nfs/run", 4, HEAD, "refine") == 0, "its job was deleted"
