"""MLflow that can never touch training: the driver notes events, a background thread delivers them.

Workers know nothing of MLflow. The driver appends to the outbox (`pipeline.tracking.outbox`), which is a file
and cannot be down; one daemon thread brings outbox and metrics to the server (`pipeline.tracking.delivery`),
with short timeouts and growing pauses. What a dead server misses, the next attempt or
`mrrcnn sync RUN` delivers.
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.lease import StaleAttempt, check_attempt
from pipeline.tracking.delivery import PIPELINE, STATE, Delivery, write_state
from pipeline.tracking.outbox import append_event, outbox_damage
from pipeline.tracking.uri import resolve_uri
from shards.errors import BadInput
from shards.storage.files import encode_json, write_atomic
from shards.storage.secrets import redact

log = logging.getLogger(__name__)
Opened = TypeVar("Opened")
PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0
COPY = "tracking.previous.json"
# The user's own settings hold; MLflow's defaults would hold a call for minutes and speak to others.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class NotDelivered(RuntimeError):
    """MLflow could not be reached; all is still in the outbox."""


class Tracker:
    """A run's line to MLflow: one parent run for the pipeline, one child run a stage.

    No method raises because of MLflow or waits for it, `close` excepted, which waits as long as told. Those
    that note something raise StaleAttempt when a newer attempt at the run directory has begun.
    """

    def __init__(
        self,
        run_dir: str | Path,
        uri: str | None,
        experiment: str = "mrrcnn",
        attempt: int = 1,
        pause_s: float = PAUSE_S,
        leased: Path | None = None,
    ):
        """Begin delivering, what an earlier attempt left undelivered included.

        Args:
            run_dir: the run directory; made if absent.
            uri: the config's `tracking.uri`; None resolves as `resolve_uri` says.
            experiment: MLflow's experiment, made if absent.
            attempt: the number of the lease, kept as a tag; once a newer one has begun, nothing can be noted
                any more.
            pause_s: between two looks at the outbox.
            leased: the folder that holds this lease, by default the run directory.
        """
        self._run_dir, self._attempt, self._pause_s = Path(run_dir).resolve(), attempt, pause_s
        self._leased = leased or self._run_dir
        self._run_dir.mkdir(parents=True, exist_ok=True)
        earlier = _read_state(self._run_dir)
        self._uri = resolve_uri(uri, earlier.get("uri"))
        damage = outbox_damage(self._run_dir, earlier["events"]) if earlier else ""
        # On the disk before the broken outbox is set aside: nothing else tells what must be noted anew.
        earlier["lost"] = bool(damage) or earlier.get("lost", False)
        self._state = _begin_state(self._run_dir, earlier, redact(self._uri), experiment)
        if damage:
            self._begin_outbox_anew(damage)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._complete = self._warned = self._missed = False
        self._flag_kept = True
        self._append("started", stage=PIPELINE, attempt=attempt)
        # Without MLflow the thread says so, and the outbox keeps all.
        with contextlib.suppress(ImportError):
            _import_mlflow()
        self._thread = threading.Thread(target=self._work, name="mlflow-delivery", daemon=True)
        self._thread.start()

    def has_lost_events(self) -> bool:
        """Return whether events were lost, and not noted anew since: note again what earlier attempts noted.

        What has reached MLflow already stays as it is there. `noted_anew` ends it.
        """
        return self._state["lost"]

    def noted_anew(self) -> None:
        """Note that all was noted again; nothing is lost then but what this tracker could not note either."""
        self._state["lost"] = self._missed
        self._keep_flag()

    def stage_started(self, stage: str, attempt: int, inputs: str = "") -> None:
        """Note that a stage begins or goes on; another `inputs`, its training's name, makes another run."""
        self._append("started", stage=stage, attempt=attempt, inputs=inputs)

    def stage_finished(self, stage: str, status: str = "FINISHED") -> None:
        """Note a stage's end; status is MLflow's: FINISHED, FAILED or KILLED."""
        self._append("finished", stage=stage, status=status)

    def log_params(self, params: dict[str, Any], stage: str = PIPELINE) -> None:
        """Note parameters; nested dicts become dotted keys. One that MLflow has already stays as it is."""
        self._append("params", stage=stage, params={k: redact(str(v)) for k, v in flatten(params).items()})

    def log_tags(self, stage: str, tags: dict[str, Any]) -> None:
        """Note tags, by which `mlflow.search_runs` finds runs; a new value replaces the old."""
        self._append("tags", stage=stage, tags={key: redact(str(value)) for key, value in tags.items()})

    def log_metrics(self, stage: str, metrics: dict[str, Any], step: int = 0) -> None:
        """Note single numbers, such as AP; nested dicts become dotted keys, undefined ones are left out.

        A step that a key has had already is not delivered again: give the attempt as the step.
        """
        self._append(
            "metrics", stage=stage, metrics=flatten(metrics), step=step, time_ms=int(time.time() * 1000)
        )

    def log_dataset(self, stage: str, name: str, digest: str, source: str, context: str = "training") -> None:
        """Note a stage's data set: its shards' hash and directory."""
        self._append("dataset", stage=stage, name=name, digest=digest, source=redact(source), context=context)

    def log_artifact(self, stage: str, path: str | Path, folder: str = "") -> None:
        """Note a file, or a directory with all in it, to be copied to MLflow; it must stay until then."""
        self._append("artifact", stage=stage, path=str(Path(path).resolve()), folder=folder)

    def state(self) -> dict[str, Any]:
        """Return {"uri", "experiment", "runs": {"pipeline": id, stage: id}}, ids as far as they are known."""
        return {
            "uri": self._state["uri"],
            "experiment": self._state["experiment"],
            "runs": dict(self._state["runs"]),
        }

    def close(self, timeout: float = 30.0, status: str = "FINISHED") -> bool:
        """Return whether all was delivered within `timeout` seconds; warns if not."""
        self._append("finished", stage=PIPELINE, status=status)
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        if not self._complete:
            log.warning(
                "MLflow at %s does not have all of this run; later: mrrcnn sync %s",
                self._state["uri"],
                self._run_dir,
            )
        return self._complete

    def _check(self) -> None:
        check_attempt(self._leased, self._attempt)

    def _begin_outbox_anew(self, damage: str) -> None:
        path = self._run_dir / "outbox.jsonl"
        aside = path.with_name("outbox.broken.jsonl")
        log.warning("%s is damaged: %s; set aside as %s and noted anew", path, damage, aside.name)
        if path.exists():
            os.replace(path, aside)
        self._state["events"] = 0
        write_state(self._run_dir, self._state)

    def _append(self, kind: str, **fields: Any) -> None:
        try:
            self._check()
            append_event(self._run_dir, {"kind": kind, **fields})
        except StaleAttempt:
            self._closing.set()
            raise
        except OSError as error:
            path = self._run_dir / "outbox.jsonl"
            log.warning("%s: cannot be noted for MLflow (%s); the same command again notes it", path, error)
            self._missed = self._state["lost"] = True
            self._flag_kept = False
        if not self._flag_kept:
            self._keep_flag()
        self._wake.set()

    def _keep_flag(self) -> None:
        # A full disk does not take it either; the next event is the next chance.
        with contextlib.suppress(OSError):
            write_state(self._run_dir, self._state)
            self._flag_kept = True

    def _work(self) -> None:
        # Loader processes of a killed driver may hold the lock for the seconds that they outlive it.
        lock = self._opened(lambda: _lock(self._run_dir))
        if lock is None:
            return
        try:
            delivery = self._opened(lambda: Delivery(self._run_dir, self._uri, self._state, self._check))
            if delivery is not None:
                self._deliver_until_closed(delivery)
        finally:
            _unlock(lock)

    def _opened(self, opening: Callable[[], Opened | None]) -> Opened | None:
        """Return what `opening` returns once it is there; None if it is not when all is over."""
        while True:
            closing = self._closing.is_set()
            found = self._try_to_open(opening)
            if found is not None or closing:
                return found
            self._closing.wait(self._pause_s)

    def _try_to_open(self, opening: Callable[[], Opened | None]) -> Opened | None:
        try:
            found = opening()
        except OSError as error:
            # The thread's end would be the end of all delivery, for a moment in which a disk was away.
            self._warn_once("%s: cannot be read for MLflow, it is tried again: %s", self._run_dir, error)
            return None
        self._warned = False
        return found

    def _deliver_until_closed(self, delivery: Delivery) -> None:
        pause = self._pause_s
        while True:
            # Looked at before delivering, so that what was noted before `close` is delivered.
            closing = self._closing.is_set()
            delivered = self._try(delivery)
            if closing:
                self._complete = delivered
                return
            if delivered:
                pause = self._pause_s
                self._wake.wait(pause)
                self._wake.clear()
            else:
                # New events must not make it knock at a dead server's door more often.
                pause = min(2 * pause, LONGEST_PAUSE_S)
                self._closing.wait(pause)

    def _try(self, delivery: Delivery) -> bool:
        try:
            self._deliver(delivery)
        except StaleAttempt:
            # What was noted here is in the newer attempt's outbox, and it delivers.
            self._closing.set()
            return False
        except Exception as error:
            delivery.disconnect()
            self._warn_once("MLflow is out of reach, the run goes on without it: %s", _explain(error))
            return False
        if self._warned:
            log.info("MLflow at %s is back", self._state["uri"])
        self._warned = False
        return True

    def _deliver(self, delivery: Delivery) -> None:
        try:
            delivery.deliver()
        except Exception:
            # A newer attempt deletes what is half-written here: no fault of MLflow's, and nothing to tell.
            self._check()
            raise

    def _warn_once(self, line: str, *told: Any) -> None:
        if not self._warned:
            log.warning(line, *told)
        self._warned = True


