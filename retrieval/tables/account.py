"""Count rows: rows read = rows written + rows skipped, by reason."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from retrieval.errors import InternalError


class RowAccount(BaseModel):
    """Rows of one input: read, written, and skipped by reason (keys of REASONS)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: int
    written: int
    skipped: dict[str, int] = {}

    def check(self, name: str) -> "RowAccount":
        """Return itself. Raises InternalError if the counts do not add up."""
        if self.read != self.written + sum(self.skipped.values()):
            raise InternalError(
                f"{name}: {self.read:,} rows were read, but {self.written:,} written and "
                f"{sum(self.skipped.values()):,} skipped. This is an error in diptych; please report it."
            )
        return self

    def sentence(self, written: str) -> str:
        """Return `200 rows read = 190 <written> + 10 skipped`."""
        total = f"{self.read:,} {'row' if self.read == 1 else 'rows'} read = {self.written:,} {written}"
        skipped = sum(self.skipped.values())
        return f"{total} + {skipped:,} skipped" if skipped else total

    def report(self, written: str) -> list[str]:
        """Return the sentence, and a line for each reason with a count."""
        return [self.sentence(written), *(f"  {count:>12,}  {reason}" for count, reason in self.lines())]

    def lines(self) -> list[tuple[int, str]]:
        """Return count and description of each reason with a count."""
        return [(count, REASONS.get(reason, reason)) for reason, count in self.skipped.items() if count]


REASONS: Mapping[str, str] = {
    "bad_row": "bad (listed below or in skipped-rows.txt)",
    "blank_line": "blank",
    "blank_query": "without text",
    "exposure": "with a pair that was shown and not clicked, stored in exposures.parquet",
    "repeated_pair": "repeating an earlier (query, label) pair, whose clicks they increase",
    "below_min_clicks": "with a pair below --min-clicks",
    "below_min_ctr": "with a pair below --min-ctr",
    "below_min_label_count": "with a label below --min-label-count",
    "no_label": "in training, with an empty list of labels",
    "no_label_left": "in training, with all labels excluded or below --min-label-count",
    "rare_label": "with a label below --min-label-count",
}
