"""Properties of every dataset, with random rows."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.query_text import is_blank
from training.data import SPLITS, Dataset, DatasetMeta, Ragged
from training.prepare.assemble import TEST, TRAIN, cut
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings
from training.prepare.source_data import UNSPLIT
from training.prepare.split_hash import text_hashes
from training.prepare.writing import write_dataset

N_LABELS = 6
DAY = np.datetime64("2026-09-01")
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: not is_blank(text))
LABEL_SETS = st.lists(st.integers(0, N_LABELS - 1), unique=True, max_size=N_LABELS)
SOURCE_ROWS = st.lists(st.tuples(TEXTS, LABEL_SETS, LABEL_SETS), min_size=1, max_size=20)
RAGGED = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=12)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(TEXTS, LABEL_SETS, LABEL_SETS), max_size=12),
    st.lists(TEXTS, min_size=N_LABELS, max_size=N_LABELS),
)
def test_a_dataset_is_read_as_it_was_written(rows: list[tuple[str, list[int], list[int]]], labels: list[str]) -> None:
    """If this failed, some text, some combination of labels or their clicks would change between prepare and train."""
    table = pa.table(
        {
            "id": pa.array([str(number) for number in range(len(rows))], pa.string()),
            "text": pa.array([row[0] for row in rows], pa.string()),
            "labels": pa.array([row[1] for row in rows], pa.list_(pa.int64())),
            "exclude": pa.array([row[2] for row in rows], pa.list_(pa.int32())),
            "weights": pa.array([[label + 0.5 for label in row[1]] for row in rows], pa.list_(pa.float64())),
            "last_day": pa.array([[(DAY + label).item() for label in row[1]] for row in rows], pa.list_(pa.date32())),
        }
    )
    label_table = pa.table({"id": [str(number) for number in range(N_LABELS)], "text": labels})
    with tempfile.TemporaryDirectory() as folder:
        written = write_dataset(Path(folder) / "d", label_table, {"test": table}, DatasetMeta(name="d"))
        read = Dataset.open(Path(folder) / "d")
        split = read.split("test")
        assert read.fingerprint == written.fingerprint
    assert (split.texts, read.label_texts) == ([row[0] for row in rows], labels)
    for number, (_, truth, exclude) in enumerate(rows):
        assert list(split.labels[number]) == [label for label in truth if label not in exclude]
        assert list(split.exclude[number]) == exclude
    assert split.weights_V is not None
    assert split.last_day_V is not None
    assert split.weights_V.tolist() == (split.labels.values + 0.5).tolist()
    assert (split.last_day_V == DAY + split.labels.values).all()


@settings(max_examples=40)
@given(SOURCE_ROWS)
def test_no_split_breaks_a_guarantee(rows: list[tuple[str, list[int], list[int]]]) -> None:
    """If this failed, some source would train on an excluded label or on a row without a positive, or repeat an id."""
    rows = [*rows, ("the one sure row", [0], [])]
    lines = [
        {"query": text, "labels": [f"label {n}" for n in labels], "exclude": [f"label {n}" for n in exclude]}
        for text, labels, exclude in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text("\n".join(map(json.dumps, lines)))
        dataset, _ = prepare(source, Path(folder) / "d", PrepareSettings(test=0, validation=0))
        splits = {name: dataset.split(name) for name in SPLITS}
        n_labels = dataset.n_labels
    account = dataset.meta.accounts["rows"]
    assert account.read == len(rows)
    assert sum(len(split) for split in splits.values()) + sum(account.skipped.values()) == len(rows)
    for split in splits.values():
        assert len(set(split.ids)) == len(split)
        assert not split.labels.overlap(split.exclude).any()
        assert ((split.labels.values >= 0) & (split.labels.values < n_labels)).all()
    assert (splits["train"].labels.lengths > 0).all()


@given(st.lists(TEXTS, min_size=1, max_size=30), st.lists(TEXTS, max_size=30), st.floats(0, 0.9))
def test_a_query_stays_on_its_side(some: list[str], others: list[str], share: float) -> None:
    """If this failed, new rows would move old queries between train and test, and a query could be in both."""

    def sides(texts: list[str]) -> dict[str, set[int]]:
        hashes = text_hashes(pa.array(texts, pa.large_string()))[:, 0]
        codes = cut(np.full(len(texts), UNSPLIT, np.int8), hashes, UNSPLIT, share, TEST, TRAIN)
        return {text: {int(codes[n]) for n, other in enumerate(texts) if other == text} for text in texts}

    alone, together = sides(some), sides(others + some)
    assert all(len(side) == 1 for side in together.values())
    assert all(together[text] == side for text, side in alone.items())


def test_the_hash_of_a_query_never_changes() -> None:
    """If this failed, preparing again with a newer release would move queries from test to train."""
    hashes = text_hashes(pa.array(["cheap flights"])).tolist()
    assert hashes == [[2989692306082692260, 13455244002111383586]]


def test_a_cut_takes_about_its_share_and_two_cuts_are_independent() -> None:
    """If this failed, --test 0.1 would select another share, or validation rows would not be a random part of train."""
    hashes = text_hashes(pa.array([f"query {number}" for number in range(20_000)]))
    everything = np.full(len(hashes), UNSPLIT, np.int8)
    first, second = (cut(everything, hashes[:, column], UNSPLIT, 0.1, TEST, TRAIN) == TEST for column in (0, 1))
    assert abs(first.mean() - 0.1) < 0.01
    assert abs(second[first].mean() - 0.1) < 0.03


@given(RAGGED, RAGGED, st.data())
def test_ragged_rows_behave_like_lists(lists: list[list[int]], others: list[list[int]], data: st.DataObject) -> None:
    """If this failed, some order of empty rows would move labels to the next query."""
    ragged = Ragged.from_lists(lists)
    assert [list(row) for row in ragged] == lists
    assert [list(row) for row in Ragged.from_arrow(ragged.to_arrow())] == lists
    start, stop = data.draw(st.integers(-15, 15)), data.draw(st.integers(-15, 15))
    step = data.draw(st.sampled_from([None, 1, 2, -1]))
    assert [list(row) for row in ragged[start:stop:step]] == lists[start:stop:step]
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    assert [list(row) for row in ragged.take(np.array(rows, np.int64))] == [lists[row] for row in rows]
    chosen = [bool(len(row) % 2) for row in lists]
    assert [list(row) for row in ragged.select(np.array(chosen, np.bool_))] == [row for row in lists if len(row) % 2]
    padded = (others + [[]] * len(lists))[: len(lists)]
    kept = ragged.keep(~ragged.overlap(Ragged.from_lists(padded)))
    assert [list(row) for row in kept] == [
        [value for value in row if value not in other] for row, other in zip(lists, padded, strict=True)
    ]
