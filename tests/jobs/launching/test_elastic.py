"""How many workers a cluster runs: legal numbers only, growth without loss, failures counted by progress."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import parse_config
from jobs.checks import check_workers, legal_workers
from jobs.launching.elastic import failure_policy, free_or_ours, scaling_policy
from jobs.launching.plan import Plan
from shards.errors import BadInput


def config(batch, refine_batch=None, accumulate=1):
    schedules = {
        "baseline": {"batch": batch, "accumulate": accumulate},
        "refine": {"batch": refine_batch or batch},
    }
    return parse_config({"data": {"train": "-", "val": "-"}, "train": schedules})


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 64))
def test_legal_workers_share_every_slice_of_every_batch_evenly(share, accumulate, refine_batch):
    legal = legal_workers(config(share * accumulate, refine_batch, accumulate))
    assert legal == [n for n in range(1, 65) if share % n == 0 and refine_batch % n == 0]


@pytest.mark.parametrize(
    ("workers", "least", "said"),
    [
        (
            3,
            None,
            "--workers 3: does not divide train.baseline.batch / accumulate = 8; use 1, 2, 4, 8 workers",
        ),
        (8, 3, "--min-workers 3: does not divide"),
        (8, 5, "use 1, 2, 4, 8 workers"),
        (2, 4, "--min-workers 4: is more than --workers 2"),
    ],
)
def test_illegal_numbers_are_refused_naming_the_legal_ones(workers, least, said):
    with pytest.raises(BadInput) as raised:
        check_workers(config(16, 16, accumulate=2), workers, "ray", least)
    assert said in str(raised.value)


def test_the_numbers_that_a_run_may_go_on_with():
    assert check_workers(config(16), 8, "ray", 2) == (2, 4, 8)
    assert check_workers(config(16), 8, "ray") == (8,)


@pytest.fixture
def ray_says(monkeypatch, tmp_path):
    """Ray's elastic policy with a stand-in for the cluster: `nodes` maps names to CPUs."""
    from ray.train import ScalingConfig

    cluster = SimpleNamespace(nodes={}, folder=tmp_path, steps=tmp_path / "steps")
    cluster.steps.mkdir()

    def policy(sizes, checkpoints=cluster.steps):
        plan = Plan(sizes, checkpoints, tmp_path, tmp_path / "stop")
        wanted = ScalingConfig(num_workers=(sizes[0], sizes[-1]), elastic_resize_monitor_interval_s=0)
        made = scaling_policy(plan, wanted)
        made.plan = plan
        made._maybe_send_resource_request = lambda: None
        return made

    monkeypatch.setattr(
        "jobs.launching.elastic.free_or_ours",
        lambda: {name: {"CPU": cpus} for name, cpus in cluster.nodes.items()},
    )
    cluster.policy = policy
    return cluster


def started(policy):
    return getattr(policy.make_decision_for_non_running_worker_group(), "num_workers", None)


def resized(policy, now):
    state = SimpleNamespace(num_workers=now, start_time=0)
    decision = policy.make_decision_for_running_worker_group(
        worker_group_state=state, worker_group_status=None
    )
    return getattr(decision, "num_workers", None)


@pytest.mark.parametrize(("room", "size"), [(0, None), (1, None), (2, 2), (3, 2), (7, 4), (8, 8), (50, 8)])
def test_the_largest_legal_group_that_there_is_room_for_is_started(ray_says, room, size):
    ray_says.nodes = {"a": room}
    assert started(ray_says.policy((2, 4, 8))) == size
    said = (ray_says.folder / "progress.log").read_text()
    wanted = f"waiting for 2, the cluster has room for {room}"
    assert (wanted if size is None else f"starting {size} of 8") in said


