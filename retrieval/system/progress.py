"""Report the progress of a long stage: `with stage("index") as progress: progress(done, total)`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int, int], object]  # called with (items done, items in total)
Stage = Callable[[str], AbstractContextManager[Progress]]


def no_progress(done: int, total: int) -> None:
    """Ignore the progress of a stage."""


@contextmanager
def silent_stage(name: str) -> Iterator[Progress]:
    """Run a stage without reporting its progress."""
    yield no_progress
