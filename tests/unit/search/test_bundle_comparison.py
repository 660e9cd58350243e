"""`bundles diff`: agreement of two bundles, changed queries, and metrics."""

import json
from pathlib import Path

import numpy as np
import pytest

from retrieval import Retriever, open_bundle
from retrieval.errors import BadInput
from retrieval.offline.comparison import compare_bundles
from retrieval.offline.query_files import Queries
from retrieval.open import open_store
from tests.support.bundles import WORDS, label_texts, make_bundle, make_store
from tests.support.command import run

QUERIES = [f"{one} {other}" for one in WORDS[:4] for other in WORDS[4:8]]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("bundles") / "words"))


def test_a_bundle_does_not_differ_from_itself(words: Retriever) -> None:
    """If it fails, equal answers of another bundle are reported as changes."""
    comparison = compare_bundles(words, words, QUERIES, None)
    shares = (comparison.overlap, comparison.same_first, comparison.same)
    assert (shares, comparison.changed, comparison.metrics) == ((1.0, 1.0, 1.0), (), None)


def test_labels_are_compared_by_id_and_not_by_row(tmp_path: Path, words: Retriever) -> None:
    """If it fails, bundles with another order of labels have different answers."""
    texts = label_texts()
    ids = np.random.default_rng(1).permutation(200)
    shuffled = make_bundle(tmp_path / "shuffled", [texts[row] for row in ids], ids=[f"label-{row}" for row in ids])
    # Equal scores at the tenth place are ranked by row, so a few of these labels differ.
    assert compare_bundles(words, open_bundle(shuffled), QUERIES, None).overlap > 0.95


def test_changes_are_removed_and_added_labels(tmp_path: Path, words: Retriever) -> None:
    """If it fails, the comparison names labels that did not change."""
    fewer = open_bundle(make_bundle(tmp_path / "fewer", label_texts()[:150]))
    comparison = compare_bundles(words, fewer, QUERIES, None, k=5)
    overlaps, changes = [], {change.query: change for change in comparison.changed}
    for query, old, new in zip(QUERIES, words.search(QUERIES, 5), fewer.search(QUERIES, 5), strict=True):
        removed = [hit.text for hit in old if hit.id not in {hit.id for hit in new}]
        overlaps.append(1 - len(removed) / 5)
        assert list(changes[query].removed if query in changes else ()) == removed
    assert comparison.overlap == pytest.approx(np.mean(overlaps))
    assert comparison.overlap < 1
    added = [len(change.added) for change in comparison.changed]
    assert added == sorted(added, reverse=True)


def test_metrics_show_which_bundle_is_better(words: Retriever, tmp_path: Path) -> None:
    """If it fails, the worse bundle is activated."""
    truths = [[hits[0].id, "label-of-neither"] for hits in words.search(QUERIES, 1)]
    other = open_bundle(make_bundle(tmp_path / "other", seed=3))
    metrics = compare_bundles(words, other, QUERIES, truths).metrics
    assert metrics is not None
    assert metrics["P@1"][0] == 100.0
    assert metrics["P@5"][0] == pytest.approx(20.0)
    assert metrics["R@10"][0] == pytest.approx(50.0)
    firsts = [hits[0].id for hits in other.search(QUERIES, 1)]
    expected = 100 * np.mean([first in truth for first, truth in zip(firsts, truths, strict=True)])
    assert metrics["P@1"][1] == pytest.approx(expected)


def test_the_commands_roll_back_prune_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, a store cannot be managed from the command line."""
    store = make_store(tmp_path / "store", "one", "two", "three")
    rows = [{"query": query, "labels": [f"one-{row}"]} for row, query in enumerate(QUERIES)]
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("bundles", "diff", store.path, "one", "two", "--queries", queries, "--changed", "2") == 0
    printed = capsys.readouterr().out
    for expected in ("16 queries", "overlap@10", "0.0%", "P@1", "difference", "2 of 16 queries"):
        assert expected in printed
    store.activate("two")
    assert run("bundles", "rollback", store.path) == 0
    assert store.active() == "one"
    assert run("bundles", "prune", store.path, "--keep", "0") == 0
    assert "Removed two, three." in capsys.readouterr().out
    assert open_store(store.path).bundles() == ["one"]
    assert run("bundles", "prune", store.path) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "why"),
    [('{"query": " "}\n', "contains no query"), ('{"query": "red", "labels": "a"}\n', "labels is .a., not")],
)
def test_a_file_without_valid_queries_is_refused(tmp_path: Path, lines: str, why: str) -> None:
    """If it fails, a comparison of no queries is reported as agreement."""
    path = tmp_path / "queries.jsonl"
    path.write_text(lines)
    with pytest.raises(BadInput, match=why):
        Queries(path, None).first(10)
