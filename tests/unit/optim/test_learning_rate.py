"""The learning-rate schedules: warm-up and a cosine to zero; three phases for a cascade."""

import math
from itertools import pairwise

import pytest

from training.optim.optimizers import learning_rate_scale, three_phase_scale


def schedule(total: int, warmup: float) -> list[float]:
    return [learning_rate_scale(step, total, warmup) for step in range(total)]


def test_the_rate_rises_linearly_to_its_peak_and_falls_along_a_cosine() -> None:
    """If it fails, training starts with full steps, never reaches its peak, or falls too fast."""
    rates = schedule(100, 0.2)
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert max(rates) == rates[19] == rates[20] == 1.0
    assert rates[20:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 80) for step in range(80)])
    assert rates[60] == pytest.approx(0.5)


def test_the_last_rates_are_close_to_zero() -> None:
    """If it fails, the last steps still move the weights far."""
    rates = schedule(1000, 0.05)
    assert rates[-1] == pytest.approx(0.0, abs=1e-5)
    assert learning_rate_scale(1000, 1000, 0.05) == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(rates[50:]))


def test_without_warmup_the_first_step_has_the_peak_rate() -> None:
    """If it fails, warmup=0 divides by zero or loses the first step."""
    rates = schedule(10, 0.0)
    assert rates[0] == 1.0
    assert rates[1:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 9) for step in range(9)])


def test_warmup_over_the_whole_run_rises_to_the_end() -> None:
    """If it fails, warmup=1 divides by zero."""
    assert schedule(10, 1.0) == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert learning_rate_scale(10, 10, 1.0) == 1.0


@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_a_run_of_one_step_has_the_peak_rate(warmup: float) -> None:
    """If it fails, a run of one step learns nothing or divides by zero."""
    assert schedule(1, warmup) == [1.0]


def test_a_cascade_rises_stays_and_falls() -> None:
    """If it fails, the rate of a cascade is not that of its three phases."""
    rates = [three_phase_scale(step, 100, 10, 2, 3) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.55)
    assert all(later > earlier for earlier, later in pairwise(rates[:20]))
    assert rates[20:70] == [1.0] * 50
    assert all(later < earlier for earlier, later in pairwise(rates[70:]))
    assert rates[84] == pytest.approx(0.5005)
    assert rates[99] == pytest.approx(1e-3)


def test_phases_may_be_parts_of_an_epoch_or_absent() -> None:
    """If it fails, a short run divides by zero or has no peak."""
    assert [three_phase_scale(step, 4, 4, 0, 0) for step in range(4)] == [1.0] * 4
    rates = [three_phase_scale(step, 8, 8, 0.5, 0.5) for step in range(8)]
    assert rates[:4] == pytest.approx(
        [0.1, 0.1 + 0.45 * (1 - math.cos(math.pi / 4)), 0.55, 0.1 + 0.45 * (1 + math.cos(math.pi / 4))]
    )
    assert rates[7] == pytest.approx(1e-3)
