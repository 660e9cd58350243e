"""An ONNX file, looked at before ONNX Runtime opens it: it may say that its weights lie in any file of the machine."""

import mmap
import re
from pathlib import Path

from retrieval.errors import BundleError
from retrieval.manifest import NAME

# ONNX calls it external data: an entry, field 13 of a tensor, of the key "location" and a path, each after its length.
KEY = b"location"
ENTRY = re.compile(rb"\x6a(.)\x0a\x08location\x12(.)", re.DOTALL)


def check_model_file(path: Path) -> None:
    """Raise BundleError where a model refers to data that does not lie beside it, where every file is verified.

    The key cannot hide: however a length of 8 is written in protobuf, its last byte is 8 or 0. What is not written in
    the one way that ONNX's own writers use is refused without being understood.
    """
    if not path.stat().st_size:
        raise BundleError(f"{path} is empty. Export the bundle again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as written:
        place = written.find(KEY)
        while place >= 0:
            if written[max(place - 1, 0)] in (0, 8) and not _beside(written, place):
                raise BundleError(f"{path} refers to data outside of the bundle. Export the bundle again.")
            place = written.find(KEY, place + 1)


def _beside(written: mmap.mmap, place: int) -> bool:
    """Whether the entry around this key names a file of the same folder."""
    entry = ENTRY.match(written, place - 4) if place >= 4 else None
    if entry is None:
        return False
    length, name_length = entry[1][0], entry[2][0]
    name = written[entry.end() : entry.end() + name_length].decode(errors="replace")
    # The entry ends with the name: nothing follows that would replace it. 128 or more would be the half of a length.
    return length == 12 + name_length < 128 and NAME.fullmatch(name) is not None
