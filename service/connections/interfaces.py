"""The pool as a connection uses it, so that the two modules do not import each other."""

from typing import Protocol, TypeVar

from service.connections.early_refusals import EarlyRefusals
from service.connections.framing import HeadLimits
from service.connections.memory_budget import MemoryBudget
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.settings import Settings

ConnectionType = TypeVar("ConnectionType", contravariant=True)


class Pool(Protocol[ConnectionType]):
    """The pool that a connection belongs to, with the parts that all connections share."""

    settings: Settings
    metrics: Metrics
    memory: MemoryBudget
    head_limits: HeadLimits
    early_refusals: EarlyRefusals

    def add(self, connection: ConnectionType) -> Refusal | None:
        """Add a connection. Return the refusal when there is no room."""

    def remove(self, connection: ConnectionType) -> None:
        """Remove a closed connection."""

    def note_first_request(self, connection: ConnectionType) -> None:
        """Note that a connection has sent its first whole request."""

    def schedule_turn(self, connection: ConnectionType) -> None:
        """Schedule the next pipelined request of a connection."""

    def count(self, reason: str) -> None:
        """Count a rejected request."""
