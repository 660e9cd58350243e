"""Text → token ids."""

from pathlib import Path

import numpy as np

from training.tokens import UNKNOWN, learn_wordpiece, special_ids, tokenize, tokenize_in_memory

TEXTS = ["credit card", "credit union", "card game", "Café au lait", "cafe latte", "playing cards", "naïve bayes"] * 2


def test_the_same_texts_give_the_same_vocabulary() -> None:
    """If this failed, two runs of one recipe on one dataset would learn different weights."""
    texts = [f"{left}{right} {right}{left}" for left in "abcdefgh" for right in ("ing", "er", "tion", "ally", "ß", "é")]
    vocabularies = [learn_wordpiece(texts, 90).get_vocab() for _ in range(8)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_recurring_words_are_one_token_and_case_and_accents_do_not_matter() -> None:
    """If this failed, 'Café' and 'cafe' would be different queries, or frequent words would be spelled out."""
    tokenizer = learn_wordpiece(TEXTS, 1000)
    assert tokenizer.encode("CAFÉ credit card").tokens == ["cafe", "credit", "card"]


def test_a_text_without_a_known_token_becomes_unknown() -> None:
    """If this failed, such a text would have no token, and its mean would be 0/0."""
    tokenizer = learn_wordpiece(TEXTS, 1000)
    tokens = tokenize_in_memory(["   ", "щука", "card"], tokenizer)
    unknown = tokenizer.token_to_id(UNKNOWN)
    assert tokens.lengths_N.tolist() == [1, 1, 1]
    assert tokens.ids_S.tolist()[:2] == [unknown, unknown]


def test_batches_hold_each_text_padded_in_the_order_asked_for() -> None:
    """If this failed, a query would be trained with another query's tokens."""
    tokenizer = learn_wordpiece(TEXTS, 1000)
    tokens = tokenize_in_memory(TEXTS, tokenizer)
    rows = np.array([5, 0, 3])
    batch = tokens.batch(rows)
    for place, row in enumerate(rows):
        length = int(batch.attention_mask_BT[place].sum())
        assert batch.input_ids_BT[place, :length].tolist() == tokenizer.encode(TEXTS[row]).ids
        assert (batch.input_ids_BT[place, length:] == special_ids(tokenizer)[0]).all()
    seen = np.concatenate([rows for rows, _ in tokens.batches_by_length(4)])
    assert sorted(seen.tolist()) == list(range(len(TEXTS)))


def test_the_cache_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """If this failed, a resumed run would train on other tokens than it began with."""
    tokenizer = learn_wordpiece(TEXTS, 1000)
    first = tokenize(TEXTS, tokenizer, tmp_path, "texts")
    again = tokenize(["never read: the cache stands"], tokenizer, tmp_path, "texts")
    assert again.ids_S.tolist() == first.ids_S.tolist() == tokenize_in_memory(TEXTS, tokenizer).ids_S.tolist()
    assert again.offsets_N1.tolist() == first.offsets_N1.tolist()
