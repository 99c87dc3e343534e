"""The engine's state has names, not ranks: any ZeRO stage and world size go on from any checkpoint.

These tests also guard the private parts of DeepSpeed that pipeline/engine.py relies on.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def torchrun(world, folder, script, *arguments):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world),
        "--log-dir", str(folder / "torchrun"), str(Path(__file__).with_name(script)), *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def run(world, stage, accumulate, folder, save_at=0):
    done = torchrun(world, folder, "toy_ranks.py", stage, accumulate, folder, save_at)
    line = next(line for line in done.stdout.splitlines() if line.startswith("WEIGHTS "))
    return json.loads(line.removeprefix("WEIGHTS "))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The undisturbed run at two ranks and ZeRO-1, which leaves a checkpoint of step 3 behind."""
    folder = tmp_path_factory.mktemp("engine")
    return run(2, 1, 1, folder, save_at=3), folder


@pytest.mark.slow
def test_resuming_at_the_same_world_size_is_bit_identical(straight):
    weights, folder = straight
    assert run(2, 1, 1, folder, save_at=3) == weights


@pytest.mark.slow
@pytest.mark.parametrize("world, stage", [(1, 1), (1, 0), (4, 2)])
def test_a_checkpoint_goes_on_at_another_world_size_and_zero_stage(straight, world, stage):
    weights, folder = straight
    assert run(world, stage, 1, folder, save_at=3) == pytest.approx(weights, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_every_world_size_and_zero_stage_saves_the_bytes_that_it_has_loaded(straight, tmp_path):
    _, folder = straight
    checkpoint = folder / "step-000000003"
    for world in (1, 2, 4):
        torchrun(world, tmp_path, "universal_ranks.py", checkpoint, tmp_path)
    saved = sorted(path for path in tmp_path.glob("*-*") if path.is_dir())
    assert [path.name for path in saved] == [f"{world}-{stage}" for world in (1, 2, 4) for stage in (0, 1, 2)]
    for path in saved:
        for file in ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
            assert (path / checkpoint.name / file).read_bytes() == (checkpoint / file).read_bytes(), path


@pytest.mark.slow
def test_zero_stages_agree_bit_for_bit(straight, tmp_path):
    assert run(2, 2, 1, tmp_path) == straight[0]


@pytest.mark.slow
def test_momentum_is_part_of_the_checkpoint(straight, tmp_path):
    """Without it the resumed run would end elsewhere: the test above is not vacuous."""
    from safetensors.torch import load_file, save_file

    weights, folder = straight
    shutil.copytree(folder / "step-000000003", tmp_path / "step-000000003")
    file = tmp_path / "step-000000003" / "optimizer.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    assert run(2, 1, 1, tmp_path, save_at=3) != pytest.approx(weights, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_accumulation_over_world_sizes_agrees(tmp_path):
    """The slices of an accumulated step are cut before ranks are, so the world size cannot matter."""
    assert run(1, 1, 2, tmp_path) == pytest.approx(run(2, 1, 2, tmp_path), rel=1e-5, abs=1e-7)