def sync(run_dir: str | Path, uri: str | None = None) -> dict[str, Any]:
    """Return {"uri", "experiment", "runs", "points"} after delivering all that MLflow lacks of a run.

    Args:
        run_dir: a run directory.
        uri: where to; by default where the run reports to.

    Raises:
        BadInput: no run of ours, or one that a live process delivers.
        NotDelivered: MLflow cannot be reached; nothing is lost, try again.
    """
    run_dir = Path(run_dir).resolve()
    earlier = _read_state(run_dir)
    if not earlier:
        raise BadInput(f"{run_dir}: holds no tracking.json; give the directory of a run that was begun")
    uri = _same_uri(run_dir, earlier["uri"]) if uri is None else resolve_uri(uri)
    damage = outbox_damage(run_dir, earlier["events"])
    if damage:
        log.warning("%s: outbox.jsonl is damaged: %s; `mrrcnn run` again notes it anew", run_dir, damage)
    elif earlier.get("lost"):
        log.warning("%s: some events could not be noted; the same command again notes them", run_dir)
    _import_mlflow()
    lock = _lock(run_dir)
    if lock is None:
        raise BadInput(f"{run_dir}: is live, and delivers itself; sync it when it has ended")
    try:
        state = _begin_state(run_dir, earlier, redact(uri), earlier["experiment"])
        delivery = Delivery(run_dir, uri, state)
        delivery.deliver()
    except Exception as error:
        raise NotDelivered(f"{redact(uri)}: {_explain(error)}; nothing is lost, sync again later") from None
    finally:
        _unlock(lock)
    return {key: state[key] for key in ("uri", "experiment", "runs")} | {"points": delivery.delivered}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict as one level of dotted keys; None values are kept."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_state(run_dir: Path) -> dict[str, Any]:
    path, copy = run_dir / STATE, run_dir / COPY
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        wrong = f"{path}: is damaged ({error})"
    try:
        state = json.loads(copy.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BadInput(f"{wrong}; delete it, and MLflow gets a new run") from None
    log.warning("%s; the copy %s is used instead", wrong, copy.name)
    return state


def _begin_state(run_dir: Path, earlier: dict[str, Any], uri: str, experiment: str) -> dict[str, Any]:
    # Another server or experiment knows nothing of the run yet, so all of it is delivered there.
    same = (earlier.get("uri"), earlier.get("experiment")) == (uri, experiment)
    state = {
        "key": earlier.get("key", uuid.uuid4().hex),
        "uri": uri,
        "experiment": experiment,
        "runs": earlier["runs"] if same else {},
        "lost": earlier.get("lost", False),
        "events": earlier["events"] if same else 0,
        "waiting": earlier.get("waiting", []) if same else [],
    }
    write_atomic(run_dir / STATE, encode_json(state))
    # Who goes on from the copy delivers all again; what MLflow has already stays as it is there.
    write_atomic(run_dir / COPY, encode_json({**state, "events": 0, "waiting": []}))
    return state


def _same_uri(run_dir: Path, shown: str) -> str:
    # The password is kept in no file of ours.
    if "***" not in shown:
        return shown
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and redact(uri) == shown:
        return uri
    raise BadInput(f"{run_dir}: reports to {shown}; set MLFLOW_TRACKING_URI to it, with the password")


def _lock(run_dir: Path) -> int | None:
    descriptor = os.open(run_dir / "tracking.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _unlock(descriptor: int) -> None:
    # Closing alone would leave the lock with every process that was forked meanwhile.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _import_mlflow() -> None:
    # In the caller's thread: two threads that import the same packages can see them half-made.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _explain(error: BaseException) -> str:
    return redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
