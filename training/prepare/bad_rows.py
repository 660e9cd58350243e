"""Collect messages about bad rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from retrieval.errors import DatasetError

MAX_LISTED = 20  # messages that are printed
MAX_MESSAGES = 100_000  # that are stored per file


def escape_surrogates(text: str) -> str:
    """Return `text` with lone surrogates escaped. They stand for bytes of names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def escaped_names(counts: Mapping[str, int | dict[str, int]]) -> dict[str, int | dict[str, int]]:
    """Return notes with `escape_surrogates` of their names."""
    return {
        note: count if isinstance(count, int) else {escape_surrogates(name): number for name, number in count.items()}
        for note, count in counts.items()
    }


@dataclass
class BadRows:
    """The number of bad rows of a source and messages about them, in order."""

    skip: bool = False
    total: int = 0
    messages: list[str] = field(default_factory=list)
    hint: str = ""  # a further way to correct them

    def add(self, messages: Iterable[str], total: int) -> None:
        """Count `total` bad rows; `messages` describe them, or the first of them."""
        self.total += total
        self.messages += messages

    def raise_if_any(self, source: str) -> None:
        """Raise DatasetError with the first messages, unless bad rows are skipped."""
        if self.skip or not self.total:
            return
        rows = "1 bad row" if self.total == 1 else f"{self.total:,} bad rows"
        first = "" if self.total <= MAX_LISTED else f" The first {MAX_LISTED}:"
        raise DatasetError(
            f"{source} has {rows}; nothing was written. "
            f"Correct the source, or add --skip-bad-rows to leave such rows out.{self.hint}{first}\n  "
            + "\n  ".join(self.messages[:MAX_LISTED])
        )
