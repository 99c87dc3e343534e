"""How a command's end is told to MLflow."""

from types import SimpleNamespace

import pytest

from jobs.errors import JobFailed, Stopped
from jobs.track import closing


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (JobFailed("x"), "FAILED"),
        (Stopped("asked"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_dead_mlflow_costs_little_of_the_grace_after_sigterm_and_ctrl_c(error, status):
    told = []

    def end():
        with closing(SimpleNamespace(close=lambda *how: told.append(how))):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            end()
    else:
        end()
    ((waits, how),) = told
    assert how == status and (waits <= 5) == (status == "KILLED")
