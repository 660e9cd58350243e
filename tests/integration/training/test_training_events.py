"""TensorBoard events of uninterrupted and interrupted runs."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.listener import RecordingCallback
from tests.support.training.checkpoints import write_words
from training.checkpoint.files import read_facts
from training.data.dataset import Dataset
from training.recipe.loading import load_recipe
from training.run import train
from training.trainer import Stopped

RECIPE = load_recipe(
    "default",
    ["optimizer.epochs=3", "validation.every_epochs=1", "encoder.dim=32", "encoder.vocabulary_size=64",
     "batching.batch_size=64", "batching.label_queries.share=0.1"],
)  # fmt: skip
MEASURED = ("machine/", "validation_")  # by the clock; and ties in C@k may be broken by memory layout


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_words(tmp_path_factory.mktemp("words") / "dataset")


@pytest.fixture(scope="module")
def finished(words: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(words, RECIPE, folder, RecordingCallback())
    return folder


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every curve as TensorBoard draws it: (step, value) by tag."""
    read = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    return {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_every_statistic_has_a_curve(finished: Path) -> None:
    """If it fails, TensorBoard lacks a term of the loss, a learning rate or a metric."""
    drawn = curves(finished)
    steps = len(drawn["loss/total"])
    assert [step for step, _ in drawn["loss/total"]] == list(range(steps))
    parts = [tag for tag in drawn if tag.startswith("loss/") and tag != "loss/total"]
    assert {tag.split("/")[1] for tag in parts} == {"dual_encoder", "classifier"}
    assert {tag.split("/")[2] for tag in parts} == {"query_to_label", "label_to_query"}
    assert sum(drawn[tag][5][1] for tag in parts) == pytest.approx(drawn["loss/total"][5][1], rel=1e-5)
    assert {"learning_rate/heads", "learning_rate/classifier", "learning_rate/token"} <= drawn.keys()
    assert drawn["batch/positives_per_query"][0][1] >= 1
    assert drawn["machine/queries_per_second"][0][1] > 0
    assert drawn["machine/memory_GB"][0][1] > 0
    expected = [record.metrics["dual_encoder"]["P@1"] for record in read_facts(finished).history]
    assert [value for _, value in drawn["validation_dual_encoder/P@1"]] == pytest.approx(expected)
    assert [step for step, _ in drawn["validation_dual_encoder/P@1"]] == [steps // 3, 2 * steps // 3, steps]


# In the middle of an epoch; after an epoch's last step, before its validation; after the crash of a run that had got
# further than what it saved, or that had saved nothing yet, before and after its first validation.
@pytest.mark.parametrize(
    ("stops", "crash"), [([4, 5], 0), ([8], 0), ([16, 1], 0), ([4], 3), ([8], 5), ([], 4), ([], 10)]
)
def test_a_resumed_run_continues_the_same_curves(
    words: Dataset, finished: Path, tmp_path: Path, stops: list[int], crash: int
) -> None:
    """If it fails, a resumed curve has a gap, duplicate steps, or points of two runs."""
    folder = tmp_path / "run"
    for steps in stops:
        counted = iter(range(steps - 1))
        with pytest.raises(Stopped):
            train(
                words,
                RECIPE,
                folder,
                RecordingCallback(),
                should_stop=lambda counted=counted: next(counted, None) is None,
            )
    if crash:
        counted = iter(range(crash))
        with pytest.raises(StopIteration):
            train(words, RECIPE, folder, RecordingCallback(), should_stop=lambda: bool(next(counted) < 0))
    train(words, RECIPE, folder, RecordingCallback())
    mine, whole = curves(folder), curves(finished)
    assert mine.keys() == whole.keys()
    for tag, points in whole.items():
        assert [step for step, _ in mine[tag]] == [step for step, _ in points], tag
        if not tag.startswith(MEASURED):
            assert mine[tag] == points, tag


def test_a_resumed_run_keeps_the_same_history(words: Dataset, finished: Path, tmp_path: Path) -> None:
    """If it fails, an interrupted epoch reports only the steps after the interruption."""
    counted = iter(range(4))
    with pytest.raises(Stopped):
        train(words, RECIPE, tmp_path / "run", RecordingCallback(), should_stop=lambda: next(counted, None) is None)
    train(words, RECIPE, tmp_path / "run", RecordingCallback())
    by_clock = {"seconds", "memory_bytes", "gpu_bytes"}
    mine, whole = (
        [record.stats.model_dump(exclude=by_clock) for record in read_facts(folder).history]
        for folder in (tmp_path / "run", finished)
    )
    assert mine == whole
    assert whole[0]["queries"] == round(1.1 * len(words.split("train")))  # label queries are learned from like others
    assert all(
        record.loss == pytest.approx(sum(record.stats.mean_losses.values())) for record in read_facts(finished).history
    )
