"""Build the table of a panel dataset: merge queries, assign splits, exclude what a model may not be scored on.

The table has the columns query, labels, split and exclude, as `diptych prepare` reads them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import DatasetError
from retrieval.query_text import is_blank, query_identity, split_key

SHARE = 0.1
MAX_TEST_ROWS, MAX_VALIDATION_ROWS = 5_000, 2_000  # limits of the shares, about
TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema([("query", pa.string()), ("labels", TEXTS), ("split", pa.string()), ("exclude", TEXTS)])


class Row(NamedTuple):
    """A query with its labels. Queries of one group are in one split; without a group, each query is its own."""

    query: str
    labels: Iterable[str]
    group: str = ""


@dataclass
class Query:
    """A query's text and group, and the identities of its labels in order of occurrence."""

    text: str
    group: str
    labels: dict[str, None] = field(default_factory=dict)


def build_table(rows: Iterable[Row], metadata: Mapping[str, str]) -> Any:
    """Return the Arrow table of rows, with `metadata` in its schema. Raises DatasetError without rows.

    Queries that the encoder reads alike are one row, and labels that differ only in case or spaces are one label, with
    the first spelling. A query's own text is not one of its labels.
    """
    queries, label_texts = _merge(rows)
    if not queries:
        raise DatasetError("The source gave no rows. Use the version that the panel names.")
    splits = assign_splits(queries)
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for key, query in queries.items():
        columns["query"].append(query.text)
        columns["labels"].append([label_texts[label] for label in query.labels])
        columns["split"].append(splits[key])
        columns["exclude"].append([label_texts[label] for label in _excluded(key, queries, splits, label_texts)])
    return pa.table(columns, SCHEMA).replace_schema_metadata(dict(metadata))


def assign_splits(queries: Mapping[str, Query]) -> dict[str, str]:
    """Return the split of each query by key: the hash of its group decides, so a split never changes with the order."""
    test = min(SHARE, MAX_TEST_ROWS / len(queries))
    validation = min(SHARE, MAX_VALIDATION_ROWS / len(queries))
    return {key: _split(query.group, test, validation) for key, query in queries.items()}


def write_table(table: Any, path: Path) -> None:
    """Write a Parquet file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def _merge(rows: Iterable[Row]) -> tuple[dict[str, Query], dict[str, str]]:
    """Return queries by key, and label texts by identity; rows without a label are left out."""
    queries: dict[str, Query] = {}
    label_texts: dict[str, str] = {}
    for row in rows:
        text = " ".join(row.query.split())
        if is_blank(text):
            continue
        key, identity = split_key(text), query_identity(text)
        for label in (" ".join(label.split()) for label in row.labels):
            label_identity = query_identity(label)
            if is_blank(label) or label_identity == identity:
                continue
            label_texts.setdefault(label_identity, label)
            queries.setdefault(key, Query(text, row.group or key)).labels[label_identity] = None
    return queries, label_texts


def _excluded(
    key: str, queries: Mapping[str, Query], splits: Mapping[str, str], label_texts: Mapping[str, str]
) -> list[str]:
    """Return the labels that do not count for a query.

    The query's own text is excluded if it is a label. Of a test or validation query, a label is excluded if it is also
    a query of an earlier split with this text among its labels: the reverse pair was trained on.
    """
    query = queries[key]
    identity = query_identity(query.text)
    excluded = [identity] if identity in label_texts else []
    earlier = {"train": (), "validation": ("train",), "test": ("train", "validation")}[splits[key]]
    for label in query.labels:
        reverse_key = split_key(label_texts[label])
        reverse = queries.get(reverse_key)
        if reverse and splits[reverse_key] in earlier and identity in reverse.labels:
            excluded.append(label)
    return excluded


def _split(group: str, test: float, validation: float) -> str:
    digest = hashlib.blake2b(f"split:{group}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2.0**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
