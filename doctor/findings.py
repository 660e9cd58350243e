"""One finding of the doctor."""

from typing import Literal, NamedTuple

State = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """A topic, its state and value, and what to do about it.

    A note costs speed or makes a command unavailable; a problem stops work.
    """

    topic: str
    state: State
    value: str
    advice: str = ""


def gigabytes(size: int) -> str:
    """Format bytes in GB."""
    return f"{size / (1 << 30):,.1f} GB"
