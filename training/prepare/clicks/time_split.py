"""Divide the days of a click log into the periods of training, validation and test."""

from dataclasses import dataclass
from datetime import date, timedelta

from retrieval.errors import DatasetError
from training.prepare.settings import PrepareSettings

VALIDATION_SHARE = 10  # validation has the days before test: a tenth of them, at most as many days as test has


@dataclass(frozen=True)
class Period:
    """The first day of validation and of test, of a log from `first_day` to `last_day`; None: no split by time."""

    first_day: date
    last_day: date
    validation_from: date | None = None
    test_from: date | None = None


def split_period(first_day: date, last_day: date, settings: PrepareSettings) -> Period:
    """Return the periods of a log. Raises DatasetError if no day is left for training.

    Validation is the last part of the time before test, so that it is as far from training as test is, but no longer
    than a tenth of that time, and at least a day.
    """
    if not settings.splits_by_time:
        return Period(first_day, last_day)
    test_from = settings.test_from or last_day - timedelta(days=(settings.test_days or 1) - 1)
    before, test_days = (test_from - first_day).days, (last_day - test_from).days + 1
    if before < 1 or test_days < 1:
        period = "training" if before < 1 else "test"
        raise DatasetError(
            f"The test period would begin on {test_from}, but the log has the days {first_day} to {last_day}, so no "
            f"day is left for {period}. Choose another day with --test-from or --test-days."
        )
    days = min(test_days, max(before // VALIDATION_SHARE, 1)) if settings.validation and before > 1 else 0
    return Period(first_day, last_day, test_from - timedelta(days=days) if days else None, test_from)
