"""CLDR annotations: name of a character → its keywords, in eight languages.

All names of a character are in one split.
"""

import json
from collections.abc import Iterator, Mapping

from benchmarks.panel.table import Row

LANGUAGES = ("de", "es", "fr", "it", "nl", "pl", "pt", "sv")  # not English: examples/keywords has it
FILES = tuple(f"package/annotations/{language}/annotations.json" for language in LANGUAGES)


def rows(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per character and language."""
    for name in FILES:
        for character, entry in json.loads(files[name])["annotations"]["annotations"].items():
            for title in entry.get("tts", ()):
                yield Row(title, entry.get("default", ()), f"character {character}")
