"""Poll whether the peer of a connection is still connected."""

import select
import socket
from enum import Enum

ERRORS = select.POLLERR | select.POLLHUP


class PeerState(Enum):
    """State of a connection's other end."""

    CONNECTED = "connected"
    HALF_CLOSED = "half closed"  # it sends no more; its last bytes may still be unread
    DISCONNECTED = "disconnected"


def peer_state(connection: socket.socket) -> PeerState:
    """Return the state of the peer, without reading."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    events = poll.poll(0)
    flags = events[0][1] if events else 0
    if flags & ERRORS:
        return PeerState.DISCONNECTED
    return PeerState.HALF_CLOSED if flags & select.POLLRDHUP else PeerState.CONNECTED
