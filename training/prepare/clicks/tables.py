"""Merge the cells of a click log into (query, label) pairs, in DuckDB, on disk where memory does not suffice.

Tables of the connection, in the order in which the functions of this module make them:

    cells     all cells; `first` orders rows by part and place
    iid_of    the number of the query identity, iid, of each spelling
    queries   one row per query identity: iid, text (the most frequent spelling), hash_1, hash_2
    labels    one row per label: lid, label (its key), latest text and attributes, first and last day
              (from `label_texts`, with a row per label, text and attributes)
    coded     the cells with iid, lid and split instead of texts
    pairs     one row per (iid, split, lid): weight, clicks, impressions, rows, first and last day

All sums are integers or exact decimals, so the result depends on neither the order of the cells nor the threads.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrieval.query_text import query_identities
from training.prepare.clicks.parts import PartCells, quoted
from training.prepare.clicks.time_split import Period
from training.prepare.split_hash import text_hashes

PLACES_PER_PART = 2**40
ROWS_PER_BATCH = 500_000
UNSPLIT, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
HASHES = 2**64


def open_cells(connection: Any, folder: Path, cells: Sequence[PartCells]) -> None:
    """Make the view `cells` from the files of all parts that have rows."""
    parts = [
        f"SELECT *, {number} AS part, {number * PLACES_PER_PART} + place AS first "
        f"FROM read_parquet('{quoted(folder / file)}')"
        for number, one in enumerate(cells)
        for file in one.files
    ]
    connection.execute(f"CREATE VIEW cells AS {' UNION ALL '.join(parts)}")


def build_queries(connection: Any) -> int:
    """Make the table `queries`; return the number of spellings that were merged with another one.

    Spellings with the same query identity are one query. Its text is the spelling with most clicks, then most rows,
    then the earliest one.
    """
    connection.execute(
        "CREATE TABLE counted AS SELECT query, sum(clicks)::BIGINT AS clicks, sum(rows)::BIGINT AS rows, "
        "min(first) AS first FROM cells GROUP BY query"
    )
    connection.execute("CREATE TABLE spellings AS SELECT *, query AS identity FROM counted LIMIT 0")
    for rows in _batches(connection, "SELECT * FROM counted"):
        _insert(connection, "spellings", rows.append_column("identity", query_identities(rows["query"])))
    connection.execute(
        "CREATE TABLE distinct_queries AS SELECT (row_number() OVER (ORDER BY min(first)) - 1)::INTEGER AS iid, "
        "identity, arg_max(query, (clicks, rows, -first)) AS text FROM spellings GROUP BY identity"
    )
    connection.execute("CREATE TABLE iid_of AS SELECT query, iid FROM spellings JOIN distinct_queries USING (identity)")
    connection.execute("CREATE TABLE query_hashes (iid INTEGER, hash_1 UBIGINT, hash_2 UBIGINT)")
    for texts in _batches(connection, "SELECT iid, identity FROM distinct_queries"):
        hashes_N2 = text_hashes(texts["identity"])
        columns = {"iid": texts["iid"], "hash_1": hashes_N2[:, 0], "hash_2": hashes_N2[:, 1]}
        _insert(connection, "query_hashes", pa.table(columns))
    connection.execute("CREATE VIEW queries AS SELECT * FROM distinct_queries JOIN query_hashes USING (iid)")
    return number(connection, "SELECT (SELECT count(*) FROM spellings) - (SELECT count(*) FROM distinct_queries)")


def build_labels(connection: Any, n_attributes: int) -> None:
    """Make the tables `label_texts` and `labels`.

    The text and the attributes of a label are those of the latest day, and of the latest row among these.
    """
    names = [f"attribute_{number}" for number in range(n_attributes)]
    connection.execute(
        f"CREATE TABLE label_texts AS SELECT {', '.join(['label', 'label_text', *names])}, min(first) AS first, "
        "(coalesce(max(day), DATE '0001-01-01'), max(first)) AS latest, min(day) AS first_day, max(day) AS last_day "
        "FROM cells GROUP BY ALL"
    )
    latest = "".join(f", arg_max({name}, latest) FILTER ({name} IS NOT NULL) AS {name}" for name in names)
    connection.execute(
        "CREATE TABLE labels AS SELECT (row_number() OVER (ORDER BY min(first)) - 1)::INTEGER AS lid, label, "
        "arg_max(label_text, latest) AS text, min(first_day) AS first_day, max(last_day) AS last_day"
        f"{latest} FROM label_texts GROUP BY label"
    )


def renamed_labels(connection: Any) -> Any:
    """Return an Arrow table with a row per earlier text of a renamed label: label, earlier, latest, day.

    `day` is the last day on which the label had the earlier text; null without dates.
    """
    return connection.sql(
        "SELECT label_texts.label, label_text AS earlier, text AS latest, max(label_texts.last_day) AS day "
        "FROM label_texts JOIN labels USING (label) WHERE label_text <> text "
        "GROUP BY ALL ORDER BY min(lid), max(label_texts.latest)"
    ).to_arrow_table()


def leave_out_unknown_labels(connection: Any, known: Any) -> list[tuple[int, int, str, int]]:
    """Leave out the cells whose label is not in `known` (Arrow strings); return part, place, label and rows of each."""
    connection.register("known", pa.table({"label": known}))
    connection.execute("CREATE TABLE known_labels AS SELECT * FROM known")
    unknown = connection.execute(
        "SELECT part, place, label, rows FROM cells ANTI JOIN known_labels USING (label) ORDER BY first"
    ).fetchall()
    if unknown:
        connection.execute("ALTER VIEW cells RENAME TO all_cells")
        connection.execute("CREATE VIEW cells AS SELECT * FROM all_cells SEMI JOIN known_labels USING (label)")
    return list(unknown)


def code_cells(connection: Any, period: Period | None, max_validation: int) -> None:
    """Make the table `coded`. The split is that of the row, or that of the day with a period, or UNSPLIT.

    Of the queries in the time of validation, about `max_validation` are validation queries; their rows of that time
    are not in training. The other rows of that time are.
    """
    split, hashes = _split(connection, period, max_validation)
    connection.execute(
        f"CREATE TABLE coded AS SELECT iid, lid, {split} AS split, day, position, origin, clicks, impressions, rows, "
        f"first FROM cells JOIN iid_of USING (query) JOIN labels USING (label){hashes}"
    )


def _split(connection: Any, period: Period | None, max_validation: int) -> tuple[str, str]:
    """Return SQL for the split of a cell, and for the tables that it needs."""
    if period is None or period.test_from is None:
        return f"coalesce(split, {UNSPLIT})::TINYINT", ""
    is_test = f"day >= DATE '{period.test_from}'"
    if period.validation_from is None:
        return f"(CASE WHEN {is_test} THEN {TEST} ELSE {TRAIN} END)::TINYINT", ""
    is_late = f"day >= DATE '{period.validation_from}' AND NOT {is_test}"
    queries = number(
        connection,
        f"SELECT count(DISTINCT iid) FROM cells JOIN iid_of USING (query) WHERE {is_late} AND clicks > 0",
    )
    largest = min(HASHES - 1, HASHES * max_validation // max(queries, 1))
    is_validation = f"{is_late} AND hash_2 <= {largest}::UBIGINT"
    split = f"(CASE WHEN {is_test} THEN {TEST} WHEN {is_validation} THEN {VALIDATION} ELSE {TRAIN} END)::TINYINT"
    return split, " JOIN query_hashes USING (iid)"


def number(connection: Any, query: str) -> int:
    """Return the integer that a query selects."""
    return int(connection.execute(query).fetchall()[0][0])


def _batches(connection: Any, query: str) -> Iterator[Any]:
    """Yield the rows of a query as Arrow tables. Another cursor reads them, so the connection can insert meanwhile."""
    with connection.cursor() as cursor:
        for batch in cursor.sql(query).to_arrow_reader(ROWS_PER_BATCH):
            yield pa.table(batch)


def _insert(connection: Any, table: str, rows: Any) -> None:
    connection.register("inserted", rows)
    connection.execute(f"INSERT INTO {table} SELECT * FROM inserted")
    connection.unregister("inserted")
