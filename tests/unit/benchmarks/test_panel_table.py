"""benchmarks/panel: rows of each source, splits, and exclusion of pairs whose reverse was trained on."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.panel.build import build
from benchmarks.panel.catalogue import SETS, PanelSet
from benchmarks.panel.download import Package, read_package
from benchmarks.panel.sources import devices, diagnoses, ding, emoji, foldoc, packages, places, synonyms
from benchmarks.panel.table import Query, Row, assign_splits, build_table
from retrieval.errors import DatasetError
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings


def pairs(rows: object) -> list[tuple[str, list[str]]]:
    return [(row.query, list(row.labels)) for row in rows]  # type: ignore[attr-defined]


def test_queries_that_are_read_alike_are_one_row_and_spellings_of_a_label_one_label() -> None:
    """If it fails, a test query is also a training query in another spelling, or a label competes with itself."""
    table = build_table([Row("Red  Wine", ["Drink", "red wine"]), Row("red wine", ["drink", "Glass"])], {})
    (row,) = table.to_pylist()
    assert row["query"] == "Red Wine"
    assert row["labels"] == ["Drink", "Glass"]


def test_a_group_is_in_one_split_and_the_splits_do_not_depend_on_the_order() -> None:
    """If it fails, near copies of test queries are in training, or results change with the order of the source."""
    queries = {f"q{number}": Query(f"q{number}", f"group {number // 5}") for number in range(1000)}
    splits = assign_splits(queries)
    assert len({(query.group, splits[key]) for key, query in queries.items()}) == 200
    assert assign_splits(dict(reversed(queries.items()))) == splits
    counts = {name: list(splits.values()).count(name) for name in ("train", "validation", "test")}
    assert 700 < counts["train"] < 900
    assert min(counts.values()) > 50


def test_pairs_whose_reverse_is_in_an_earlier_split_are_excluded() -> None:
    """If it fails, a test row counts a pair that training shows from the other side."""
    rows = [Row(f"word {number}", [f"word {(number + step) % 400}" for step in (-1, 1)]) for number in range(400)]
    table = {row["query"]: row for row in build_table(rows, {}).to_pylist()}
    earlier = {"train": set(), "validation": {"train"}, "test": {"train", "validation"}}
    for row in table.values():
        expected = {row["query"]} | {
            label for label in row["labels"] if table[label]["split"] in earlier[row["split"]]
        }  # fmt: skip
        assert set(row["exclude"]) == expected
    assert {row["split"] for row in table.values()} == {"train", "validation", "test"}


def test_a_table_without_rows_is_refused() -> None:
    """If it fails, a source whose format has changed gives an empty dataset."""
    with pytest.raises(DatasetError, match="gave no rows"):
        build_table([Row(" ", ["label"]), Row("query", [])], {})


def test_a_built_table_can_be_prepared_and_names_its_licence(tmp_path: Path) -> None:
    """If it fails, `diptych prepare` cannot read the datasets of the panel."""
    rows = [Row(f"query {number}", [f"label {number % 7}"]) for number in range(200)]
    one = PanelSet("tiny", (), lambda files: iter(rows), "CC0-1.0", "small")
    path = build(one, tmp_path)
    assert pq.read_schema(path).metadata[b"licence"] == b"CC0-1.0"
    dataset, _ = prepare(path, tmp_path / "dataset", PrepareSettings())
    assert dataset.n_labels == 7
    assert all(dataset.meta.splits[name].rows for name in ("train", "validation", "test"))


def test_a_download_with_another_hash_is_removed_and_refused(tmp_path: Path) -> None:
    """If it fails, a changed file of a registry becomes data of the panel."""
    package = Package("debian", "pool/x", hashlib.sha256(b"expected").hexdigest(), ("x",))
    path = tmp_path / package.sha256[:16]
    path.write_bytes(b"other")
    with pytest.raises(DatasetError, match="has the SHA-256"):
        read_package(package, tmp_path)
    assert not path.exists()


def test_every_dataset_has_a_pinned_hash_and_a_licence_in_notice() -> None:
    """If it fails, a dataset can change unnoticed, or its licence is not documented."""
    notice = (Path(__file__).parents[3] / "benchmarks" / "panel" / "NOTICE").read_text(encoding="utf-8")
    for one in SETS.values():
        assert f"{one.name}: " in notice
        for package in one.packages:
            assert len(package.sha256) == 64
            assert package.members


def test_packages_have_their_long_description_and_tags() -> None:
    """If it fails, the queries are short, or binary packages of one source are in two splits."""
    index = (
        b"Package: a-data\nSource: a (1)\nDescription-md5: 1\nTag: role::data, use::gameplaying,\n works-with::db\n\n"
    )
    index += b"Package: untagged\nDescription-md5: 2\n"
    descriptions = b"Package: a-data\nDescription-md5: 1\nDescription-en: game\n A game.\n .\n With data.\n"
    (row,) = packages.rows({packages.INDEX: index, packages.DESCRIPTIONS: descriptions})
    assert row.query.split() == ["game", "A", "game.", "With", "data."]
    assert list(row.labels) == ["role data", "use gameplaying", "works-with db"]
    assert row.group == "source a"


def test_devices_have_vendors_and_cards_their_device() -> None:
    """If it fails, names have the vendor of another line, or device classes are read as vendors."""
    text = b"# c\n0001  Acme\n\t00a1  AX-1 Card\n\t\t0002 0001  Board 7\n0002  Bolt\nC 01  Class\n\t00  Sub\n"
    assert pairs(devices.rows({devices.PCI_IDS: text})) == [("AX-1 Card", ["Acme"]), ("Board 7", ["Bolt", "AX-1 Card"])]


def test_diagnoses_have_the_titles_above_them() -> None:
    """If it fails, a title is its own label, or an inclusion term lacks its class."""
    text = (
        "<t><chapter><desc>Eye (H00-H59)</desc><section id='H00'><desc>Lid</desc>"
        "<diag><name>H00</name><desc>Stye</desc>"
        "<diag><name>H00.0</name><desc>Deep stye</desc><inclusionTerm><note>Hordeolum</note></inclusionTerm></diag>"
        "</diag></section></chapter></t>"
    )
    rows = list(diagnoses.rows({diagnoses.TABULAR: text.encode()}))
    assert pairs(rows) == [
        ("Stye", ["Lid", "Eye"]),
        ("Deep stye", ["Stye", "Lid", "Eye"]),
        ("Hordeolum", ["Deep stye", "Stye", "Lid", "Eye"]),
    ]
    assert [row.group for row in rows] == ["below H00", "below H00", "below H00"]


def test_dictionary_entries_give_both_directions_without_notes() -> None:
    """If it fails, grammar is part of a text, or parts of an entry are mixed."""
    text = b"# c\nAal {m} [zool.] | Aale {pl} :: eel | eels\nBreite {f}; Weite :: width\n"
    assert pairs(ding.rows({ding.DICTIONARY: text})) == [
        ("Aal", ["eel"]),
        ("eel", ["Aal"]),
        ("Aale", ["eels"]),
        ("eels", ["Aale"]),
        ("Breite", ["width"]),
        ("Weite", ["width"]),
        ("width", ["Breite", "Weite"]),
    ]


def test_only_labels_with_several_entries_are_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, most labels of the set are unseen in training."""
    monkeypatch.setattr(ding, "MIN_ENTRIES", 2)
    text = b"Weite :: width\nBreite :: width\nAal :: eel\n"
    rows = [pair for pair in pairs(ding.rows_of_common_labels({ding.DICTIONARY: text})) if pair[1]]
    assert rows == [("Weite", ["width"]), ("Breite", ["width"])]


