"""The raw LF-* format of the XMC repository, on a small folder and on damaged ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.errors import DatasetError
from training.data import Dataset, SplitName
from training.evaluation.imputation import Imputation
from training.evaluation.ranking import ExactRanker
from training.evaluation.results import EvaluationData, evaluate
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings

LABELS = [
    {"uid": "L0", "title": "Coffee Mill", "content": "grinds beans"},
    {"uid": "L1", "title": "Tea Pot", "content": ""},
    {"uid": "L2", "title": "Sugar Bowl", "content": "white"},
]
TRAIN = [
    {"uid": "A", "title": "Espresso Cup", "content": "small", "target_ind": [0, 2], "target_rel": [1.0, 1.0]},
    {"uid": "B", "title": "Tea Pot", "content": "round", "target_ind": [1, 2], "target_rel": [1.0, 1.0]},
    {"uid": "C", "title": "Spoon", "content": "", "target_ind": [], "target_rel": []},
]
TEST = [
    {"uid": "A", "title": "Mug", "content": "large", "target_ind": [0], "target_rel": [1.0]},
    {"uid": "E", "title": "Sugar Bowl", "content": "", "target_ind": [1, 2], "target_rel": [1.0, 0.0]},
]


def lf_folder(folder: Path, **changes: Any) -> Path:
    """Write a folder in the repository's format; `changes` replace parts, None leaves one out."""
    good = {"lbl": LABELS, "trn": TRAIN, "tst": TEST, "train": "1 1\n", "test": "1 2\n"}
    parts = {**good, **changes}
    folder.mkdir()
    for name in ("lbl", "trn", "tst"):
        if parts[name] is not None:
            lines = "".join(f"{json.dumps(record)}\n" for record in parts[name])
            (folder / f"{name}.json.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("train", "test"):
        if parts[name] is not None:
            (folder / f"filter_labels_{name}.txt").write_text(parts[name])
    return folder


def prepared(source: Path, **choices: Any) -> Dataset:
    """Prepare the folder without validation rows."""
    return prepare(source, source.parent / "out", PrepareSettings(**{"validation": 0.0, **choices}))[0]


def label_uids(dataset: Dataset, name: SplitName, column: str = "labels") -> list[list[str]]:
    """Return the uids of each row's labels."""
    uids = dataset.label_table["id"].to_pylist()
    return [[uids[label] for label in row] for row in getattr(dataset.split(name), column)]


def test_the_public_format_is_read_completely(tmp_path: Path) -> None:
    """If this failed, metrics on a public dataset could not be compared with published ones."""
    dataset = prepared(lf_folder(tmp_path / "LF-Kitchen-3"))
    assert dataset.meta.name == "LF-Kitchen-3"
    assert dataset.label_texts == ["Coffee Mill", "Tea Pot", "Sugar Bowl"]
    train, test = dataset.split("train"), dataset.split("test")
    assert (train.ids, train.texts) == (["A", "B"], ["Espresso Cup", "Tea Pot"])
    assert (test.ids, test.texts) == (["A", "E"], ["Mug", "Sugar Bowl"])
    assert label_uids(dataset, "train") == [["L0", "L2"], ["L1", "L2"]]
    assert label_uids(dataset, "train", "exclude") == [[], []], "a positive of training is not ignored"
    assert label_uids(dataset, "test") == [["L0"], ["L1"]]
    assert label_uids(dataset, "test", "exclude") == [[], ["L2"]]
    assert dataset.meta.notes == {"targets_of_relevance_0": 1}
    accounts = dataset.meta.accounts
    assert (accounts["rows"].read, accounts["rows"].written, accounts["rows"].skipped) == (5, 4, {"no_label": 1})
    assert (accounts["labels"].read, accounts["labels"].written, accounts["labels"].skipped) == (3, 3, {})


def test_filters_apply_to_predictions_only_as_in_the_repositorys_evaluation(tmp_path: Path) -> None:
    """If it fails, metrics on a public set cannot be compared with published ones.

    pyxclib's evaluation sets the predicted scores of the filtered pairs to 0 and leaves the true labels as they are.
    `published` computes P@k and PSP@k in this way.
    """
    both = {"target_ind": [0, 1], "target_rel": [1.0, 1.0]}
    test = [{"uid": f"t{row}", "title": f"query {row}", **both} for row in (0, 1)]
    dataset = prepared(lf_folder(tmp_path / "set", tst=test, test="0 0\n1 2\n"))
    queries = dataset.scored("test")
    assert label_uids(dataset, "test") == [["L0", "L1"], ["L0", "L1"]]
    scores_QL = np.array([[0.9, 0.5, 0.7], [0.6, 0.4, 0.8]])
    inverse_L = np.array([1.0, 4.0, 2.0])
    vectors = QueryVectors(torch.from_numpy(scores_QL).float(), torch.zeros(2, 1))
    nothing_imputed = Imputation(np.zeros(0, np.int64), torch.zeros(0, 1), torch.zeros(1))
    labels = LabelVectors(torch.eye(3), torch.zeros(3, 1), torch.zeros(3), nothing_imputed)
    ranker = ExactRanker(vectors, labels, queries.exclude)
    data = EvaluationData(queries, np.ones(3, np.int64), inverse_L)
    measured = evaluate(ranker, data, {"unified": ScoreMix(0.0, 0.0)}, ks=(1, 2)).metrics["unified"]
    expected = published(scores_QL, np.array([[1, 1, 0], [1, 1, 0]]), [(0, 0), (1, 2)], inverse_L)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
    assert expected["P@1"] == 50.0
    assert expected["PSP@2"] == pytest.approx(100 * (4 + 5) / (5 + 5))


def published(scores_QL: Any, true_QL: Any, filtered: list[tuple[int, int]], inverse_L: Any) -> dict[str, float]:
    """Compute P@k and PSP@k by the definition of the repository's scripts."""
    scores_QL = scores_QL.copy()
    for pair in filtered:
        scores_QL[pair] = 0
    figures = {}
    for k in (1, 2):
        top_QK = np.argsort(-scores_QL, axis=1)[:, :k]
        hit_QK = np.take_along_axis(true_QL, top_QK, axis=1) * (np.take_along_axis(scores_QL, top_QK, axis=1) > 0)
        best = np.sort(true_QL * inverse_L, axis=1)[:, ::-1][:, :k].sum()
        figures[f"P@{k}"] = 100 * hit_QK.sum() / (k * len(top_QK))
        figures[f"PSP@{k}"] = 100 * (hit_QK * inverse_L[top_QK]).sum() / best
    return figures


def test_title_and_content_are_one_text_by_option(tmp_path: Path) -> None:
    """If this failed, the full-text sets would be trained on titles."""
    dataset = prepared(lf_folder(tmp_path / "set"), text="title+content")
    assert dataset.label_texts == ["Coffee Mill grinds beans", "Tea Pot", "Sugar Bowl white"]
    assert dataset.split("train").texts == ["Espresso Cup small", "Tea Pot round"]


def test_the_filters_may_be_missing(tmp_path: Path) -> None:
    """If this failed, a set without filter files could not be prepared."""
    dataset = prepared(lf_folder(tmp_path / "set", train=None, test=None))
    assert label_uids(dataset, "train") == [["L0", "L2"], ["L1", "L2"]]


def test_validation_is_cut_from_train_and_test_stays_complete(tmp_path: Path) -> None:
    """If this failed, epochs would be chosen on test queries, or test figures measured on fewer."""
    train = [{"uid": f"q{n}", "title": f"query {n}", "target_ind": [n % 3], "target_rel": [1.0]} for n in range(200)]
    dataset = prepared(lf_folder(tmp_path / "set", trn=train, train=None), validation=0.2)
    sizes = {name: counts.rows for name, counts in dataset.meta.splits.items()}
    assert sizes["train"] + sizes["validation"] == 200
    assert 20 <= sizes["validation"] <= 60
    assert sizes["test"] == 2


def test_skipped_labels_leave_the_others_in_place(tmp_path: Path) -> None:
    """If this failed, one bad label line would shift every target after it onto the wrong label."""
    labels = [LABELS[0], {"uid": "L1", "title": ""}, LABELS[2]]
    dataset = prepared(lf_folder(tmp_path / "set", lbl=labels), skip_bad_rows=True)
    assert dataset.label_texts == ["Coffee Mill", "Sugar Bowl"]
    assert label_uids(dataset, "train") == [["L0", "L2"], ["L2"]]
    assert dataset.meta.notes["targets_of_skipped_labels"] == 2
    assert dataset.meta.skipped == 1


def row(**changes: Any) -> list[dict[str, Any]]:
    """Training rows of which the second has these changes."""
    return [TRAIN[0], {**TRAIN[1], **changes}]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trn": row(uid=None)}, "trn.json.gz line 2: uid is null, not text."),
        ({"trn": row(uid="A")}, 'trn.json.gz line 2: uid "A" is in an earlier row too. Give each row its own uid.'),
        ({"trn": row(title=" ")}, 'trn.json.gz line 2: title is " ", which is empty.'),
        ({"trn": row(target_ind="0")}, 'trn.json.gz line 2: target_ind is "0", not a list of label lines.'),
        ({"trn": row(target_ind=[True])}, "trn.json.gz line 2: target_ind is [true], not a list of label lines."),
        (
            {"trn": row(target_ind=[1, 3])},
            "line 2: target_ind names label 3, but lbl.json has lines 0 to 2. Remove it.",
        ),
        ({"trn": row(target_rel=[1.0])}, "line 2: target_rel is [1.0], not one number for each of 2 targets."),
        ({"lbl": [LABELS[0], LABELS[0], LABELS[2]]}, 'lbl.json.gz line 2: uid "L0" is in an earlier row too.'),
        ({"test": "0\n"}, 'filter_labels_test.txt line 1: "0" is not a pair of row and label. Write two integers.'),
        ({"test": "2 0\n"}, "filter_labels_test.txt line 1: row 2, label 0 is outside rows 0–1, labels 0–2."),
    ],
)
def test_each_bad_line_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """If this failed, a broken download would train on wrong targets or end in a traceback."""
    with pytest.raises(DatasetError) as caught:
        prepared(lf_folder(tmp_path / "set", **changes))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("part", ["lbl", "trn", "tst"])
def test_a_missing_part_is_named(tmp_path: Path, part: str) -> None:
    """If this failed, an incomplete download would be prepared."""
    with pytest.raises(DatasetError, match=rf"has no {part}\.json\.gz\. An LF-\* folder needs trn, tst and lbl"):
        prepared(lf_folder(tmp_path / "set", **{part: None}))


def test_options_of_other_sources_are_refused(tmp_path: Path) -> None:
    """If this failed, an option would be silently ignored."""
    with pytest.raises(
        DatasetError, match=r"--min-clicks does not apply to .*, which is an LF-\* set and has its own labels"
    ):
        prepared(lf_folder(tmp_path / "set"), min_clicks=2)
