"""Ranks hear of SIGTERM, of the driver's word and of Ray's notice, each as it is meant."""

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from jobs.errors import Stopped
from jobs.launching.preemption import Listener, passing_on
from pipeline.notice import Notice


@pytest.fixture(autouse=True)
def handler():
    """Put back whatever SIGTERM meant."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def test_nothing_is_asked_until_somebody_asks(tmp_path):
    listener = Listener(str(tmp_path / "stop"))
    assert listener() == Notice()
    (tmp_path / "stop").touch()
    assert listener() == listener() == Notice(save=True, stop=True)


def test_sigterm_to_a_rank_stops_it_at_the_end_of_its_step():
    listener = Listener(None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert listener() == Notice(save=True, stop=True)


def test_sigterm_to_the_driver_is_passed_on_and_means_what_it_did_afterwards(tmp_path, handler):
    stop = tmp_path / "stop"
    with passing_on(str(stop)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exists()
    assert signal.getsignal(signal.SIGTERM) == handler
    with passing_on(None):
        assert signal.getsignal(signal.SIGTERM) == handler


def test_a_second_sigterm_means_what_it_did_before_unless_it_is_the_first_sent_twice(tmp_path, monkeypatch):
    heard, stop = [], str(tmp_path / "stop")
    signal.signal(signal.SIGTERM, lambda *_: heard.append("outer"))
    with passing_on(stop):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        monkeypatch.setattr("jobs.launching.preemption.SAME_S", 0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert heard == ["outer"]


def test_a_disk_that_takes_no_stop_file_keeps_no_rank_of_this_process_from_stopping(tmp_path):
    """What the handler raised would end the training before it has saved."""
    with pytest.raises(Stopped, match="asked to stop"), passing_on(str(tmp_path / "full" / "stop")):
        listener = Listener(str(tmp_path / "full" / "stop"))
        os.kill(os.getpid(), signal.SIGTERM)
        assert listener() == Notice(save=True, stop=True)


def test_other_ranks_hear_of_sigterm_as_soon_as_the_disk_takes_the_stop_file(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.launching.preemption.AGAIN_S", 0.01)
    stop = tmp_path / "full" / "stop"
    with passing_on(str(stop)):
        os.kill(os.getpid(), signal.SIGTERM)
        stop.parent.mkdir()
        deadline = time.monotonic() + 10
        while not stop.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.exists()


def test_a_rank_in_the_drivers_own_process_does_not_keep_sigterm_from_it(tmp_path, monkeypatch):
    """Else the next stage would begin after the last step of this one, and no second one end it."""
    heard, stop = [], tmp_path / "stop"
    signal.signal(signal.SIGTERM, lambda *_: heard.append("outer"))
    with passing_on(str(stop)):
        listener = Listener(str(stop))
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exists() and listener() == Notice(save=True, stop=True)
        assert heard == []
        monkeypatch.setattr("jobs.launching.preemption.SAME_S", 0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["outer"]


def test_rays_notice_asks_for_one_checkpoint_and_not_to_stop(monkeypatch):
    """Ray moves the workers itself; those of other nodes train on until it does."""
    told = SimpleNamespace(preemption_info=None)
    context = SimpleNamespace(get_train_context=lambda: SimpleNamespace(preemption_context=told))
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.execution.context", context)
    listener = Listener(None)
    assert listener() == Notice()
    told.preemption_info = object()
    assert [listener(), listener()] == [Notice(save=True), Notice()]


def test_rays_private_names_are_where_they_were():
    """The installed Ray, not a stand-in: an upgrade that moves them is noticed here."""
    from ray.train.v2._internal.execution.context import TrainContext, get_train_context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    assert "preemption_context" in TrainContext.__dataclass_fields__
    assert PreemptionContext().preemption_info is None
    with pytest.raises(RuntimeError):
        get_train_context()
    assert Listener(None)() == Notice()


def test_a_thread_that_can_set_no_handler_listens_to_the_rest(tmp_path):
    heard = []
    (tmp_path / "stop").touch()
    thread = threading.Thread(target=lambda: heard.append(Listener(str(tmp_path / "stop"))()))
    thread.start()
    thread.join()
    assert heard == [Notice(save=True, stop=True)]
