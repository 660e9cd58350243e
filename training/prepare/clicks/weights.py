"""Weigh the clicks of (query, label) pairs, and tell positives from exposures.

The weight of a pair is the sum over its cells of

    clicks · 2^(−age / half_life_days) / examination(position) · limit(query, source)

age: days before the last day of the log. examination: probability that a user looks at a position (inverse propensity
weighting; Joachims, Swaminathan and Schnabel, WSDM 2017). limit: the factor that keeps each source of clicks, such as a
user, at `max_share` of the clicks of a query.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval.errors import DatasetError
from training.prepare.clicks.coded_cells import CodedCells
from training.prepare.clicks.time_split import Period
from training.prepare.settings import MAX_SHARE, PrepareSettings

PRIOR_IMPRESSIONS = 10  # strength of the prior of --min-ctr: each pair starts with so many at the log's average rate
WEIGHT = "DECIMAL(38, 9)"
LARGEST_FACTOR = 1e6  # of one cell, so that the sums fit in WEIGHT
# What becomes of a pair.
POSITIVE, EXPOSURE, FEW_CLICKS, LOW_CTR = range(4)


def build_pairs(
    connection: Any, cells: CodedCells, settings: PrepareSettings, period: Period | None,
    examination_P: npt.NDArray[np.float64] | None, *, has_sources: bool,
) -> None:  # fmt: skip
    """Make the table `pairs`, with the weight of each pair and what becomes of it (`kind`).

    examination_P: probability per position, position 1 first; None: clicks are not weighted by position.
    """
    factors, tables = ["clicks"], "coded"
    if settings.half_life_days and period:
        factors.append(f"pow(2, (day - DATE '{period.last_day}') / {settings.half_life_days!r}::DOUBLE)")
    if examination_P is not None:
        factors.append(f"least(1 / probability, {LARGEST_FACTOR})")
        last = len(examination_P)  # also for positions that the table does not have
        tables += f" LEFT JOIN examination ON examination.position = least(coalesce(coded.position, 1), {last})"
        rows = {"position": np.arange(1, len(examination_P) + 1, dtype=np.int32), "probability": examination_P}
        connection.register("examination_rows", pa.table(rows))
        connection.execute("CREATE TABLE examination AS SELECT * FROM examination_rows")
    weight = " * ".join(factors)
    if has_sources:
        _build_limits(
            connection,
            cells,
            f"SELECT iid, split, origin, {weight} AS weight, clicks FROM {tables}",
            settings.max_share or MAX_SHARE,
        )
        weight, tables = f"{weight} * coalesce(factor, 1)", f"{tables} LEFT JOIN limits USING (iid, split, origin)"
    exact = "" if weight == "clicks" else f"sum(CAST({weight} AS {WEIGHT})) AS weight, "
    cells.register(connection)
    connection.execute(
        f"CREATE TABLE sums AS SELECT iid, split, lid, {exact}sum(clicks)::BIGINT AS clicks, "
        "sum(impressions)::BIGINT AS impressions, min(day) AS first_day, max(day) AS last_day "
        f"FROM {tables} GROUP BY iid, split, lid"
    )
    columns = "*" if exact else "*, clicks AS weight"
    connection.execute(f"CREATE VIEW pairs AS SELECT {columns}, {_kind(connection, settings)} AS kind FROM sums")


def check_positions(connection: Any, cells: CodedCells) -> None:
    """Raise DatasetError for a position below 1."""
    cells.register(connection)
    lowest = connection.execute("SELECT min(position) FROM coded").fetchall()[0][0]
    if lowest is not None and lowest < 1:
        fix = "Add 1 to the position column." if lowest == 0 else "Correct the position column."
        raise DatasetError(f"The lowest position is {lowest}, and positions count from 1. {fix}")


def position_cells(connection: Any, cells: CodedCells, largest: int) -> Any:
    """Return clicks and impressions per (pair, position) as Arrow, of pairs that were shown at several positions.

    Columns: pair, position, clicks, impressions. Rows of test do not count. Of more than `largest` cells, a sample of
    the pairs is returned. A log may have more clicks than impressions; then each impression counts as clicked.
    """
    cells.register(connection)
    connection.execute(
        "CREATE TABLE position_cells AS SELECT iid * (SELECT count(*) FROM labels)::BIGINT + lid AS pair, position, "
        "least(sum(clicks), sum(impressions))::BIGINT AS clicks, sum(impressions)::BIGINT AS impressions "
        "FROM coded WHERE position IS NOT NULL AND split <> 2 GROUP BY pair, position "
        "QUALIFY count(*) OVER (PARTITION BY pair) > 1"
    )
    count = connection.execute("SELECT count(*) FROM position_cells").fetchall()[0][0]
    share = min(1.0, largest / max(count, 1))
    highest = min(int(share * 2**64), 2**64 - 1)
    return connection.sql(
        f"SELECT * FROM position_cells WHERE hash(pair) <= {highest}::UBIGINT ORDER BY pair, position"
    ).to_arrow_table()


def _build_limits(connection: Any, cells: CodedCells, weighted: str, max_share: float) -> None:
    """Make the table `limits`: the factor of each source of a query that has more than its share of the clicks.

    With n sources, the share is at least 1/n. If the m largest sources exceed it, each of them is reduced to the level
    share · rest / (1 − m · share), where rest is the sum of the others.
    """
    cells.register(connection)
    connection.execute(
        f"CREATE TABLE limits AS WITH weighted AS ({weighted}), "
        f"sources AS (SELECT iid, split, origin, sum(CAST(weight AS {WEIGHT}))::DOUBLE AS c "
        "FROM weighted WHERE origin IS NOT NULL AND clicks > 0 GROUP BY ALL), "
        "ranked AS (SELECT *, row_number() OVER ranks - 1 AS m, count(*) OVER whole AS n, "
        "sum(c) OVER (ranks ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS rest FROM sources "
        "WINDOW ranks AS (PARTITION BY iid, split ORDER BY c DESC, origin), whole AS (PARTITION BY iid, split)), "
        f"shares AS (SELECT *, greatest({max_share!r}::DOUBLE, 1 / n) AS share FROM ranked), "
        "levels AS (SELECT *, CASE WHEN m * share < 1 THEN share * rest / (1 - m * share) END AS level FROM shares), "
        "query_levels AS (SELECT iid, split, arg_min(level, m) AS level FROM levels "
        "WHERE c <= level * (1 + 1e-9) GROUP BY iid, split) "
        "SELECT iid, split, origin, query_levels.level / c AS factor FROM sources JOIN query_levels USING (iid, split) "
        "WHERE c > query_levels.level"
    )


def _kind(connection: Any, settings: PrepareSettings) -> str:
    """Return SQL for what becomes of a pair: POSITIVE, EXPOSURE, FEW_CLICKS or LOW_CTR."""
    clicks, impressions = connection.execute("SELECT sum(clicks), sum(impressions) FROM sums").fetchall()[0]
    prior = PRIOR_IMPRESSIONS * float(clicks or 0) / max(float(impressions or 0), 1.0)
    ctr = f"(clicks + {prior!r}::DOUBLE) / (impressions + {PRIOR_IMPRESSIONS})"
    return (
        f"CASE WHEN clicks = 0 THEN {EXPOSURE} WHEN clicks < {settings.min_clicks} THEN {FEW_CLICKS} "
        f"WHEN {ctr} < {settings.min_ctr!r}::DOUBLE THEN {LOW_CTR} ELSE {POSITIVE} END"
    )
