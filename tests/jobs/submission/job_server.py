"""A stand-in of Ray's job server, for tests of what is sent to it."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

from ray.job_submission import JobStatus

from configs.load import parse_config

HEAD = "http://head:8265"
CONFIG = parse_config({"seed": 7, "data": {"train": "/nfs/train", "val": "/nfs/val"}})


class Client:
    """A job server that runs nothing: its jobs end with `code` when their log has been told."""

    def __init__(self, code=0, log=("baseline: starting\n", "report: starting\n")):
        self.code, self.log, self.jobs, self.stopped = code, log, [], []

    def submit_job(self, entrypoint, runtime_env, submission_id, metadata):
        if submission_id in [job.submission_id for job in self.jobs]:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.entrypoint, self.variables = entrypoint, runtime_env["env_vars"]
        with zipfile.ZipFile(runtime_env["working_dir"]) as archive:
            self.package = {name: archive.read(name) for name in archive.namelist()}
        self.path = Path(runtime_env["working_dir"])
        self.add(submission_id, metadata)
        return submission_id

    def add(self, name, metadata, status=JobStatus.RUNNING):
        job = SimpleNamespace(
            submission_id=name, metadata=metadata, status=status, driver_exit_code=None, message=None,
            start_time=len(self.jobs) + 1,
        )  # fmt: skip
        self.jobs.append(job)
        return job

    def list_jobs(self):
        return list(self.jobs)

    async def tail_job_logs(self, name):
        for text in self.log:
            yield text
        self.end(name, JobStatus.FAILED if self.code else JobStatus.SUCCEEDED, self.code)

    def end(self, name, status, code):
        job = self.get_job_info(name)
        job.status, job.driver_exit_code = status, code

    def get_job_info(self, name):
        return next(job for job in self.jobs if job.submission_id == name)

    def stop_job(self, name):
        self.stopped.append(name)
        self.end(name, JobStatus.STOPPED, None)
