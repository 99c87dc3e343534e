"""Paths and addresses that mean another place on the cluster, or none: refused before anything is sent."""

import pytest

import jobs.submission.submit
from configs.load import parse_config
from jobs.submission.submit import submit
from shards.errors import BadInput
from tests.jobs.submission.job_server import CONFIG, HEAD


@pytest.mark.parametrize("key", ["data.train", "data.val", "data.cache_dir", "model.weights"])
def test_relative_paths_are_refused_since_the_job_runs_elsewhere(client, key):
    section, name = key.split(".")
    tree = CONFIG.model_dump(mode="json")
    tree[section][name] = "somewhere/else"
    with pytest.raises(BadInput, match=f"^{key}=somewhere/else: is relative"):
        submit(parse_config(tree), "/nfs/run", 1, HEAD)


def test_nobody_at_the_address_is_one_line():
    with pytest.raises(BadInput, match=r"http://127\.0\.0\.1:9: no Ray job server"):
        submit(CONFIG, "/nfs/run", 1, "http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["10.1.2.3:8265", "", "head"])
def test_an_address_that_is_no_url_is_refused(address):
    with pytest.raises(BadInput, match="is no URL of a job server"):
        jobs.submission.submit.connect(address)


def test_a_relative_mlflow_file_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(BadInput, match=r"MLFLOW_TRACKING_URI=mlflow\.db: is relative"):
        jobs.submission.submit._check_paths(CONFIG, "/shared/run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////shared/mlflow.db")
    jobs.submission.submit._check_paths(CONFIG, "/shared/run")