def test_a_group_grows_right_after_a_checkpoint_and_then_only(ray_says):
    ray_says.nodes = {"a": 1, "b": 1}
    policy = ray_says.policy((1, 2))
    assert [resized(policy, 1), resized(policy, 1)] == [None, None]
    (ray_says.steps / ".step-000000005.tmp-here-1").mkdir()
    assert resized(policy, 1) is None, "it is being written"
    (ray_says.steps / "step-000000005").mkdir()
    assert resized(policy, 1) == 2
    assert "going on from step-000000005" in (ray_says.folder / "progress.log").read_text()
    assert resized(policy, 2) is None


def test_a_group_never_grows_without_checkpoints_and_never_shrinks_while_it_works(ray_says):
    ray_says.nodes = {"a": 4}
    without = ray_says.policy((1, 2, 4), None)
    assert [resized(without, 2) for _ in range(3)] == [None] * 3
    policy = ray_says.policy((1, 2, 4))
    ray_says.nodes = {"a": 1}
    for step in ("step-000000005", "step-000000010"):
        assert resized(policy, 2) is None
        (ray_says.steps / step).mkdir()
    assert resized(policy, 2) is None


def test_room_is_what_is_free_and_what_this_jobs_groups_still_hold_on_nodes_that_stay(monkeypatch):
    def group(state, *nodes):
        bundles = {place: {"CPU": 1.0, "GPU": 1.0} for place in range(len(nodes))}
        return {"state": state, "bundles": bundles, "bundles_to_node_id": dict(enumerate(nodes))}

    groups = {
        "0a01": group("CREATED", "a", "b"),
        "0b01": group("RESCHEDULING", "a", "dead"),
        "0c01": group("REMOVED", "a", "b"),
        "0d02": group("CREATED", "b", "b"),
    }
    free = {"a": {"CPU": 3.0}, "b": {"CPU": 0.5, "GPU": 2.0}, "ending": {"CPU": 8.0}}
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", lambda: {"ending": 0})
    monkeypatch.setattr("ray._private.state.available_resources_per_node", lambda: free)
    monkeypatch.setattr("ray.util.placement_group_table", lambda: groups)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    assert free_or_ours() == {"a": {"CPU": 5.0, "GPU": 2.0}, "b": {"CPU": 1.5, "GPU": 3.0}}


def test_failures_are_counted_since_the_last_checkpoint(tmp_path):
    from ray.train import FailureConfig

    policy = failure_policy(Plan((1,), tmp_path, tmp_path), FailureConfig(max_failures=2))
    assert [decided(policy), decided(policy)] == ["RETRY", "RETRY"]
    (tmp_path / "step-000000005").mkdir()
    assert [decided(policy) for _ in range(3)] == ["RETRY", "RETRY", "RAISE"]


def test_groups_that_start_too_slowly_take_nothing_from_what_workers_may_fail(tmp_path):
    """Ray counts them, as it counts announced ends of nodes, by themselves."""
    from ray.train import FailureConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    policy = failure_policy(Plan((1,), tmp_path, tmp_path), FailureConfig(max_failures=2))
    slow = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert [decided(policy, slow) for _ in range(5)] == 5 * ["RETRY"]
    assert [decided(policy) for _ in range(3)] == ["RETRY", "RETRY", "RAISE"]


@pytest.mark.parametrize("sign", ["stop", "verdict.json"])
def test_what_was_asked_to_stop_or_has_its_verdict_is_not_started_again_nor_waited_for(ray_says, sign):
    """A lost node may never come back; Ray would wait for it, and only a rank in a step hears of SIGTERM."""
    from ray.train import FailureConfig

    waiting = ray_says.policy((2,))
    assert started(waiting) is None
    failing = failure_policy(waiting.plan, FailureConfig(max_failures=2))
    assert decided(failing) == "RETRY"
    (ray_says.folder / sign).touch()
    with pytest.raises(RuntimeError, match="no workers are started any more"):
        started(waiting)
    assert decided(failing) == "RAISE"


def decided(policy, error=None):
    from ray.train.v2.api.exceptions import WorkerGroupError

    error = error or WorkerGroupError("a worker died", {0: RuntimeError("killed")})
    return policy.make_decision(training_failed_error=error).name
