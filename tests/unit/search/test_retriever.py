"""Search in an open bundle: scores of both halves, weights, exact search, errors, threads."""

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import Hit, Retriever, open_bundle
from retrieval.bundle.golden_answers import check_golden
from retrieval.errors import BadInput, BundleError
from retrieval.open import open_store
from retrieval.results import Ranking
from retrieval.search.indexes import HnswIndex
from tests.support.bundles import label_texts, make_bundle

ROOT = Path(__file__).parents[3]
QUERIES = ["cheap running shoes", "red city", "light rain", "blue trail winter kids"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "words", ef_search=(200, 200, 200))


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Retriever:
    return open_bundle(bundle, threads=1)


def unit_label_halves(retriever: Retriever) -> tuple[Any, Any]:
    vectors_LD = retriever.vectors_LD / retriever.manifest.model.label_scale()
    return vectors_LD[:, :24], vectors_LD[:, 24:]


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("exact", [False, True])
def test_scores_are_the_weighted_sum_of_the_halves(retriever: Retriever, weight: float, exact: bool) -> None:
    """If it fails, hits are not ranked by (1−w)·s_DE + w·s_CLF, or the scores of the two halves are wrong."""
    dual_QD, classifier_QC = retriever.encode(QUERIES)
    dual_LD, classifier_LC = unit_label_halves(retriever)
    scores_QL = (1 - weight) * dual_QD @ dual_LD.T + weight * classifier_QC @ classifier_LC.T
    for query, hits in enumerate(retriever.search(QUERIES, 10, weight=weight, exact=exact)):
        rows = [int(hit.id.removeprefix("label-")) for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores_QL[query])[::-1][:10], atol=1e-5)
        np.testing.assert_allclose(
            [hit.dual_encoder for hit in hits], (1 - weight) * dual_LD[rows] @ dual_QD[query], atol=1e-5
        )
        assert all(hit.score == hit.dual_encoder + hit.classifier for hit in hits)


