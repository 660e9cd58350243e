"""How a long stage says how far it is: `with stage("Index") as progress: progress(done, total)`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int, int], object]
Stage = Callable[[str], AbstractContextManager[Progress]]


def unwatched(done: int, total: int) -> None:
    """Progress that nobody looks at."""


@contextmanager
def silent(name: str) -> Iterator[Progress]:
    """A stage that nobody watches."""
    yield unwatched
