"""Blank texts and spellings of one query: all commands have the same rules, which agree with the tokenizer."""

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from retrieval.query_text import (
    MAX_MARKS,
    VISIBLE_PATTERN,
    is_blank,
    query_identities,
    query_identity,
    split_key,
    split_keys,
)

BLANK = [
    "",
    " ",
    "\t\n",
    "\u00a0",
    "\u200b",
    "\ufeff",
    "\x00",
    "\x1b",
    "\x85",
    "\u202e",
    "\u0301",
    "\u3164",
    "\u2800",
    "\u2028",
]
VISIBLE = ["a", "7", "?", "é", "e\u0301", "\u200ba", "鞋", "👟", "\x1b[0m", "ا", "\ue000", " x "]
# Unassigned characters and the few that changed their class between the Unicode versions of Python and the tokenizer.
KNOWN = st.characters(exclude_categories=("Cn", "Co", "Cs"), exclude_characters="\u1734")
# Characters that normalization moves, joins, removes or expands, next to letters and spaces.
SPELLED = st.sampled_from(
    "aAeE 7\t\u00a0\u200b\u00ad\x00\x1c\u0301\u0323\u0345\ufe0f\uff21\ufb01ßİıſΣςᾀᾳ½²™…‼⁈\u1100\u1161가鞋\uf900\ue000"
)
TEXTS = st.text(SPELLED | KNOWN | st.characters(max_codepoint=126), max_size=8)


@pytest.mark.parametrize("text", BLANK)
def test_a_text_without_a_visible_character_is_blank(text: str) -> None:
    """If this failed, a text without visible characters would be a query."""
    assert is_blank(text)
    assert not pc.match_substring_regex(pa.array([text]), VISIBLE_PATTERN)[0].as_py()


@pytest.mark.parametrize("text", VISIBLE)
def test_a_text_with_a_visible_character_is_not_blank(text: str) -> None:
    """If this failed, queries in some scripts would be skipped as blank."""
    assert not is_blank(text)
    assert pc.match_substring_regex(pa.array([text]), VISIBLE_PATTERN)[0].as_py()


@given(st.text(KNOWN, max_size=6))
def test_python_and_arrow_agree_on_what_is_blank(text: str) -> None:
    """If this failed, prepare would write a text that opening the dataset refuses."""
    visible = pc.match_substring_regex(pa.array([text]), VISIBLE_PATTERN)[0].as_py()
    assert visible != is_blank(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Red Shoes", "red shoes"), (" red \t shoes ", "red shoes"), ("ｒｅｄ", "red"), ("e\u0301", "é"),
        ("ﬁne", "fine"), ("Straße", "STRASSE"), ("red\u200b", "red"), ("\ufeffred", "red"), ("re\x00d", "red"),
        ("ΣΑΣ", "σας"), ("red\u00a0shoes", "red shoes"), ("m²", "m2"), ("e\u200b\u0301", "é"), ("❤\ufe0f", "❤"),
    ],
)  # fmt: skip
def test_spellings_of_one_query_have_one_identity(one: str, other: str) -> None:
    """If this failed, one query would have several rows, counts and answers."""
    assert query_identity(one) == query_identity(other)


@pytest.mark.parametrize(("one", "other"), [("red", "reds"), ("redshoes", "red shoes"), ("1.5", "15"), ("a-b", "a b")])
def test_different_queries_have_different_identities(one: str, other: str) -> None:
    """If this failed, the clicks of two queries would be merged."""
    assert query_identity(one) != query_identity(other)
    assert split_key(one) != split_key(other)


def test_accents_part_identities_but_not_splits() -> None:
    """If this failed, café and cafe would be merged, or one trained on and the other tested."""
    assert query_identity("café") != query_identity("cafe")
    assert split_key("Café") == split_key("cafe") == "cafe"
    assert split_key("红鞋") == split_key("红 鞋")
    assert split_key("红鞋 red") != split_key("红鞋 blue")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="ABCDEFGHIJKLMNOPQRSTUVWXYZ")))
def test_a_lower_case_ascii_text_is_its_own_key(text: str) -> None:
    """If this failed, preparing again with this version would move queries from test to train."""
    assert split_key(text) == query_identity(text) == text


@settings(max_examples=500)
@given(st.text(KNOWN, max_size=8))
def test_spellings_that_the_tokenizer_reads_alike_are_in_one_split(text: str) -> None:
    """If this failed, a test query could be a training query to the encoder."""
    text = " ".join(text.split())  # as prepare writes it
    read = normalizers.BertNormalizer(lowercase=True, strip_accents=True).normalize_str(text)
    if any(unicodedata.category(letter)[0] in "LNPS" and letter.isalnum() for letter in read):
        assert split_key(read) == split_key(text)


@settings(max_examples=500)
@given(TEXTS)
def test_identity_and_key_are_stable(text: str) -> None:
    """If this failed, a text that was written and read again could change its identity.

    The second line also means that texts with equal identities have equal keys. Otherwise two spellings of one query
    could be in two splits.
    """
    assert query_identity(query_identity(text)) == query_identity(text)
    assert split_key(query_identity(text)) == split_key(text)


def test_an_ellipsis_is_one_sign_for_the_encoder_and_three_dots_for_splits() -> None:
    """If this failed, texts with an ellipsis would have other tokens than in earlier releases."""
    assert query_identity("Wait… Now‼") == "wait… now‼"
    assert split_key("Wait… Now‼") == split_key("wait... now!!") == "wait... now!!"


@given(st.text(st.sampled_from("a \u0301\u0323\u0344\u302e-"), min_size=20, max_size=120))
def test_a_letter_has_at_most_30_marks(text: str) -> None:
    """If this failed, a text of marks would be sorted in quadratic time: 64 kB would take seconds."""
    identity = query_identity(text)
    assert not re.search(rf"[\u0300-\u0362\u302e]{{{MAX_MARKS + 1},}}", unicodedata.normalize("NFD", identity))
    assert query_identity(identity) == identity
    assert split_key(identity) == split_key(text)


def test_a_long_text_of_marks_is_normalized() -> None:
    """If this failed, one cell of a table could stop prepare for half an hour."""
    assert len(query_identity("a" + "\u0301\u0323" * 500_000)) == MAX_MARKS
    assert split_key("a" + "\u0301\u0323" * 500_000) == "a"


@settings(max_examples=500)
@given(st.lists(TEXTS | st.none(), max_size=5), st.sampled_from([pa.string(), pa.large_string()]), st.integers(0, 2))
def test_columns_and_texts_have_the_same_identities_and_keys(
    texts: list[str | None], arrow_type: pa.DataType, start: int
) -> None:
    """If this failed, queries of large tables would be merged and split by another rule than single texts."""
    for columns, one in ((query_identities, query_identity), (split_keys, split_key)):
        expected = [None if text is None else one(text) for text in texts]
        column = pa.array(texts, arrow_type)
        assert columns(column).to_pylist() == expected
        assert columns(column).type == arrow_type
        assert columns(column[start:]).to_pylist() == expected[start:]
        chunked = pa.chunked_array([column, column[start:]])
        assert columns(chunked).to_pylist() == expected + expected[start:]


def test_a_greek_accent_that_folds_to_a_letter_is_an_accent() -> None:
    """If this failed, a query and its folded spelling could be in two splits."""
    assert query_identity("ᾀ") == "ἀ"
    assert split_key("ᾀ") == split_key("ἀ") == "α"
