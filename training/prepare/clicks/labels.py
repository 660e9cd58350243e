"""Make the labels of a dataset from a label table and a click log. The label table overrides the log.

Shapes: L labels: those of the label table, then those that only the log has. K labels of the log.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.prepare.clicks.blocks import MergedBlocks, added_up_labels
from training.prepare.clicks.vocabulary import Vocabulary
from training.prepare.clicks.weights import EXPOSURE, POSITIVE
from training.prepare.source_data import padded, text_column
from training.prepare.sources.label_table import SourceLabels


@dataclass(frozen=True)
class LogLabels:
    """Labels in Arrow columns of L; `number_of_lid` is the number of each of the K labels of the log."""

    ids: Any
    texts: Any
    columns: dict[str, Any]
    is_label_L: npt.NDArray[np.bool_]
    number_of_lid: npt.NDArray[np.int32]


def build_labels(connection: Any, source: MergedBlocks) -> None:
    """Make the tables `label_texts`, a row per label, text and attributes, and `labels`.

    The text and the attributes of a label are those of the latest day, and of the latest row among these.
    """
    connection.register("label_texts", added_up_labels(connection, source))
    names = source.form.label_keys[1:]
    latest = "".join(f", arg_max({name}, latest) FILTER ({name} IS NOT NULL) AS {name}" for name in names)
    connection.execute(
        f"CREATE TABLE labels AS SELECT label AS lid{latest}, min(first_day) AS first_day, max(last_day) AS last_day, "
        "min(first) AS first, sum(rows)::BIGINT AS rows FROM label_texts GROUP BY label"
    )


def renamed_labels(connection: Any, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return a row per earlier text of a renamed label: label, earlier, latest, and the last day of the earlier text.

    `day` is null without dates.
    """
    renamed = connection.sql(
        "SELECT lid AS label, label_texts.text AS earlier, labels.text AS latest, max(label_texts.last_day) AS day "
        "FROM label_texts JOIN labels ON label = lid WHERE label_texts.text <> labels.text "
        "GROUP BY ALL ORDER BY lid, max(label_texts.latest)"
    ).to_arrow_table()
    texts = {name: vocabulary.label_texts.texts.take(renamed[name].combine_chunks()) for name in ("earlier", "latest")}
    columns = {"label": vocabulary.labels.texts.take(renamed["label"].combine_chunks()), **texts, "day": renamed["day"]}
    rows: list[dict[str, Any]] = pa.table(columns).to_pylist()
    return rows


def unknown_labels(connection: Any, keys: Any, known: Any) -> tuple[npt.NDArray[np.bool_], list[tuple[int, str, int]]]:
    """Return which labels of the log are in `known`, and the first place, label and rows of each other label.

    keys, known: Arrow strings.
    """
    is_known_K = np.asarray(pc.is_in(keys, value_set=text_column(known).combine_chunks()))
    counted = connection.execute("SELECT first, lid, rows FROM labels ORDER BY first").fetchall()
    return is_known_K, [(first, keys[lid].as_py(), rows) for first, lid, rows in counted if not is_known_K[lid]]


def log_labels(
    connection: Any, vocabulary: Vocabulary, listed: SourceLabels, attributes: tuple[str, ...], *, dates: bool
) -> LogLabels:
    """Return the labels of the tables `labels` and `pairs` of a click log, after those of the label table.

    A label is left out (`is_label_L` is false) if all of its pairs are, unless the log has the texts of its labels.
    """
    log = connection.sql(
        "SELECT labels.*, coalesce(is_used, false) AS is_used FROM labels LEFT JOIN (SELECT lid, true AS is_used FROM "
        f"pairs WHERE kind IN ({POSITIVE}, {EXPOSURE}) GROUP BY lid) USING (lid) ORDER BY lid"
    ).to_arrow_table()
    keys = vocabulary.labels.texts
    number_K, is_new_K = _numbers(keys, listed)
    new = log.filter(pa.array(is_new_K))
    has_texts = "text" in log.column_names
    n_labels = listed.listed + new.num_rows
    is_label_L = np.ones(n_labels, np.bool_)
    is_label_L[listed.listed :] = np.asarray(new["is_used"]).astype(np.bool_) | has_texts
    ids = keys.filter(pa.array(is_new_K))
    texts = vocabulary.label_texts.texts.take(new["text"].combine_chunks()) if has_texts else ids
    columns = {name: padded(column, n_labels) for name, column in listed.attributes.items()}
    for number, name in enumerate(attributes):
        columns[name] = _latest(columns.get(name), log[f"attribute_{number}"], number_K, n_labels)
    if dates:
        for name, source in (("first_seen", "first_day"), ("last_seen", "last_day")):
            columns[name] = _latest(None, log[source], number_K, n_labels)
    return LogLabels(
        ids=pa.chunked_array([*text_column(listed.ids).chunks, ids]),
        texts=pa.chunked_array([*text_column(listed.texts).chunks, texts]),
        columns=columns,
        is_label_L=is_label_L,
        number_of_lid=number_K,
    )


def _numbers(keys: Any, listed: SourceLabels) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Return the number of each label of the log, and whether the label table does not have it."""
    known = text_column(list(listed.number_of_key)).combine_chunks()
    place_K = np.asarray(pc.fill_null(pc.index_in(text_column(keys), value_set=known), -1))
    is_new_K = place_K < 0
    number_of_place = np.fromiter(listed.number_of_key.values(), np.int32, len(listed.number_of_key))
    number_K = np.where(is_new_K, listed.listed + np.cumsum(is_new_K) - 1, 0).astype(np.int32)
    number_K[~is_new_K] = number_of_place[place_K[~is_new_K]]
    return number_K, is_new_K


def _latest(listed: Any, log: Any, number_K: npt.NDArray[np.int32], n_labels: int) -> Any:
    """Return a column of L with the values of the label table where it has one, else those of the log."""
    place_L = np.full(n_labels, -1, np.int64)
    place_L[number_K] = np.arange(len(number_K))
    values = log.combine_chunks().take(pa.array(place_L, mask=place_L < 0))
    if listed is None:
        return pa.chunked_array([values])
    return pc.coalesce(listed, pa.chunked_array([values.cast(listed.type)]))
