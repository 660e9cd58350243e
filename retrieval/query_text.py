"""Decide which query texts are blank, and which are the same query.

Used by prepare, training, the encoder, the response cache, predict, search, loadtest and bundles diff.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

QueryIdentity = Literal[0, 1]  # version of `query_identity` that a checkpoint or bundle was made with; 0: none
QUERY_IDENTITY: Literal[1] = 1
# Invisible letters and symbols: Hangul fillers and the blank Braille pattern.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
IOTA_SUBSCRIPT = "\u0345"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Mc", "Me"})
# The same rule as a regular expression for Arrow (RE2): a match has a visible character.
VISIBLE_PATTERN = r"[^\p{Cc}\p{Cf}\p{Z}\p{M}\x{115F}\x{1160}\x{3164}\x{FFA0}\x{2800}]"
# Marks that are never visible: the grapheme joiner and the variation selectors. Other invisible characters have the
# category Cc, Cf or Cs.
_IGNORED = re.compile("[\u034f\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# All but punctuation that NFKC would replace by several characters. The default tokenizer reads each as one token.
_FOLDABLE = re.compile("[^\u2025\u2026\u2033\u2034\u2036\u2037\u203c\u2047-\u2049\u2057\ufe19\ufe30]+")
# Marks per letter, the limit of Unicode's stream-safe text (UAX #15). Sorting more of them takes quadratic time.
MAX_MARKS = 30
_MANY_SIGNS = re.compile(rf"[^\w\s]{{{MAX_MARKS // 2},}}")
_NOT_PRINTABLE_ASCII = "[^ -~]"
_UNEVEN_SPACES = "^ | $|  "
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip

Texts = TypeVar("Texts", "pa.Array", "pa.ChunkedArray")


def is_blank(text: str) -> bool:
    """Return whether `text` has no visible character: only spaces, controls, zero-width marks or fillers."""
    if text[:1].isascii() and text[:1].isalnum():  # nearly every query
        return False
    return not any(map(_is_visible, text))


def query_identity(text: str) -> str:
    """Return the text as the encoder reads it, which is equal for spellings of the same query.

    Invisible characters, and marks beyond 30 per letter, are removed. Compatibility forms are unified (NFKC), case is
    folded, and runs of white space become one space. Punctuation that NFKC would expand, such as an ellipsis, stays one
    character. The identity of an identity is the same text.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.lower().split())
    return " ".join(_FOLDABLE.sub(lambda run: _folded(run[0]), _cleaned(text)).split())


def query_identities(texts: Texts) -> Texts:
    """Return `query_identity` of each text of an Arrow string column; a null stays null.

    Printable ASCII is handled in Arrow; `query_identity` is called once per distinct other text.
    """
    return _mapped(texts, query_identity)


def encoder_texts(texts: Sequence[str], version: int) -> list[str]:
    """Return texts as an encoder of this version of `query_identity` reads them; 0: as they are."""
    return [query_identity(text) for text in texts] if version else list(texts)


def split_key(text: str) -> str:
    """Return the key that assigns a query to a split: the text as the default tokenizer reads it, or coarser.

    In addition to `query_identity`, it drops accents, private characters, and spaces next to Chinese characters, and
    expands an ellipsis. So texts with equal identities have equal keys, and texts with equal keys are in the same
    split. The key of an ASCII text is its identity.
    """
    if text.isascii():
        return query_identity(text)
    bare = _without_accents(_folded(_without_accents(_cleaned(text))))
    words = "".join(f" {letter} " if _is_ideograph(letter) else letter for letter in bare).split()
    joined = "".join(
        word if not place or _is_ideograph(word[0]) or _is_ideograph(words[place - 1][-1]) else f" {word}"
        for place, word in enumerate(words)
    )
    return joined or query_identity(text)


def split_keys(texts: Texts) -> Texts:
    """Return `split_key` of each text of an Arrow string column; a null stays null."""
    return _mapped(texts, split_key)


def _mapped(texts: Texts, one: Callable[[str], str]) -> Texts:
    """Apply `one`, which lower-cases printable ASCII and makes its spaces even, to a column."""
    import pyarrow as pa  # only here, because the front of the service does without it
    import pyarrow.compute as pc

    if isinstance(texts, pa.ChunkedArray):
        return pa.chunked_array([_mapped(chunk, one) for chunk in texts.chunks], texts.type)
    if len(texts) == 0:
        return texts
    result = pc.ascii_lower(texts)
    uneven, other = (pc.match_substring_regex(texts, pattern) for pattern in (_UNEVEN_SPACES, _NOT_PRINTABLE_ASCII))
    if pc.any(uneven).as_py():
        spaced = pc.replace_substring_regex(result.filter(uneven), " +", " ")
        result = pc.replace_with_mask(result, uneven, pc.ascii_trim(spaced, " "))
    if pc.any(other).as_py():
        encoded = texts.filter(other).dictionary_encode()
        values = pa.array([one(text) for text in encoded.dictionary.to_pylist()], texts.type)
        result = pc.replace_with_mask(result, other, values.take(encoded.indices))
    return result


def _folded(text: str) -> str:
    # Case folding would turn this accent into a letter, which the encoder does not read.
    plain = unicodedata.normalize("NFD", text).replace(IOTA_SUBSCRIPT, "")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain).casefold())


def _cleaned(text: str) -> str:
    """Remove invisible characters, and marks beyond MAX_MARKS per letter."""
    if not text.isprintable():
        text = "".join(one for one in text if one.isspace() or unicodedata.category(one) not in ("Cc", "Cf", "Cs"))
    return _MANY_SIGNS.sub(_with_fewer_marks, _IGNORED.sub("", text))


def _with_fewer_marks(signs: re.Match[str]) -> str:
    result, marks = [], 0
    for sign in signs[0]:
        marks = marks + len(unicodedata.normalize("NFD", sign)) if unicodedata.combining(sign) else 0
        if marks <= MAX_MARKS:
            result.append(sign)
    return "".join(result)


def _is_visible(letter: str) -> bool:
    return unicodedata.category(letter) not in _INVISIBLE and letter not in _FILLERS


def _without_accents(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFD", text) if _is_read(letter))


def _is_read(letter: str) -> bool:
    return letter.isspace() or (letter != "\ufffd" and unicodedata.category(letter) not in ("Mn", "Co", "Cf", "Cc"))


def _is_ideograph(letter: str) -> bool:
    code = ord(letter)
    return code >= 0x3400 and any(first <= code <= last for first, last in _IDEOGRAPHS)
