"""Tokenizer and token cache."""

import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from retrieval.query_text import QUERY_IDENTITY
from training.data.token_cache import (
    UNKNOWN,
    TextTokenizer,
    inverse_document_frequency,
    special_ids,
    tokenize_cached,
    tokenize_in_memory,
)
from training.model.tokenizer import learn_wordpiece, query_identity_version

TEXTS = ["credit card", "credit union", "card game", "Café au lait", "cafe latte", "playing cards", "naïve bayes"] * 2


def learned() -> TextTokenizer:
    return TextTokenizer(learn_wordpiece(TEXTS, 1000), QUERY_IDENTITY)


def test_the_same_texts_give_the_same_vocabulary() -> None:
    """If it fails, two runs of one recipe on one dataset end with different weights."""
    texts = [f"{left}{right} {right}{left}" for left in "abcdefgh" for right in ("ing", "er", "tion", "ally", "ß", "é")]
    vocabularies = [learn_wordpiece(texts, 90).get_vocab() for _ in range(8)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_recurring_words_are_one_token_and_case_and_accents_do_not_matter() -> None:
    """If it fails, 'Café' and 'cafe' are different queries, or frequent words are split."""
    tokenizer = learn_wordpiece(TEXTS, 1000)
    assert tokenizer.encode("CAFÉ credit card").tokens == ["cafe", "credit", "card"]


def test_a_text_without_a_known_token_becomes_unknown() -> None:
    """If it fails, such a text has no token, and its mean is 0/0."""
    tokenizer = learned()
    tokens = tokenize_in_memory(["   ", "щука", "card"], tokenizer)
    unknown = tokenizer.tokenizer.token_to_id(UNKNOWN)
    assert tokens.lengths_N.tolist() == [1, 1, 1]
    assert tokens.ids.values.tolist()[:2] == [unknown, unknown]


def test_a_batch_has_the_selected_texts_in_order() -> None:
    """If it fails, a query is trained with another query's tokens."""
    tokenizer = learned()
    tokens = tokenize_in_memory(TEXTS, tokenizer)
    rows = np.array([5, 0, 3])
    batch = tokens.batch(rows)
    for place, row in enumerate(rows):
        length = int(batch.attention_mask_BT[place].sum())
        assert batch.input_ids_BT[place, :length].tolist() == tokenizer.encode([TEXTS[row]])[0]
        assert (batch.input_ids_BT[place, length:] == special_ids(tokenizer.tokenizer)[0]).all()
    seen = np.concatenate([rows for rows, _ in tokens.batches_by_length(4)])
    assert sorted(seen.tolist()) == list(range(len(TEXTS)))


def test_the_cache_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """If it fails, a resumed run uses other tokens than before."""
    tokenizer = learned()
    first = tokenize_cached(TEXTS, tokenizer, tmp_path, "texts")
    again = tokenize_cached(["not tokenized, because the cache exists"], tokenizer, tmp_path, "texts")
    assert (
        again.ids.values.tolist()
        == first.ids.values.tolist()
        == tokenize_in_memory(TEXTS, tokenizer).ids.values.tolist()
    )
    assert again.ids.offsets.tolist() == first.ids.offsets.tolist()


def test_batches_of_selected_texts_come_with_their_positions() -> None:
    """If it fails, queries get the vectors of other queries when only some are encoded."""
    tokens = tokenize_in_memory(TEXTS, learned())
    rows_R = np.array([9, 2, 6, 3, 0])
    seen = []
    for places, batch in tokens.batches_by_length(2, rows_R):
        assert len(places) <= 2
        for place, ids_T, mask_T in zip(places, batch.input_ids_BT, batch.attention_mask_BT, strict=True):
            assert ids_T[mask_T.bool()].tolist() == tokens.batch(rows_R[[place]]).input_ids_BT[0].tolist()
        seen += places.tolist()
    assert sorted(seen) == list(range(5))
    assert list(tokens.batches_by_length(2, np.zeros(0, np.int64))) == []


def test_concatenated_texts_keep_their_tokens() -> None:
    """If it fails, label queries are trained with the tokens of other texts."""
    tokenizer = learned()
    first, second = (tokenize_in_memory(texts, tokenizer) for texts in (TEXTS[:3], TEXTS[3:]))
    joined, whole = first.followed_by(second), tokenize_in_memory(TEXTS, tokenizer)
    assert joined.ids.values.tolist() == whole.ids.values.tolist()
    assert joined.ids.offsets.tolist() == whole.ids.offsets.tolist()
    assert joined.pad_id == whole.pad_id
    nothing = tokenize_in_memory([], tokenizer)
    for alone in (first.followed_by(nothing), nothing.followed_by(first)):
        assert alone.ids.offsets.tolist() == first.ids.offsets.tolist()


@pytest.mark.parametrize("block", [1, 2, 1000])
def test_inverse_document_frequency_counts_texts(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a word that occurs twice in a text counts twice, or words of labels are not counted."""
    monkeypatch.setattr("training.data.token_cache.TEXTS_PER_BLOCK", block)
    tokenizer = learned()
    vocabulary = tokenizer.tokenizer.get_vocab_size()
    first = tokenize_in_memory(["card card card", "credit card", "union"], tokenizer)
    second = tokenize_in_memory(["card", "credit union card"], tokenizer)
    rarity = inverse_document_frequency(vocabulary, first, second)
    found = {
        token: float(rarity[tokenizer.tokenizer.token_to_id(token)]) for token in ("card", "credit", "union", "latte")
    }
    expected = {"card": 0.0, "credit": math.log(5 / 3), "union": math.log(5 / 3), "latte": math.log(5)}
    assert found == pytest.approx(expected)
    assert rarity.shape == (vocabulary,)
    everywhere = tokenize_in_memory(["card"] * 3, tokenizer)
    assert (
        float(inverse_document_frequency(vocabulary, everywhere)[tokenizer.tokenizer.token_to_id("card")]) == 0.0
    )  # never less


SPELLINGS = [
    "credit card",
    "CREDIT  Card",
    "ｃｒｅｄｉｔ card",
    "cre\u200bdit card",
    "credit\u00a0card",
    " credit\tcard\ufeff",
]


def test_spellings_of_a_text_have_the_same_tokens() -> None:
    """If it fails, the encoder gives spellings of one query different answers."""
    ids = learned().encode(SPELLINGS)
    assert ids == [ids[0]] * len(SPELLINGS)
    as_they_are = TextTokenizer(learned().tokenizer, 0).encode(SPELLINGS)
    assert as_they_are[2] != as_they_are[0], "the tokenizer alone unifies full-width letters; the test shows nothing"


def test_a_vocabulary_is_learned_from_identities() -> None:
    """If it fails, spellings of frequent words are in the vocabulary, but texts with them never reach it."""
    assert learn_wordpiece(["ｃｒｅｄｉｔ"] * 3, 100).to_str() == learn_wordpiece(["credit"] * 3, 100).to_str()


@pytest.mark.parametrize(
    ("normalizer", "version"),
    [
        (None, 0),
        (normalizers.NFKC(), 0),
        (normalizers.BertNormalizer(lowercase=False), 0),
        (normalizers.BertNormalizer(lowercase=True), 1),
        (normalizers.BertNormalizer(lowercase=True, strip_accents=False), 1),
        (normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]), 1),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), 0),
    ],
)
def test_a_tokenizer_that_depends_on_case_reads_texts_as_they_are(
    normalizer: normalizers.Normalizer | None, version: int
) -> None:
    """If it fails, a cased pretrained encoder gets lower-cased texts, or an uncased one other texts than the splits."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    assert query_identity_version(tokenizer) == version
