"""One line of the doctor's report."""

from typing import Literal, NamedTuple

State = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """What was looked at, how it is, and what to do about it; a note costs speed or a command, a problem stops work."""

    topic: str
    state: State
    value: str
    advice: str = ""


def gigabytes(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / (1 << 30):,.1f} GB"
