"""A service and its load generator on cores of their own."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.support.service import Service


@contextmanager
def apart(starting: AbstractContextManager[Service]) -> Iterator[Service]:
    """A service on the first core, and all that this process starts later on the others.

    A generator takes most of a core itself; on the service's own, what is measured is who of the two is given it.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        with starting as service:
            os.sched_setaffinity(0, cores[1:] or cores)
            yield service
    finally:
        os.sched_setaffinity(0, cores)


def sharing() -> str:
    """How `apart` shares the cores."""
    most = len(os.sched_getaffinity(0))
    return "The service had one core, the generator the others." if most > 1 else "There is one core for all."
