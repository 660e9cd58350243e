"""Run a service and its load generator on separate cores."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.support.service import Service


@contextmanager
def on_separate_cores(starting: AbstractContextManager[Service]) -> Iterator[Service]:
    """Start a service on the first core; processes that start in the block use the other cores.

    A load generator uses most of a core. On a shared core, the scheduler's choice between both would be measured.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        with starting as service:
            os.sched_setaffinity(0, cores[1:] or cores)
            yield service
    finally:
        os.sched_setaffinity(0, cores)


def core_allocation() -> str:
    """Describe the cores of service and generator under `on_separate_cores`."""
    cores = len(os.sched_getaffinity(0))
    return "The service had one core, the generator the others." if cores > 1 else "Both shared one core."
