"""The learning rate is maskrcnn-benchmark's warm-up and milestones, as a function of the step alone."""

import pytest

from configs.schema import Schedule
from pipeline.schedule import lr_at


def test_warm_up_is_linear_and_ends_at_the_rate():
    schedule = Schedule(lr=0.02, warmup=500, warmup_factor=1 / 3, steps=(6000,))
    assert lr_at(schedule, 0) == pytest.approx(0.02 / 3)
    assert lr_at(schedule, 250) == pytest.approx(0.02 * (1 / 3 + 1) / 2)
    assert lr_at(schedule, 500) == 0.02


def test_rate_falls_at_each_milestone_and_not_before():
    schedule = Schedule(lr=0.02, warmup=0, steps=(60, 80), gamma=0.1)
    rates = [lr_at(schedule, step) for step in (0, 59, 60, 79, 80)]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002])
