"""report.html of a real run: its content, that it loads nothing, and that it can be made again."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.command import run
from tests.support.training.checkpoints import SETTINGS, write_words
from training.checkpoint.files import read_facts
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset, DatasetMeta
from training.evaluation import slices
from training.prepare.writing import write_dataset
from training.recipe.loading import load_recipe
from training.reporting.report import evaluate_for_report, recipe_settings, write_report

HOSTILE = "<img src=http://example.org/x onerror=alert(1)>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The words dataset, with HTML in every label text, query text and the dataset's name."""
    plain = write_words(tmp_path_factory.mktemp("words") / "dataset")

    def spoilt(table: pa.Table) -> pa.Table:
        texts = [f"{text} {HOSTILE}" for text in table["text"].to_pylist()]
        return table.set_column(table.column_names.index("text"), "text", [texts])

    splits = {name: spoilt(plain.split(name).table()) for name in ("train", "validation", "test")}
    folder = tmp_path_factory.mktemp("hostile") / "dataset"
    return write_dataset(folder, spoilt(plain.label_table), splits, DatasetMeta(name=HOSTILE))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(hostile: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as `diptych train` leaves it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    assert run("train", "--dataset", hostile.folder, "--out", out, *overrides) == 0
    return out


class Page(HTMLParser):
    """The elements of a page, and the text outside of its style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "style" and not self.style:
            self.style = data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def page(trained: Path) -> Page:
    return Page((trained / "report.html").read_text())


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    """If this failed, opening a report would need a network, or run HTML from a label text."""
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    attributes = {name for _, found in page.elements for name in found}
    assert not {"src", "srcset", "action", "data", "xlink:href"} & attributes
    assert all(found["href"].startswith("#m") for tag, found in page.elements if "href" in found)  # chart markers
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids)), "an id of one chart would refer to another chart"
    assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert HOSTILE in "".join(page.words)  # as text


def test_the_page_shows_metrics_and_settings_of_the_run(page: Page, trained: Path) -> None:
    """If this failed, the page would omit or misstate metrics, groups or charts."""
    facts, words = read_facts(trained), " ".join(" ".join(page.words).split())
    for head in ("unified", "dual_encoder", "classifier"):
        assert f"{facts.best.metrics[head]['PSP@5']:.2f}" in words
        assert f"{facts.best.seen_metrics[head]['PSP@5']:.2f}" in words
    assert "Labels with training positives only" in words
    for heading in (
        "Curves",
        "Classifier weight",
        "By label frequency",
        "By query length",
        "Worst queries",
        "Settings",
    ):
        assert heading in words
    assert facts.dataset_fingerprint in words
    assert f"torch {facts.versions['torch']}" in words
    groups = slices.frequency_groups(load_checkpoint(trained).positives_L)
    for group in ("head", "torso", "tail"):
        assert f" {group} {groups[group].sum()} " in words
    curves = {found["id"] for tag, found in page.elements if tag == "g" and "id" in found}
    assert curves >= {"p-1-unified", "p-1-dual_encoder", "p-1-classifier", "psp-5-unified", "loss-mean-per-step-total"}
    assert "loss-mean-per-step-classifier-bce" in curves
    labels = {found.get("aria-label") for tag, found in page.elements if tag == "svg"}
    assert labels >= {f"{metric} by epoch" for metric in facts.recipe.validation.metrics}


def test_its_metrics_are_those_of_the_checkpoint(trained: Path) -> None:
    """If this failed, the page would show two values of one metric."""
    opened = load_checkpoint(trained)
    evaluation = evaluate_for_report(opened, torch.device("cpu"))
    for head, figures in opened.metrics.items():
        assert evaluation.result.metrics[head] == pytest.approx(figures, abs=1e-6), head
    by_weight = evaluation.metrics_by_weight()
    for weight, head in ((0.0, "dual_encoder"), (1.0, "classifier"), (opened.classifier_weight, "unified")):
        assert by_weight[weight] == evaluation.result.metrics[head]


def test_the_page_can_be_made_again_from_the_folder_only(trained: Path, tmp_path: Path) -> None:
    """If this failed, a report could not be made on another machine, or would be different there."""
    copy = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("tokens", "report.html", "state*"))
    assert write_report(copy, "cpu").read_text() == (trained / "report.html").read_text()


def test_repeating_the_command_writes_a_missing_page(hostile: Dataset, trained: Path, tmp_path: Path) -> None:
    """If this failed, a run whose report failed on a full disk would never get one."""
    copy = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("report.html"))
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    assert run("train", "--dataset", hostile.folder, "--out", copy, *overrides) == 0
    assert (copy / "report.html").read_text() == (trained / "report.html").read_text()


def test_a_run_of_one_epoch_with_a_single_validation_query_has_a_page(tmp_path: Path) -> None:
    """If this failed, the shortest runs would end in an error after the training was done."""
    words = write_words(tmp_path / "words")
    splits = {name: words.split(name).table() for name in ("train", "validation", "test")}
    splits["validation"] = words.split("validation").take(np.arange(1)).table()
    small = write_dataset(tmp_path / "small", words.label_table, splits, DatasetMeta(name="one"))  # type: ignore[arg-type]
    overrides = [word for s in (*SETTINGS, "optimizer.epochs=1") for word in ("--set", s)]
    assert run("train", "--dataset", small.folder, "--out", tmp_path / "run", *overrides) == 0
    assert 'id="p-1-unified"' in (tmp_path / "run" / "report.html").read_text()


def test_settings_have_their_default_and_origin() -> None:
    """If this failed, changed settings, or values published in a paper, would not be marked."""
    found = {one.key: one for one in recipe_settings(load_recipe("lf_amazontitles_131k", ["seed=3"]))}
    assert (found["seed"].value, found["seed"].default, found["seed"].changed) == ("3", "0", True)
    assert found["batching.positives"].origin == "published"
    assert found["encoder.model"].default == "—"
    assert not found["optimizer.warmup"].changed
