"""Choose how fast an engine loads its bundle: at full speed, or without slowing down an engine that answers."""

from collections.abc import Callable
from dataclasses import dataclass

IsBusy = Callable[[], bool]


def never_busy() -> bool:
    """Return False: there are no requests that loading could slow down."""
    return False


@dataclass(frozen=True)
class LoadPolicy:
    """Speed at which an engine loads its bundle.

    `low_priority` lowers the priority of loading. While `is_busy` returns True, requests are being answered, and the
    engine runs only for `cpu_share` of the time (docs/decisions/0049).
    """

    low_priority: bool = False
    cpu_share: float = 1.0
    is_busy: IsBusy = never_busy


FULL_SPEED = LoadPolicy()
