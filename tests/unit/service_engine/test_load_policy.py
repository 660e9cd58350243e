"""The speed at which an engine loads while another generation is served."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from service.bundles.generation_set import GenerationSet
from service.engine.load_policy import FULL_SPEED, LoadPolicy
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from service.settings import Settings


@dataclass
class FakeGeneration:
    """The part of a generation that the choice of a policy depends on."""

    healthy: bool = True
    busy: bool = False

    def is_busy(self) -> bool:
        return self.busy


def generations(current: Any) -> GenerationSet:
    metrics = Metrics(CollectorRegistry())
    made = GenerationSet(Settings(store=Path("unused"), load_share=0.25), metrics, Supervisor(metrics))
    made.current = current
    return made


def test_an_engine_loads_at_full_speed_when_no_other_engine_answers() -> None:
    """Requests would wait for the replacement of a dead engine ten times as long."""
    loading: Any = FakeGeneration()
    assert generations(None).choose_policy(loading, urgent=False) == FULL_SPEED
    assert generations(loading).choose_policy(loading, urgent=False) == FULL_SPEED
    assert generations(FakeGeneration(healthy=False)).choose_policy(loading, urgent=False) == FULL_SPEED


def test_an_engine_is_throttled_while_the_served_one_is_busy() -> None:
    """Loading a bundle would slow the answers of the served one."""
    served, loading = FakeGeneration(), FakeGeneration()
    policy = generations(served).choose_policy(loading, urgent=False)  # type: ignore[arg-type]
    assert (policy.low_priority, policy.cpu_share, policy.is_busy()) == (True, 0.25, False)
    served.busy = True
    assert policy.is_busy()


def test_a_rollback_is_not_throttled() -> None:
    """A faulty bundle would be served ten times as long."""
    loading: Any = FakeGeneration()
    assert generations(FakeGeneration()).choose_policy(loading, urgent=True) == LoadPolicy(low_priority=True)
