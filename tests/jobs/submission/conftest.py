"""A client of a job server that runs nothing."""

import pytest

import jobs.submission.follow
import jobs.submission.submit
from tests.jobs.submission.job_server import Client


@pytest.fixture
def client(monkeypatch):
    client = Client()
    monkeypatch.setattr(jobs.submission.submit, "connect", lambda address: client)
    monkeypatch.setattr(jobs.submission.follow, "POLL_S", 0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return client
