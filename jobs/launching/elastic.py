"""How many workers a Ray cluster is to run: only numbers that share every batch evenly, and few losses.

Ray Train's own elastic policy starts as many workers as there is room for, resizes in the middle of a
checkpoint interval, and counts failures over days as one lot. The policies here are its own with these
three answers changed. Private names of Ray 2.60 are used for that; the version is pinned and
tests/jobs/launching/test_elastic.py notices a change.
"""

from typing import Any

from jobs.launching.plan import Plan
from jobs.launching.tries import Tries

# A group that grows starts anew, in seconds; more often than this it would do little else.
GROW_CHECK_S = 30


def elastic_trainer(plan: Plan, **settings: Any) -> Any:
    """Return Ray's TorchTrainer with the policies of this module; `settings` are the trainer's own."""
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if self.scaling_config.elasticity_enabled:
                parts["scaling_policy"] = scaling_policy(plan, self.scaling_config)
            parts["failure_policy"] = failure_policy(plan, self.run_config.failure_config)
            return super()._initialize_and_run_controller(**parts)

    return Trainer(**settings)


def scaling_policy(plan: Plan, config: Any) -> Any:
    """Return Ray's elastic policy, held to legal sizes, that grows right after a checkpoint only."""
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

    class LegalSizes(ElasticScalingPolicy):
        room, said, newest = 0, "", None

        def _get_reserved_resources(self) -> dict[str, Any]:
            # Ray's own book of who has asked for what keeps a killed driver's wishes for three minutes.
            return free_or_ours()

        def _count_possible_workers(self, free: dict[str, Any]) -> int:
            self.room = super()._count_possible_workers(free)
            return plan.largest(self.room)

        def make_decision_for_non_running_worker_group(self) -> Any:
            plan.check()
            decision = super().make_decision_for_non_running_worker_group()
            if isinstance(decision, NoopDecision):
                self.say(f"waiting for {plan.sizes[0]}, the cluster has room for {self.room}")
            else:
                self.say(f"starting {decision.num_workers} of {plan.sizes[-1]}", again=True)
            return decision

        def make_decision_for_running_worker_group(self, worker_group_state: Any, **status: Any) -> Any:
            # Unless it is repeated, the cluster's autoscaler forgets what is wanted.
            self._maybe_send_resource_request()
            now, before, self.newest = worker_group_state.num_workers, self.newest, plan.newest()
            if now == plan.sizes[-1] or before in (None, self.newest):
                return NoopDecision()
            decision = super().make_decision_for_running_worker_group(worker_group_state, **status)
            if isinstance(decision, NoopDecision) or decision.num_workers <= now:
                return NoopDecision()
            self.say(f"the cluster has room for {self.room} again; going on from {self.newest}")
            self.newest = None
            return decision

        def say(self, line: str, again: bool = False) -> None:
            if again or line != self.said:
                plan.say(f"workers: {line}")
            self.said = line

    return LegalSizes(config)


def free_or_ours() -> dict[str, dict[str, float]]:
    """Return what this job's workers may have of every node that stays: what is free and what they hold.

    A failed group keeps its place until the next is started.
    """
    import ray
    from ray._private import state
    from ray.util import placement_group_table

    # Nothing is started on a node that has announced its end.
    ending, job = state.state.get_draining_nodes(), ray.get_runtime_context().get_job_id()
    room = {node: free for node, free in state.available_resources_per_node().items() if node not in ending}
    for name, group in placement_group_table().items():
        # The name of a placement group ends with that of the job that made it.
        if group["state"] == "REMOVED" or not name.endswith(job):
            continue
        for place, node in group["bundles_to_node_id"].items():
            for resource, amount in group["bundles"][place].items() if node in room else ():
                room[node][resource] = room[node].get(resource, 0) + amount
    return room


def failure_policy(plan: Plan, config: Any) -> Any:
    """Return Ray's failure policy: failures count since the newest checkpoint; what is over stays over."""
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    tries = Tries(plan)

    class WithoutProgress(DefaultFailurePolicy):
        def make_decision(self, training_failed_error: Any) -> Any:
            if plan.over():
                return FailureDecision.RAISE
            # Not the count itself: of some failures Ray keeps another.
            if tries.fail() == 1:
                self._worker_group_failures = 0
            return super().make_decision(training_failed_error)

    return WithoutProgress(config)
