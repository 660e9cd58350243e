"""Hash the texts of queries, to assign them to splits. Shape: N texts."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.query_text import split_keys


def text_hashes(texts: Any) -> npt.NDArray[np.uint64]:
    """Return two independent hashes [N, 2] of the texts of an Arrow column.

    They are the same on every machine and in every version. Texts that the default encoder reads alike have the same
    hashes, so they are in the same split.
    """
    digests = (hashlib.blake2b(key.encode(), digest_size=16).digest() for key in split_keys(texts).to_pylist())
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def below_share(hash_N: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Return whether each hash is among the lowest `share` of all possible hashes."""
    return hash_N.astype(np.float64) < share * 2.0**64
