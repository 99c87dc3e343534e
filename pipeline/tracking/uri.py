"""Which MLflow a run reports to."""

import os
from pathlib import Path

DEFAULT_FILE = "mlflow.db"
# For those who begin a run elsewhere: unlike MLFLOW_TRACKING_URI, it moves no run that has begun.
DEFAULT_URI = "MRRCNN_DEFAULT_TRACKING_URI"


def resolve_uri(configured: str | None, remembered: str | None = None) -> str:
    """Return the tracking URI of a run, absolute, so that it means the same from every directory.

    The config's `tracking.uri`, else MLFLOW_TRACKING_URI, else what an earlier attempt of the run used,
    else MRRCNN_DEFAULT_TRACKING_URI, else MLflow's own default: `mlflow.db` in the working directory.
    """
    told = configured or os.environ.get("MLFLOW_TRACKING_URI")
    uri = told or remembered or os.environ.get(DEFAULT_URI) or f"sqlite:///{DEFAULT_FILE}"
    path = uri.removeprefix("sqlite:///")
    if path != uri and not path.startswith("/"):
        return f"sqlite:///{Path(path).resolve()}"
    return uri
