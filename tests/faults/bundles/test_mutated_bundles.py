"""A thousand damaged bundles: none is accepted as valid, and hostile ones do no harm. `-s` shows the counts."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from retrieval.bundle.manifest import INDEX, QUERY_ENCODER

ROOT = Path(__file__).parents[3]
COUNTS = {"hashes left alone": 300, "manifest changed": 200, "hashes fixed up": 500}
SEED = 1


@pytest.fixture(scope="module")
def opened() -> list[dict[str, Any]]:
    """Return the outcome of each bundle."""
    command = [sys.executable, "-m", "tests.support.programs.mutation_runner", *map(str, COUNTS.values()), str(SEED)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    cases = [json.loads(line) for line in ended.stdout.splitlines()]
    counts = Counter((case["group"], case["kind"], case["outcome"]) for case in cases)
    for (group, kind, outcome), count in sorted(counts.items()):
        print(f"{count:5}  {group}: {kind}: {outcome}")
    assert Counter(case["group"] for case in cases) == COUNTS
    return cases


def of(cases: list[dict[str, Any]], group: str) -> list[dict[str, Any]]:
    return [case for case in cases if case["group"] == group]


@pytest.mark.parametrize("group", ["hashes left alone", "manifest changed"])
def test_damage_that_the_manifest_tells_is_refused(opened: list[dict[str, Any]], group: str) -> None:
    """If it fails, a bundle that was damaged in transfer, or whose manifest is inconsistent, is served."""
    accepted = [case for case in of(opened, group) if case["outcome"] != "refused"]
    assert accepted == []


def test_a_refusal_names_file_and_cause_in_a_sentence(opened: list[dict[str, Any]]) -> None:
    """If it fails, an error does not name the file and the cause, or is the message of a library."""
    for case in opened:
        if case["outcome"] == "refused":
            assert any(name in case["how"] for name in case["files"]), case
            assert case["how"].endswith("."), case
            assert "\n" not in case["how"], case


def test_a_hostile_bundle_raises_one_error_within_its_limits(opened: list[dict[str, Any]]) -> None:
    """If it fails, a hostile bundle raises an unexpected error in its reader, or blocks it."""
    strange = [case for case in opened if case["outcome"] in ("escaped", "hung")]
    assert strange == []


def test_no_lying_bundle_reaches_native_code_that_dies_of_it(opened: list[dict[str, Any]]) -> None:
    """If it fails, a file other than a model crashes the process that opens it."""
    died = [case for case in opened if case["outcome"] == "died" and QUERY_ENCODER not in case["files"]]
    assert died == []


def test_an_index_that_passes_is_one_with_another_vector_or_link(opened: list[dict[str, Any]]) -> None:
    """If it fails, much of an index is unchecked, or harmless changes are refused."""
    outcomes = Counter(case["outcome"] for case in opened if INDEX in case["files"] and "rehashed" in case["kind"])
    assert outcomes.keys() <= {"refused", "accepted", "different"}
    assert outcomes["refused"] > outcomes["accepted"] > 0
