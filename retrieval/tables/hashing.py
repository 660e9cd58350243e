"""Hash files that are local or behind a URL."""

import hashlib
from typing import BinaryIO

BYTES_PER_READ = 2**20


def file_sha256(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of an open file, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(BYTES_PER_READ):
        digest.update(block)
    return digest.hexdigest()
