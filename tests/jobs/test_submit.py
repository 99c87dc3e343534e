"""What `submit` sends, and that the job's exit code comes back."""

import zipfile

import pytest

import jobs.submit
from configs.load import parse_config
from jobs.package import write_package
from jobs.submit import assert_operator, entrypoint, submit
from shards.errors import BadInput

CONFIG = parse_config({"seed": 7, "data": {"train": "/nfs/train", "val": "/nfs/val"}})


class Client:
    """A job server that runs nothing."""

    code = 0

    def submit_job(self, entrypoint, runtime_env):
        self.entrypoint, self.package = entrypoint, runtime_env["working_dir"]
        self.variables = runtime_env["env_vars"]
        return "job-1"

    async def tail_job_logs(self, job):
        for line in ("baseline: starting\n", "report: starting\n"):
            yield line

    def get_job_info(self, job):
        return type("Details", (), {"status": "SUCCEEDED", "driver_exit_code": self.code})


@pytest.fixture
def client(monkeypatch):
    client = Client()
    monkeypatch.setattr(jobs.submit, "_client", lambda address: client)
    return client


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_log_is_shown_and_the_exit_code_passed_on(client, capsys, code):
    client.code = code
    assert submit(CONFIG, "/nfs/run", 4, "http://head:8265") == code
    assert "baseline: starting\nreport: starting\n" in capsys.readouterr().out


def test_mlflow_is_the_submitters_or_beside_the_run_but_never_in_the_jobs_own_folder(client, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    submit(CONFIG, "/nfs/runs/one", 1, "http://head:8265")
    assert client.variables == {"MLFLOW_TRACKING_URI": "sqlite:////nfs/runs/mlflow.db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    submit(CONFIG, "/nfs/runs/one", 1, "http://head:8265")
    assert client.variables == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}


def test_the_package_holds_the_code_the_operator_and_the_resolved_config(client, tmp_path, monkeypatch):
    root = tmp_path / "repository"
    for name in ("ops/_C_cpu.so", "ops/csrc/cpu/kernel.cpp", "jobs/cli.py", "configs/demo.yaml"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in (
        "runs/x/ledger.json",
        ".venv/lib/torch.py",
        "data/a.json",
        "jobs/__pycache__/cli.py",
        "ops/x.o",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setattr("jobs.package.ROOT", root)
    submit(CONFIG, "/nfs/run", 4, "http://head:8265")
    with zipfile.ZipFile(client.package) as archive:
        assert sorted(archive.namelist()) == [
            "configs/demo.yaml",
            "jobs/cli.py",
            "ops/_C_cpu.so",
            "ops/csrc/cpu/kernel.cpp",
            "submitted.yaml",
        ]
        assert b"seed: 7" in archive.read("submitted.yaml")


def test_the_same_code_is_the_same_package():
    first, second = write_package(), write_package()
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_the_job_proves_its_operator_and_then_runs_under_ray():
    check, run = entrypoint("/nfs/my run", 4, "refine").split(" && ")
    assert check.startswith("python -m jobs.submit ")
    assert "run submitted.yaml --run-dir '/nfs/my run' --workers 4 --launcher ray --address auto" in run
    assert run.endswith("--redo refine")


def test_an_operator_that_did_not_come_along_stops_the_job(monkeypatch):
    monkeypatch.setattr(
        "ops.backend_info", lambda: {"backend": "reference", "reason": "_C_cpu.so is not built"}
    )
    with pytest.raises(RuntimeError, match=r"_C_cpu\.so is not built"):
        assert_operator("cpu")
    assert_operator("reference")


@pytest.mark.parametrize("key", ["data.train", "data.val", "model.weights"])
def test_relative_paths_are_refused_since_the_job_runs_elsewhere(client, key):
    section, name = key.split(".")
    tree = CONFIG.model_dump(mode="json")
    tree[section][name] = "somewhere/else"
    with pytest.raises(BadInput, match=f"^{key}=somewhere/else: is relative"):
        submit(parse_config(tree), "/nfs/run", 1, "http://head:8265")


def test_nobody_at_the_address_is_one_line():
    with pytest.raises(BadInput, match=r"http://127\.0\.0\.1:9: no Ray job server"):
        submit(CONFIG, "/nfs/run", 1, "http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["10.1.2.3:8265", "", "head"])
def test_an_address_that_is_no_url_is_refused(address):
    with pytest.raises(BadInput, match="is no URL of a job server"):
        jobs.submit._client(address)


def test_a_relative_mlflow_file_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(BadInput, match=r"MLFLOW_TRACKING_URI=mlflow\.db: is relative"):
        jobs.submit._check_paths(CONFIG, "/shared/run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////shared/mlflow.db")
    jobs.submit._check_paths(CONFIG, "/shared/run")
