"""`diptych search` and `diptych bundles`, called through the command line."""

import json

import pytest

from retrieval import open_bundle
from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.command import run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "store", "one", "two")


def test_json_is_what_the_library_answers(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, the command line and the library disagree."""
    assert run("search", store.path, "red shoes", "light rain", "-k", "3", "--weight", "0.25", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    expected = open_bundle(store.path).search(["red shoes", "light rain"], 3, weight=0.25)
    assert printed["bundle"] == "one"
    assert [result["query"] for result in printed["results"]] == ["red shoes", "light rain"]
    for result, hits in zip(printed["results"], expected, strict=True):
        assert [hit["id"] for hit in result["hits"]] == [hit.id for hit in hits]
        assert [hit["score"] for hit in result["hits"]] == [hit.score for hit in hits]
        assert result["hits"][0]["attributes"] == hits[0].attributes


def test_filters_are_read_as_their_attributes_types(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, the command line cannot filter by a number, or shows a market another market's labels."""
    asked = ("search", store.path, "red shoes", "--filter", "market=US", "--filter", "year=2020,2021")
    assert run(*asked, "--min-score", "0.1", "--json") == 0
    hits = json.loads(capsys.readouterr().out)["results"][0]["hits"]
    assert hits
    assert all(hit["attributes"]["market"] == "US" and hit["attributes"]["year"] < 2022 for hit in hits)
    assert all(hit["score"] >= 0.1 for hit in hits)
    for wrong, why in (("year=soon", "'soon' is not"), ("market", "has no values"), ("city=NY", "no attribute")):
        assert run("search", store.path, "red", "--filter", wrong) == 1
        assert why in capsys.readouterr().err


def test_the_table_shows_both_scores(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, users cannot see which head contributed to a score."""
    assert run("search", store.path / "bundles" / "two", "[red] shoes", "-k", "2") == 0
    printed = capsys.readouterr().out
    hit = open_bundle(store.path / "bundles" / "two").search(["[red] shoes"], 1)[0][0]
    for expected in ("[red] shoes", "dual encoder", "classifier", "market", "bundle two", hit.text, f"{hit.score:.3f}"):
        assert expected in printed


def test_bundles_are_listed_verified_and_activated(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, a store cannot be managed from the command line."""
    assert run("bundles", "verify", store.path, "two") == 0
    assert run("bundles", "activate", store.path, "two") == 0
    assert store.active() == "two"
    assert run("bundles", "list", store.path) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["*", "two"] in [line[:2] for line in listed]
    assert run("bundles", "show", store.path, "one") == 0
    assert json.loads(capsys.readouterr().out)["labels"]["count"] == 200
    store.activate("one")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "{store}", " "], "error: query 0 is empty"),
        (["search", "{store}/nowhere", "red"], "error: {store}/nowhere is neither a store"),
        (["bundles", "list", "{store}/nowhere"], "error: {store}/nowhere has no bundles. Create one with"),
        (["bundles", "activate", "{store}", "three"], "error: {store} has no bundle 'three'. It has: one, two."),
        (["bundles", "show", "{store}", "../one"], "error: '../one' is not a bundle name"),
    ],
)
def test_a_mistake_is_one_sentence(
    store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """If it fails, a typing mistake prints a traceback."""
    assert run(*(argument.format(store=store.path) for argument in arguments)) == 1
    assert capsys.readouterr().err.startswith(said.format(store=store.path))


@pytest.mark.parametrize("arguments", [["-k", "0"], ["-k", "many"], ["--weight", "2"]])
def test_a_usage_mistake_ends_with_2(store: Store, arguments: list[str]) -> None:
    """If it fails, scripts cannot tell wrong usage from a failed search."""
    assert run("search", store.path, "red", *arguments) == 2
