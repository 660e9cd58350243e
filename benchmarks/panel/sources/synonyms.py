"""The French thesaurus of LibreOffice: word → synonyms of all its senses. Short queries, many labels per query."""

from collections.abc import Iterator, Mapping

from benchmarks.panel.table import Row

THESAURUS = "./usr/share/mythes/thes_fr.dat"


def rows(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per word. In the file, `word|n` is followed by n senses `(part of speech)|synonym|…`."""
    lines = iter(files[THESAURUS].decode().splitlines()[1:])  # the first line names the encoding
    for line in lines:
        word, _, senses = line.rpartition("|")
        yield Row(word, [synonym for _ in range(int(senses)) for synonym in next(lines).split("|")[1:]])