def test_the_weight_of_training_is_the_default(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a search without a weight does not use the one that training chose."""
    other = open_bundle(make_bundle(tmp_path / "other", weight=0.25))
    assert other.search(QUERIES, 5) == other.search(QUERIES, 5, weight=0.25)
    assert other.search(QUERIES, 5) != other.search(QUERIES, 5, weight=0.75)


def test_answers_name_the_bundle_that_gave_them(tmp_path: Path) -> None:
    """If it fails, after a switch it is unknown which bundle an answer is from."""
    store = open_store(tmp_path / "store")
    for name in ("monday", "tuesday"):
        with store.incoming() as folder:
            store.publish(make_bundle(folder), name)
    store.activate("monday")
    retriever = open_bundle(store.path)
    store.activate("tuesday")
    assert retriever.search(QUERIES, 3).generation == "monday"
    assert open_bundle(store.path).search(QUERIES, 3).generation == "tuesday"


def test_hits_carry_the_label_table(retriever: Retriever) -> None:
    """If it fails, a hit has another label's text or attributes."""
    texts = label_texts()
    for hit in retriever.search(["shoes"], 20)[0]:
        row = int(hit.id.removeprefix("label-"))
        assert isinstance(hit, Hit)
        assert (hit.text, hit.attributes) == (texts[row], {"market": ("US", "CA")[row % 2], "year": 2020 + row % 3})


def test_a_text_finds_itself_first(retriever: Retriever) -> None:
    """If it fails, queries and labels are not encoded the same way."""
    texts = label_texts()[:50]
    for text, hits in zip(texts, retriever.search(texts, 1), strict=True):
        assert sorted(hits[0].text.split()) == sorted(text.split())
        assert hits[0].score == pytest.approx(1.0, abs=1e-5)


def test_equal_labels_come_in_row_order(tmp_path: Path) -> None:
    """If it fails, the order of labels with the same text depends on the run, the build or the index."""
    retriever = open_bundle(make_bundle(tmp_path / "twins", ["red shoes"] * 12 + ["rain"] * 3))
    for exact in (False, True):
        hits = retriever.search(["red shoes"], 12, exact=exact)[0]
        assert [hit.id for hit in hits] == [f"label-{row}" for row in range(12)]


@pytest.mark.parametrize("k", [1, 199, 200, 10_000])
def test_k_beyond_the_labels_gives_all_of_them(retriever: Retriever, k: int) -> None:
    """If it fails, a request for more labels than exist raises instead of returning all."""
    assert [len(hits) for hits in retriever.search(["red", "blue"], k)] == [min(k, 200)] * 2


def test_an_answer_does_not_depend_on_its_batch(retriever: Retriever) -> None:
    """If it fails, batching in the service changes answers."""
    queries = (QUERIES * 100)[:300]
    together = retriever.search_rows(queries, 10)
    for place in (0, 1, 63, 64, 255, 256, 299):
        alone = retriever.search_rows([queries[place]], 10)
        assert alone.rows_QK.tolist() == [together.rows_QK[place].tolist()]
        np.testing.assert_allclose(alone.scores_QK[0], together.scores_QK[place], atol=1e-6)


def test_many_threads_get_the_same_answers(retriever: Retriever) -> None:
    """If it fails, concurrent searches change each other's answers."""
    expected = [retriever.search([query], 10) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            answers = list(pool.map(lambda query: retriever.search([query], 10), QUERIES * 4))
            assert answers == expected * 4


def test_unknown_words_still_get_an_answer(retriever: Retriever) -> None:
    """If it fails, a query without any known token divides by zero."""
    for hits in retriever.search(["!!!", "xyzzy", "\u200b", "🛒"], 3):
        assert len(hits) == 3
        assert all(np.isfinite(hit.score) for hit in hits)


def test_a_very_long_query_is_cut(retriever: Retriever) -> None:
    """If it fails, one text of a megabyte blocks the encoder for all others."""
    long = "red shoes " * 200_000
    assert retriever.search([long], 3) == retriever.search([long[:512]], 3)


def test_timings_cover_each_stage(retriever: Retriever) -> None:
    """If it fails, the service's stage metrics are empty."""
    timings = retriever.search_rows(QUERIES, 3).timings
    assert min(timings.tokenize, timings.encode, timings.search) > 0


def test_padding_is_what_shorter_texts_are_filled_with(retriever: Retriever) -> None:
    """If it fails, metrics do not show how much of the encoder's work is padding."""
    timings = retriever.search_rows(["red", "red red red"] * 40, 3).timings
    alone = [retriever.search_rows([text], 3).timings for text in ("red", "red red red")]
    assert [one.padding for one in alone] == [0, 0]
    short, long = (one.tokens for one in alone)
    assert timings.tokens == 40 * (short + long)
    assert timings.padding == 24 * (long - short)  # of 80 texts by length, the first 64 go together: 40 long, 24 short


def test_no_queries_give_no_answers(retriever: Retriever) -> None:
    """If it fails, an empty batch is an error."""
    assert retriever.search([]) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"queries": ["red", ""]}, "query 1 is empty"),
        ({"queries": [" \t\n"]}, "query 0 is empty"),
        ({"queries": "red"}, "single text"),
        ({"queries": ["red", 3]}, "query 1 is int"),
        ({"queries": [None]}, "query 0 is NoneType"),
        ({"queries": ["half \ud83d"]}, "query 0 is not valid Unicode at character 5"),
        ({"queries": ["red"], "k": 0}, "k is 0"),
        ({"queries": ["red"], "k": 2.5}, "k is 2.5"),
        ({"queries": ["red"], "k": True}, "k is True"),
        ({"queries": ["red"], "weight": -0.1}, "weight is -0.1"),
        ({"queries": ["red"], "weight": float("nan")}, "weight is nan"),
        ({"queries": ["red"], "weight": "half"}, "weight is 'half'"),
    ],
)
def test_bad_input_is_named(retriever: Retriever, arguments: dict[str, Any], said: str) -> None:
    """If it fails, a caller's mistake ends in a traceback from native code."""
    with pytest.raises(BadInput, match=said):
        retriever.search(**arguments)


@pytest.mark.parametrize("provider", ["cuda", "npu"])
def test_a_provider_that_is_not_there_is_an_error(bundle: Path, provider: str) -> None:
    """If it fails, a service asked to use a GPU silently runs on the CPU."""
    import onnxruntime

    if provider == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a CUDA build of ONNX Runtime")
    with pytest.raises(BadInput, match=f"provider '{provider}'"):
        open_bundle(bundle, provider=provider)


def test_a_closed_retriever_says_so(bundle: Path) -> None:
    """If it fails, searching a closed retriever crashes in native code."""
    with open_bundle(bundle) as retriever:
        retriever.search(["red"])
    with pytest.raises(BundleError, match="'words' is closed"):
        retriever.search(["red"])


def test_a_closed_retriever_holds_nothing(tmp_path: Path) -> None:
    """If it fails, a program that opens a new bundle each day keeps the memory and threads of all earlier ones."""
    before = set(threading.enumerate())
    retriever = open_bundle(make_bundle(tmp_path / "words"), threads=3)
    retriever.search(QUERIES * 20, 5)
    loaded = retriever._open_parts()
    parts = [weakref.ref(part) for part in (loaded.ranker.index, loaded.encoder, loaded.labels, retriever.vectors_LD)]
    del loaded
    assert set(threading.enumerate()) - before
    retriever.close()
    gc.collect()
    assert [part() for part in parts] == [None] * 4
    mapped = Path("/proc/self/maps").read_text()
    assert not [name for name in retriever.manifest.files if f"{tmp_path}/words/{name}" in mapped]
    assert not set(threading.enumerate()) - before
    retriever.close()
    for use in (lambda: retriever.labels, lambda: retriever.vectors_LD, lambda: retriever.pause([])):
        with pytest.raises(BundleError, match="'words' is closed"):
            use()


