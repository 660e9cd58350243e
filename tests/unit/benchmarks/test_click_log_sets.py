"""benchmarks/click_logs: the open sets with counts, and the simulated log with known truth."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from benchmarks.click_logs import examination, word_counts
from benchmarks.click_logs.simulated import Simulation, simulate
from retrieval.errors import DatasetError
from training.prepare.clicks.examination import estimate_examination

# Two nouns, the second a hypernym of the first; an adjective with a satellite. Made up, in the format of wndb(5WN).
NOUNS = """  1 a line of the licence
00000010 03 n 02 dog 0 domestic_dog 0 001 @ 00000020 n 0000 | an animal that barks; "a loud dog"
00000020 03 n 01 animal 0 000 | a living thing
"""
ADJECTIVES = """00000030 00 a 01 loud 1 001 & 00000040 a 0000 | with much sound
00000040 00 s 01 deafening(a) 0 001 & 00000030 a 0000 | very loud
"""
COUNTS = "animal%1:03:00:: 1 7\ndog%1:03:00:: 1 40\ndeafening%5:00:00:loud:01 1 3\ngone%1:03:00:: 1 9\n"


def test_sense_counts_are_clicks_of_words_and_hypernyms(tmp_path: Path) -> None:
    """If it fails, the clicks of the WordNet set are those of other senses, or zero."""
    texts = {"data.noun": NOUNS, "data.adj": ADJECTIVES, "data.verb": "", "data.adv": "", "cntlist.rev": COUNTS}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert word_counts.wordnet_counts(tmp_path) == {
        ("an animal that barks", "dog"): 40,
        ("an animal that barks", "domestic dog"): 0,
        ("an animal that barks", "animal"): 7,
        ("a living thing", "animal"): 7,
        ("with much sound", "loud"): 0,
        ("very loud", "deafening"): 3,
    }


def test_a_folder_without_sense_counts_is_one_sentence(tmp_path: Path) -> None:
    """If it fails, a missing package ends in a traceback."""
    with pytest.raises(DatasetError, match=r"has no cntlist\.rev\. Install the Debian package wordnet-base"):
        word_counts.wordnet_counts(tmp_path)


def test_bigrams_lose_their_most_frequent_words(tmp_path: Path) -> None:
    """If it fails, most clicks of the set are on function words."""
    words = [f"w{number} {1000 - number}" for number in range(word_counts.FUNCTION_WORDS)]
    lists = {word_counts.UNIGRAMS: [*words, "red 5", "wine 4"], word_counts.BIGRAMS: ["red wine 8", "w0 wine 9"]}
    for name, lines in lists.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    assert word_counts.bigram_counts(tmp_path) == {("red", "wine"): 8}


def test_populations_are_clicks_of_cities(tmp_path: Path) -> None:
    """If it fails, the clicks of the set of cities are not populations, or cities of one text are two labels."""
    places = [("Ulm", "DE", "01", 5), ("Ulmen", "DE", "08", 2), ("Ulmen", "DE", "01", 1), ("Ulmer", "US", "SC", 4)]
    cities = {
        str(row): {"name": name, "countrycode": country, "admin1code": region, "population": population}
        for row, (name, country, region, population) in enumerate(places)
    }
    countries = {"DE": {"name": "Germany"}, "US": {"name": "United States"}}
    for name, values in ((word_counts.CITIES, cities), (word_counts.COUNTRIES, countries)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
    counts = word_counts.city_counts(tmp_path)
    assert {pair: count for pair, count in counts.items() if pair[0] in ("ulm", "ulmen")} == {
        ("ulm", "Ulm, Germany"): 5,
        ("ulm", "Ulmer, SC, United States"): 4,
        ("ulm", "Ulmen, Germany"): 3,
        ("ulmen", "Ulmen, Germany"): 3,
    }


def test_counts_become_a_table_that_prepare_recognises(tmp_path: Path) -> None:
    """If it fails, the sets cannot be prepared without options, or a text has two ids."""
    path = word_counts.write_csv({("b", "x"): 2, ("a, b", "x"): 3, ("a, b", "y"): 0}, tmp_path / "sets" / "log.csv")
    assert pyarrow.csv.read_csv(path).to_pydict() == {
        "query": ["b", "a, b", "a, b"],
        "label": ["w000000", "w000000", "w000001"],
        "label_text": ["x", "x", "y"],
        "clicks": [2, 3, 0],
    }


QUERIES = [f"query {number}" for number in range(300)]
LABELS = [[f"label {number % 40}", f"label {number % 7 + 40}"] for number in range(300)]


def test_the_simulated_log_follows_its_truth() -> None:
    """If it fails, measurements on the simulated log compare with a truth that did not produce it."""
    plan = Simulation(days=5, searches=60_000, drift=0.0, bots=0.0, renamed=0.0)
    log = simulate(QUERIES, LABELS, plan)
    rows = log.rows.join(log.truth, ["query", "label"]).combine_chunks()
    position_C, impressions_C = rows["position"].to_numpy(), rows["impressions"].to_numpy()
    expected_C = impressions_C * plan.examination_K[position_C - 1] * rows["relevance"].to_numpy()
    assert rows.num_rows == log.rows.num_rows
    assert pc.sum(log.rows["clicks"]).as_py() == pytest.approx(expected_C.sum(), rel=0.02)
    assert log.truth["relevance"].to_numpy().min() > 0
    assert position_C.min() == 1
    assert position_C.max() == 10


def test_drift_bots_and_renames_are_in_the_log() -> None:
    """If it fails, the log has less noise than its description says."""
    plan = Simulation(days=5, searches=20_000, bots=0.005, renamed=0.2)
    log = simulate(QUERIES, LABELS, plan)
    texts = log.rows.group_by("label").aggregate([("label_text", "count_distinct")])["label_text_count_distinct"]
    assert pc.max(texts).as_py() == 2
    assert 0 < pc.mean(pc.equal(texts, 2).cast("float64")).as_py() < 0.4
    bots = log.truth.filter(log.truth["bot"]).num_rows
    assert 0 < bots < 40
    assert pc.sum(pc.greater_equal(log.rows["clicks"], plan.bot_clicks // 20)).as_py() <= bots
    assert simulate(QUERIES, LABELS, plan).rows.equals(log.rows)


def test_examination_is_recovered_from_the_simulated_log() -> None:
    """If it fails, bots or drift mislead the weights of clicks by position."""
    plan = Simulation(days=5, searches=200_000, bots=0.002, seed=1)
    rows = simulate(QUERIES, LABELS, plan).rows.group_by(["query", "label", "position"]).aggregate(
        [("clicks", "sum"), ("impressions", "sum")]
    )  # fmt: skip
    pairs = pc.binary_join_element_wise(rows["query"], rows["label"], "\t").combine_chunks().dictionary_encode()
    columns = [rows[name].to_numpy() for name in ("position", "clicks_sum", "impressions_sum")]
    estimate_K = estimate_examination(pairs.indices.to_numpy(), *columns)
    assert np.abs(np.log(estimate_K / plan.examination_K)).max() < 0.25


def test_both_estimates_of_examination_are_compared() -> None:
    """If it fails, the figures of decision 0082 cannot be measured again."""
    logs = [examination.simulated(2_000, 200, (1, 9), seed=0)]
    for estimate in (estimate_examination, examination.expectation_maximisation):
        error, seconds = examination.error_and_seconds(estimate, logs)
        assert 0 < error < 0.1
        assert seconds > 0
