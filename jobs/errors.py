"""Failures of a job that are told in one line."""


class JobFailed(RuntimeError):
    """The workers failed; the message is one line, for the user."""