def test_names_of_a_character_are_one_group() -> None:
    """If it fails, the same character is in training in another language."""
    files = {
        name: json.dumps({"annotations": {"annotations": {"x": {"default": ["herb"], "tts": ["leaf"]}}}}).encode()
        for name in emoji.FILES
    }
    rows = list(emoji.rows(files))
    assert len(rows) == len(emoji.LANGUAGES)
    assert {row.group for row in rows} == {"character x"}


def test_synonyms_of_all_senses_are_labels() -> None:
    """If it fails, words lose the synonyms of their later senses."""
    text = b"UTF-8\nniveau|2\n(Nom)|rang|palier\n(Nom)|outil\nfin|1\n(Nom)|but\n"
    assert pairs(synonyms.rows({synonyms.THESAURUS: text})) == [
        ("niveau", ["rang", "palier", "outil"]),
        ("fin", ["but"]),
    ]


def test_articles_have_all_their_terms_and_links_lead_to_first_terms() -> None:
    """If it fails, a term is part of the text, or links to other names of an article are lost."""
    text = (
        "00-database-info\n\n   About.\n\nneural network\nNN\n\n   <ai> A {net} of {nodes\n   x}. [ref]\n\n"
        "network\nnet\n\n   A graph.\n\n"
    )
    files = {foldoc.DICTIONARY: gzip.compress(text.encode())}
    assert pairs(foldoc.rows_of_links(files))[0] == ("neural network", ["network"])
    assert pairs(foldoc.rows_of_terms(files)) == [
        ("A net of nodes x.", ["neural network", "NN"]),
        ("A graph.", ["network", "net"]),
    ]


def test_places_have_their_country_and_no_short_names() -> None:
    """If it fails, cities of one name are one label, or airport codes are queries."""
    city: dict[str, object] = {"name": "Ulm", "countrycode": "DE", "admin1code": "1", "population": 200_000}
    city["alternatenames"] = ["ULM", "Ulma"]
    small = city | {"countrycode": "US", "admin1code": "MN", "population": 5}
    countries = {"DE": {"name": "Germany"}, "US": {"name": "United States"}}
    files = {
        places.CITIES: json.dumps({"1": city, "2": small}).encode(),
        places.COUNTRIES: json.dumps(countries).encode(),
    }
    assert pairs(places.rows_of_places(files)) == [("Ulma", ["Ulm, Germany"])]
    assert [row.query for row in places.rows_of_names(files)] == ["Ulm, Germany", "Ulm, MN, United States"]
