"""The gates of an export, on small hand-made cases."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from export.index.kind import is_exact_faster, median_seconds, without_slow_weights
from export.index.recall import (
    EF_LADDER,
    IndexProbe,
    RecallMeasurement,
    always_true,
    choose_ef_search,
    ef_search_at,
    recall_at,
)  # fmt: skip
from export.quality import check_quality, drop_excluded
from export.sampling import sample, sample_label_texts, with_long_texts
from retrieval.bundle.facts import EfSearch, ModelFacts, Quality
from retrieval.bundle.manifest import QUERY_ENCODER, TOKENIZER, VECTORS, read_manifest
from retrieval.errors import GateError
from retrieval.search.distinct_vectors import nodes_of
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import HnswIndex
from retrieval.system.progress import no_progress
from tests.support.bundles import label_texts, make_bundle
from training.data.token_cache import TextTokenizer


def test_recall_counts_scores_and_so_accepts_ties() -> None:
    """If it fails, labels with the same text lower the measured recall, or a missed label is not counted."""
    best_QK = np.array([[0.9, 0.8, 0.7], [0.5, 0.5, 0.5]], np.float32)
    found_QK = np.array([[0.9, 0.7, 0.6], [0.5, 0.5, 0.5]], np.float32)
    assert recall_at(3, found_QK, best_QK) == pytest.approx(5 / 6)
    assert recall_at(1, found_QK, best_QK) == 1.0
    assert recall_at(10, found_QK, best_QK) == pytest.approx(5 / 6)


def test_excluded_labels_do_not_cost_a_place() -> None:
    """If it fails, excluded labels lower the bundle's metrics, but not the checkpoint's."""
    rows_QK = np.array([[4, 1, 2, 3], [1, 2, 3, 4]])
    remaining_QK = drop_excluded(rows_QK, [np.array([1, 4]), np.array([], np.int32)], 2)
    assert remaining_QK.tolist() == [[2, 3], [1, 2]]
    assert drop_excluded(rows_QK, [np.arange(9), np.arange(9)], 2).tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("queries", "checkpoint", "bundle", "passes"),
    [
        (1000, 50.0, 49.8, True),
        (1000, 50.0, 49.7, False),
        (1000, 50.0, 53.0, True),
        (120, 50.0, 50.0 - 100 / 120, True),
        (120, 50.0, 50.0 - 200 / 120, False),
    ],
)
def test_a_bundle_may_lose_0_2_points_or_one_hit(queries: int, checkpoint: float, bundle: float, passes: bool) -> None:
    """If it fails, a bundle with worse answers is published, or a good one is rejected for one hit."""
    quality = Quality(queries=queries, checkpoint={"P@1": checkpoint, "P@5": 30.0}, bundle={"P@1": bundle, "P@5": 30.0})
    with nullcontext() if passes else pytest.raises(GateError, match=r"P@1 .* Raise --m"):
        check_quality(quality)


def test_ef_search_grows_until_quality_is_sufficient() -> None:
    """If it fails, an index with sufficient recall misses true labels, and the quality check rejects the bundle."""
    vectors_LD = np.asarray(np.random.default_rng(0).standard_normal((2000, 8)), np.float32)
    index = IndexProbe(HnswIndex.build(vectors_LD, threads=1), vectors_LD, dual_dim=4)
    recall = RecallMeasurement(index, vectors_LD[:50], vectors_LD[50:60])
    least = ef_search_at(recall, 0.5, index.size, always_true)
    assert least.ef is not None
    assert least.ef < 64
    harder = ef_search_at(recall, 0.5, index.size, lambda ef: ef >= 64)
    assert (harder.ef, harder.recall_at_10 >= least.recall_at_10) == (64, True)
    assert ef_search_at(recall, 0.5, index.size, lambda ef: False).ef == EF_LADDER[-1]


def test_ef_search_is_refined_between_rungs() -> None:
    """If it fails, every search examines up to 50 % more candidates than its recall needs."""
    vectors_LD = np.asarray(np.random.default_rng(0).standard_normal((500, 8)), np.float32)
    index = IndexProbe(HnswIndex.build(vectors_LD, threads=1), vectors_LD, dual_dim=4)
    recall = RecallMeasurement(index, vectors_LD[:50], vectors_LD[:50])
    assert ef_search_at(recall, 0.5, index.size, lambda ef: ef >= 70).ef == 72


def test_texts_without_tokens_end_the_joining_of_queries() -> None:
    """If it fails, an export never ends if no text reaches the maximum length."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("x", "")
    texts, longest = with_long_texts(["x", "xx"], SimpleNamespace(tokenizer=TextTokenizer(tokenizer, 0), max_tokens=64))  # type: ignore[arg-type]
    assert longest == 1
    assert len(texts) < 12


