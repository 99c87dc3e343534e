"""DeepSpeed's engine around the model, and its state by parameter name.

ZeRO keeps each rank a slice of flattened parameters and momentum. A checkpoint must not know how
many ranks there were, so both are gathered and set by name here. Private names of DeepSpeed 0.19.8
are used for that; the version is pinned and tests/pipeline/test_engine.py notices a change.
"""

import logging
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema import Config, Schedule

MOMENTUM = "momentum_buffer"
# A collective that waits longer has lost a peer; gloo's default of half an hour hides that.
TIMEOUT_S = 600


def start_engine(model: nn.Module, schedule: Schedule, config: Config, world: int):
    """Return the DeepSpeed engine of a model: SGD with momentum, ZeRO, clipping, accumulation.

    Expects RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment.
    """
    import deepspeed

    # It warns of every optimizer but Adam; tests/pipeline/test_engine.py has tested this one.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its shared-memory all-reduce waits for a dead peer for ever and needs a compiler at run time;
    # gloo ends in an error after the timeout.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=TIMEOUT_S))
    optimizer = torch.optim.SGD(_groups(model, schedule), lr=schedule.lr, momentum=schedule.momentum)
    settings = {
        "train_batch_size": schedule.batch,
        "train_micro_batch_size_per_gpu": schedule.batch // schedule.accumulate // world,
        "gradient_accumulation_steps": schedule.accumulate,
        "gradient_clipping": schedule.clip,
        "zero_optimization": {
            "stage": config.deepspeed.stage,
            "overlap_comm": False,
            "reduce_bucket_size": 10**8,
        },
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": config.train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    _limit_waiting()
    _link_momentum(engine)
    return engine


def set_lr(engine: Any, lr: float) -> None:
    """Set the rate of every parameter group to `lr` times the group's own multiple."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_multiple"]


def momentum_by_name(engine: Any) -> dict[str, Tensor]:
    """Return the momentum of every trained parameter, fp32 in the parameter's shape; {} but on rank 0.

    Collective. DeepSpeed's own safe_get_full_optimizer_state gathers parameter by parameter, to all ranks.
    """
    parameters = trained(engine.module)
    if engine.zero_optimization_stage() == 0:
        found = {name: _state(engine)[parameter][MOMENTUM] for name, parameter in parameters}
        return {} if dist.get_rank() else found
    sizes = [parameter.numel() for _, parameter in parameters]
    whole = torch.zeros(sum(sizes), device=engine.device)
    for (_, parameter), place in zip(parameters, whole.split(sizes), strict=True):
        _put_fragment(parameter, place)
    # Each element is on one rank and zero on the others, so the sum is exact.
    dist.reduce(whole, dst=0)
    if dist.get_rank():
        return {}
    pieces = zip(parameters, whole.split(sizes), strict=True)
    return {name: piece.view_as(parameter) for (name, parameter), piece in pieces}


def restore(engine: Any, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
    """Set parameters, buffers and momentum by name, whatever world size they were saved at."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    engine.module.load_state_dict(weights, strict=True)
    for name, parameter in trained(engine.module):
        if engine.zero_optimization_stage() == 0:
            _state(engine)[parameter][MOMENTUM].copy_(momentum[name])
        else:
            safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
            safe_set_full_optimizer_state(parameter, momentum[name].to(parameter.device), MOMENTUM)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return (name, parameter) of every parameter that is trained."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _groups(model: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    # Biases learn at a multiple of the rate and without decay, as in maskrcnn-benchmark's solver.
    parameters = trained(model)
    biases = [parameter for name, parameter in parameters if name.endswith("bias")]
    others = [parameter for name, parameter in parameters if not name.endswith("bias")]
    groups = [
        {"params": others, "weight_decay": schedule.weight_decay, "lr_multiple": 1.0},
        {"params": biases, "weight_decay": schedule.bias_wd, "lr_multiple": schedule.bias_lr},
    ]
    return [group for group in groups if group["params"]]


def _limit_waiting() -> None:
    # DeepSpeed reduces gradients in groups of its own, which it makes with torch's default timeout.
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=TIMEOUT_S), group)


def _link_momentum(engine: Any) -> None:
    # SGD makes its momentum on the first step, but DeepSpeed links optimizer state by name once,
    # before that: put zeros there first and link again. A zero momentum changes no update.
    if engine.zero_optimization_stage() == 0:
        for _, parameter in trained(engine.module):
            _state(engine)[parameter][MOMENTUM] = torch.zeros_like(parameter)
        return
    optimizer = engine.optimizer
    for partition in optimizer.single_partition_of_fp32_groups:
        optimizer.optimizer.state[partition][MOMENTUM] = torch.zeros_like(partition)
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def _put_fragment(parameter: nn.Parameter, place: Tensor) -> None:
    fragment = parameter._hp_mapping
    if fragment is not None:
        address = fragment.lp_fragment_address
        place.narrow(0, address.start, address.numel).copy_(fragment.get_hp_fragment(MOMENTUM))


def _state(engine: Any) -> dict[Any, Any]:
    return engine.optimizer.state
