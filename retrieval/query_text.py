"""Decide which query texts are blank, and which are the same query.

Used by prepare, predict, search, loadtest and bundles diff.
"""

import unicodedata

# Invisible letters and symbols: Hangul fillers and the blank Braille pattern.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
IOTA_SUBSCRIPT = "\u0345"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Mc", "Me"})
# The same rule as a regular expression for Arrow (RE2): a match has a visible character.
VISIBLE_PATTERN = r"[^\p{Cc}\p{Cf}\p{Z}\p{M}\x{115F}\x{1160}\x{3164}\x{FFA0}\x{2800}]"
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def is_blank(text: str) -> bool:
    """Return whether `text` has no visible character: only spaces, controls, zero-width marks or fillers."""
    if text[:1].isascii() and text[:1].isalnum():  # nearly every query
        return False
    return not any(map(_is_visible, text))


def query_identity(text: str) -> str:
    """Return a normalized form that is equal for spellings of the same query.

    Compatibility forms are unified (NFKC), case is folded, invisible characters are removed, and runs of white space
    become one space.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.lower().split())
    # Case folding would turn this accent into a letter, which the encoder does not read.
    plain = unicodedata.normalize("NFD", text).replace(IOTA_SUBSCRIPT, "")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain).casefold())
    invisible = ("Cc", "Cf", "Cs")
    visible = (one for one in folded if one.isspace() or unicodedata.category(one) not in invisible)
    return " ".join("".join(visible).split())


def split_key(text: str) -> str:
    """Return the key that assigns a query to a split: the text as the default encoder reads it, or coarser.

    In addition to `query_identity`, it drops accents, private characters, and spaces next to Chinese characters, as the
    default tokenizer does. Texts with equal keys are in the same split. A lower-case ASCII text is its own key.
    """
    if text.isascii():
        return query_identity(text)
    bare = _without_accents(query_identity(_without_accents(text)))
    words = "".join(f" {letter} " if _is_ideograph(letter) else letter for letter in bare).split()
    joined = "".join(
        word if not place or _is_ideograph(word[0]) or _is_ideograph(words[place - 1][-1]) else f" {word}"
        for place, word in enumerate(words)
    )
    return joined or query_identity(text)


def _is_visible(letter: str) -> bool:
    return unicodedata.category(letter) not in _INVISIBLE and letter not in _FILLERS


def _without_accents(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFD", text) if _is_read(letter))


def _is_read(letter: str) -> bool:
    return letter.isspace() or (letter != "\ufffd" and unicodedata.category(letter) not in ("Mn", "Co", "Cf", "Cc"))


def _is_ideograph(letter: str) -> bool:
    code = ord(letter)
    return code >= 0x3400 and any(first <= code <= last for first, last in _IDEOGRAPHS)