def test_closing_beside_searches_ends_them_whole_or_with_one_sentence(tmp_path: Path) -> None:
    """If it fails, a search during `close` ends in an error of a library, or never."""
    retriever = open_bundle(make_bundle(tmp_path / "words"), threads=3)
    expected, ready = retriever.search(QUERIES * 40, 5), threading.Barrier(5)

    def ask() -> list[Any]:
        ready.wait()
        try:
            return [retriever.search(QUERIES * 40, 5) for _ in range(20)]
        except BundleError as error:
            return [str(error)]

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        ready.wait()
        retriever.close()
        found = [answers for one in asked for answers in one.result()]
    closed = "the retriever of bundle 'words' is closed. Open it again."
    assert all(answers in (expected, closed) for answers in found)


FORKED = """
import multiprocessing, sys
from retrieval import open_bundle
from retrieval.errors import BundleError

retriever = open_bundle(sys.argv[1], threads=2)
retriever.search(["red shoes"] * 100, 5)

def ask(how):
    try:
        return retriever.close() if how == "close" else len(getattr(retriever, how)(["red shoes"] * 100))
    except BundleError as error:
        return str(error)

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map_async(ask, ["search", "encode", "search_rows", "close"], 4).get(60), sep="\\n")
print(len(retriever.search(["red shoes"] * 100)))
"""


def test_a_forked_retriever_says_so(bundle: Path) -> None:
    """If it fails, a program that forks its workers after opening a bundle hangs forever."""
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, str(bundle)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    said = "the retriever of bundle 'words' was opened before this process was forked. Open it after the fork."
    assert ended.stdout.splitlines() == [said] * 3 + ["None", "100"]


def test_golden_answers_are_given_again(retriever: Retriever) -> None:
    """If it fails, an undamaged bundle is refused, or the check compares nothing."""
    report = retriever.check_golden()
    assert (report.queries, report.overlap_at_10, report.passed) == (3, 1.0, True)
    assert report.score_deviation <= 1e-6


def test_other_answers_fail_the_golden_check(bundle: Path) -> None:
    """If it fails, wrong answers of a CPU pass the check of golden answers."""
    retriever = open_bundle(bundle)
    rng = np.random.default_rng(0)

    class Disturbed:
        """A bundle on a CPU that computes other scores."""

        folder, manifest, golden, labels = retriever.folder, retriever.manifest, retriever.golden, retriever.labels

        def search_rows(self, queries: list[str], k: int = 10, **options: Any) -> Ranking:
            ranking = retriever.search_rows(queries, k, **options)
            noise_QK = 0.05 * rng.standard_normal(ranking.scores_QK.shape)
            return replace(ranking, scores_QK=ranking.scores_QK + noise_QK)

    report = check_golden(Disturbed())
    assert not report.passed
    assert report.score_deviation > 1e-4


@pytest.mark.parametrize(("given", "used"), [({"threads": 1}, 1), ({"threads": 1, "search_threads": 2}, 2)])
def test_the_index_may_have_other_threads_than_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, int], used: int
) -> None:
    """If it fails, the numbers of threads for encoding and for searching cannot be set separately."""
    folder, load, seen = make_bundle(tmp_path / "words"), HnswIndex.load, []
    monkeypatch.setattr(HnswIndex, "load", lambda *args, **more: (seen.append(args[4].threads), load(*args, **more))[1])
    with open_bundle(folder, **given) as retriever:
        assert len(retriever.search(["red shoes"] * 30, 3)) == 30
    assert seen == [used]


@pytest.mark.parametrize("exact", [True, False])
def test_paused_labels_make_room_for_the_next_ones(tmp_path: Path, exact: bool) -> None:
    """If it fails, paused labels are shown, or an answer has fewer than k labels."""
    with open_bundle(make_bundle(tmp_path / "words")) as retriever:
        (before,) = retriever.search(["red winter city"], 30, exact=exact)
        paused = {hit.id for hit in before[:20:2]}
        assert retriever.pause([*paused, "label-of-another-bundle"]) == ["label-of-another-bundle"]
        (after,) = retriever.search(["red winter city"], 20, exact=exact)
        assert [hit.id for hit in after] == [hit.id for hit in before if hit.id not in paused]
        assert retriever.pause(f"label-{row}" for row in range(200)) == []
        assert list(retriever.search(["red"], 5, exact=exact)) == [[]]
        retriever.pause([])
        assert retriever.search(["red winter city"], 30, exact=exact)[0] == before


def test_a_weight_whose_index_misses_too_much_compares_every_label(tmp_path: Path) -> None:
    """If it fails, a search at a weight without a measured ef_search misses labels, or fails."""
    with open_bundle(make_bundle(tmp_path / "bundle", ef_search=(32, 32, None))) as retriever:
        texts = label_texts()[:20]
        found = retriever.search_rows(texts, 5, weight=1.0)
        assert (found.rows_QK == retriever.search_rows(texts, 5, weight=1.0, exact=True).rows_QK).all()
