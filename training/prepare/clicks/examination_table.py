"""Read a table of examination probabilities (`--examination`): columns `position` and `probability`."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieval.errors import DatasetError
from retrieval.tables.columns import Count, Number
from retrieval.tables.opening import NoReadingProgress
from retrieval.tables.table import Table
from training.prepare.clicks.examination import examination_from_table


def examination_table(path: Path) -> npt.NDArray[np.float64]:
    """Return the probability per position, position 1 first. Raises DatasetError."""
    table = Table(path)
    for name in ("position", "probability"):
        table.require(name, "another name")
    probabilities: dict[int, float] = {}
    for part in table.parts:
        for batch in part.batches({"position": Count(), "probability": Number()}, NoReadingProgress()):
            for where, message in batch.bad:
                raise DatasetError(f"{where}: {message}")
            columns = (batch.rows[name].to_pylist() for name in ("position", "probability"))
            probabilities |= dict(zip(*columns, strict=True))
    return examination_from_table(probabilities)
