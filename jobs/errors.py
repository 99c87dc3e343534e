"""Failures of a job that are told in one line, and the exit codes of the command."""

BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
GIVE_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds it"


class JobFailed(RuntimeError):
    """The workers failed; the message is one line, for the user."""


class Stopped(JobFailed):
    """The job was asked to end (SIGTERM), and did; the message says what is saved, or what failed first."""
