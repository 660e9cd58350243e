"""The export gates on cases worked out by hand."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from export.gates import of_every_length, sample, sample_label_texts
from export.progress import unwatched
from export.quality import prove_quality, without_excluded
from export.recall import EF_LADDER, Measured, Ranked, _effort, choose_efforts, recall_at
from retrieval.bundle.facts import Quality
from retrieval.bundle.manifest import QUERY_ENCODER, TOKENIZER, VECTORS, read_manifest
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import HnswIndex
from tests.support.bundles import label_texts, make_bundle


def test_recall_counts_scores_and_so_accepts_ties() -> None:
    """If it fails, two labels of the same text make an index look worse than it is, or a missed label goes unseen."""
    best_QK = np.array([[0.9, 0.8, 0.7], [0.5, 0.5, 0.5]], np.float32)
    found_QK = np.array([[0.9, 0.7, 0.6], [0.5, 0.5, 0.5]], np.float32)
    assert recall_at(3, found_QK, best_QK) == pytest.approx(5 / 6)
    assert recall_at(1, found_QK, best_QK) == 1.0
    assert recall_at(10, found_QK, best_QK) == pytest.approx(5 / 6)


def test_excluded_labels_do_not_cost_a_place() -> None:
    """If it fails, the bundle's quality is lower than the checkpoint's for a reason that is not the bundle's."""
    rows_QK = np.array([[4, 1, 2, 3], [1, 2, 3, 4]])
    kept_QK = without_excluded(rows_QK, [np.array([1, 4]), np.array([], np.int32)], 2)
    assert kept_QK.tolist() == [[2, 3], [1, 2]]
    assert without_excluded(rows_QK, [np.arange(9), np.arange(9)], 2).tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("queries", "own", "bundle", "passes"),
    [
        (1000, 50.0, 49.8, True),
        (1000, 50.0, 49.7, False),
        (1000, 50.0, 53.0, True),
        (120, 50.0, 50.0 - 100 / 120, True),
        (120, 50.0, 50.0 - 200 / 120, False),
    ],
)
def test_a_bundle_may_lose_a_fifth_of_a_point_or_one_hit(queries: int, own: float, bundle: float, passes: bool) -> None:
    """If it fails, a bundle that answers worse than its checkpoint is served, or a good one is refused for one tie."""
    quality = Quality(queries=queries, checkpoint={"P@1": own, "P@5": 30.0}, bundle={"P@1": bundle, "P@5": 30.0})
    with nullcontext() if passes else pytest.raises(GateError, match=r"P@1 .* Raise --m"):
        prove_quality(quality)


def test_effort_grows_until_quality_is_kept_too() -> None:
    """If it fails, an index whose recall is good enough loses the very answers that were right, and export refuses."""
    vectors_LD = np.asarray(np.random.default_rng(0).standard_normal((2000, 8)), np.float32)
    index = Ranked(HnswIndex.build(vectors_LD, threads=1), vectors_LD, dual_dim=4)
    measured = Measured(index, vectors_LD[:50], vectors_LD[50:60])
    least = _effort(measured, 0.5, index.size, lambda ef: True)
    assert least.ef is not None
    assert least.ef < 64
    harder = _effort(measured, 0.5, index.size, lambda ef: ef >= 64)
    assert (harder.ef, harder.recall_at_10 >= least.recall_at_10) == (64, True)
    assert _effort(measured, 0.5, index.size, lambda ef: False).ef == EF_LADDER[-1]


def test_effort_is_looked_for_between_the_rungs() -> None:
    """If it fails, every search costs up to a half more than its recall needs."""
    vectors_LD = np.asarray(np.random.default_rng(0).standard_normal((500, 8)), np.float32)
    index = Ranked(HnswIndex.build(vectors_LD, threads=1), vectors_LD, dual_dim=4)
    measured = Measured(index, vectors_LD[:50], vectors_LD[:50])
    assert _effort(measured, 0.5, index.size, lambda ef: ef >= 70).ef == 72


def test_texts_without_tokens_end_the_search_for_long_ones() -> None:
    """If it fails, export never ends where no text is as long as the cut."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("x", "")
    texts, longest = of_every_length(["x", "xx"], SimpleNamespace(tokenizer=tokenizer, max_tokens=64))  # type: ignore[arg-type]
    assert longest == 1
    assert len(texts) < 12


@pytest.mark.parametrize(("length", "asked", "given"), [(10, 3, 3), (3, 10, 3), (1, 1, 1), (100, 100, 100)])
def test_a_sample_is_spread_and_never_repeats(length: int, asked: int, given: int) -> None:
    """If it fails, a gate looks at one text many times, or only at the start of a sorted table."""
    import pyarrow as pa

    texts = sample(pa.chunked_array([[str(row) for row in range(length)]]), asked)
    assert len(texts) == len(set(texts)) == given
    assert {texts[0], texts[-1]} == {"0", str(length - 1)} or given == 1


def test_a_weight_that_the_index_cannot_serve_compares_every_label_unless_it_is_the_default(tmp_path: Path) -> None:
    """A young classifier, which nobody asks alone, would keep a good bundle from being published; or every search would
    be slow, or miss what it should find."""
    bundle = make_bundle(tmp_path / "bundle")
    facts, vectors_LD = read_manifest(bundle).model, np.load(bundle / VECTORS)
    encoder = TextEncoder.open(bundle / TOKENIZER, bundle / QUERY_ENCODER, facts, facts.dim, threads=1)
    noise_LC = np.random.default_rng(0).standard_normal((len(vectors_LD), facts.classifier_dim)).astype(np.float32)
    wrong_LD = np.concatenate([vectors_LD[:, : facts.dual_dim], noise_LC], axis=1)
    index = Ranked(HnswIndex.build(wrong_LD, threads=1), vectors_LD, facts.dual_dim)

    def chosen(default: float) -> list[tuple[float, int | None]]:
        texts = label_texts()
        efforts = choose_efforts(encoder, facts, index, texts[:50], texts[50:90], default, lambda ef: True, unwatched)
        return [(one.weight, one.ef) for one in efforts]

    at = dict(chosen(0.0))
    assert (at[0.0] is not None, at[1.0]) == (True, None)
    with pytest.raises(GateError, match=r"at weight 1, the default, .* Raise --m"):
        chosen(1.0)


def test_label_texts_are_a_spread_in_which_shared_ones_are_likelier() -> None:
    """If it fails, the gate does not ask the texts that many labels share, where an index misses most."""
    import pyarrow as pa

    column = pa.chunked_array([[f"text {row}" for row in range(20_000)] + ["shared"] * 1_000])
    texts = sample_label_texts(column)
    assert "shared" in texts
    assert 480 < len(texts) == len(set(texts)) <= 501
    few = pa.chunked_array([[f"text {row % 40}" for row in range(4_000)]])
    assert len(sample_label_texts(few)) == 40