@pytest.mark.parametrize(("length", "n", "expected"), [(10, 3, 3), (3, 10, 3), (1, 1, 1), (100, 100, 100)])
def test_a_sample_is_spread_and_never_repeats(length: int, n: int, expected: int) -> None:
    """If it fails, a gate checks one text many times, or only the start of a sorted table."""
    import pyarrow as pa

    texts = sample(pa.chunked_array([[str(row) for row in range(length)]]), n)
    assert len(texts) == len(set(texts)) == expected
    assert {texts[0], texts[-1]} == {"0", str(length - 1)} or expected == 1


def test_a_weight_that_the_index_cannot_serve_compares_every_label_unless_it_is_the_default(tmp_path: Path) -> None:
    """If it fails, a rarely used weight prevents an export, or searches at the default weight are slow or inexact."""
    bundle = make_bundle(tmp_path / "bundle")
    facts, vectors_LD = read_manifest(bundle).model, np.load(bundle / VECTORS)
    encoder = TextEncoder.open(bundle / TOKENIZER, bundle / QUERY_ENCODER, facts, facts.dim, threads=1)
    noise_LC = np.random.default_rng(0).standard_normal((len(vectors_LD), facts.classifier_dim)).astype(np.float32)
    wrong_LD = np.concatenate([vectors_LD[:, : facts.dual_dim], noise_LC], axis=1)
    index = IndexProbe(HnswIndex.build(wrong_LD, threads=1), vectors_LD, facts.dual_dim)

    def chosen(default: float) -> list[tuple[float, int | None]]:
        texts = label_texts()
        chosen_at = choose_ef_search(encoder, facts, index, texts[:50], texts[50:90], default, always_true, no_progress)
        return [(one.weight, one.ef) for one in chosen_at]

    at = dict(chosen(0.0))
    assert (at[0.0] is not None, at[1.0]) == (True, None)
    with pytest.raises(GateError, match=r"at the default weight 1 .* Raise --m"):
        chosen(1.0)


def test_label_texts_are_spread_and_shared_ones_are_more_likely() -> None:
    """If it fails, recall is not measured on texts that many labels share, where an index misses most."""
    import pyarrow as pa

    column = pa.chunked_array([[f"text {row}" for row in range(20_000)] + ["shared"] * 1_000])
    texts = sample_label_texts(column)
    assert "shared" in texts
    assert 480 < len(texts) == len(set(texts)) <= 501
    few = pa.chunked_array([[f"text {row % 40}" for row in range(4_000)]])
    assert len(sample_label_texts(few)) == 40


def test_no_rarely_used_weight_is_slower_than_comparing_all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, searches at some weights examine thousands of candidates, or the default loses its index."""
    vectors_LD = np.asarray(np.random.default_rng(0).standard_normal((500, 8)), np.float32)
    probe = IndexProbe(HnswIndex.build(vectors_LD, threads=1), vectors_LD, dual_dim=4)
    facts = ModelFacts(
        encoder="static", dual_dim=4, classifier_dim=4, max_tokens=8, max_characters=80, pad_id=0, unknown_id=1,
        bytes_per_token=4.0, balance=0.5,
    )  # fmt: skip
    chosen = [
        EfSearch(weight=weight, ef=ef, ef_at_100=ef, recall_at_1=0.9, recall_at_10=0.9, recall_at_100=0.9,
                 label_text_recall_at_10=0.9, label_text_recall_at_100=0.9)
        for weight, ef in ((0.0, 64), (0.5, 1024), (1.0, 896))
    ]  # fmt: skip
    for graph, exact, efs in ((2.0, 1.0, [64, 1024, None]), (1.0, 2.0, [64, 1024, 896])):
        monkeypatch.setattr("export.index.kind.median_seconds", lambda searches, rows, at=(graph, exact): list(at))
        limited = without_slow_weights(chosen, 0.5, probe, vectors_LD[:20], facts)
        assert [setting.ef for setting in limited] == efs
        assert [setting.recall_at_10 for setting in limited] == [0.9 if ef else 1.0 for ef in efs]


def test_both_kinds_of_search_are_timed_and_give_the_same_labels() -> None:
    """If it fails, the faster kind is chosen by timing something else than the searches of a reader."""
    vectors_LD = np.asarray(np.random.default_rng(0).standard_normal((500, 8)), np.float32)
    probe = IndexProbe(HnswIndex.build(vectors_LD, threads=1), vectors_LD, dual_dim=4)
    calls: list[tuple[str, int]] = []
    seconds = median_seconds(
        [lambda query: calls.append(("one", len(query))), lambda query: calls.append(("other", len(query)))],
        vectors_LD[:30],
    )
    assert calls == [("one", 1), ("other", 1)] * 30
    assert all(one >= 0 for one in seconds)
    query_QD = vectors_LD[:30] + 0.1
    assert (probe.search(query_QD, 10, 500)[0] == probe.search(query_QD, 10, None)[0]).all()
    assert is_exact_faster(probe, nodes_of(vectors_LD), query_QD, 16, 4, 1) is not None
