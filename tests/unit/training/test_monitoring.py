"""The display of a run: epoch statistics, remaining time, lines and charts."""

import io
import re
from queue import SimpleQueue
from threading import Event

import pytest
from rich.console import Console

from training.checkpoint.schema import EpochRecord
from training.evaluation.headline import HEADLINE_METRICS, HEADS
from training.monitoring.console import (
    ConsoleCallback,
    RemainingTime,
    duration,
    epoch_line,
    live_statistics,
    metrics_table,
)
from training.monitoring.status_log import StatusLog
from training.optim.step_stats import EpochStats, StepIndex, StepStats, by_head_and_term
from training.pages.charts import HEIGHT, WIDTH, column_chart, line_chart

LOSSES = {
    "dual_encoder/query_to_label/decoupled_softmax": 1.0,
    "dual_encoder/label_to_query/decoupled_softmax": 2.0,
    "classifier/query_to_label/bce": 0.5,
}


def step(number: int, *, epoch: int = 1, seconds: float = 2.0) -> StepStats:
    """Step `number` of 10 in epoch `epoch` of 3, both counted from 1."""
    return StepStats(
        index=StepIndex(epoch - 1, number - 1, 3, 10), losses=LOSSES, queries=100, labels=400, positives=250,
        rates={"heads": 1e-3}, seconds=seconds, memory_bytes=10**9 + number, gpu_bytes=0,
    )  # fmt: skip


@pytest.fixture
def stats() -> EpochStats:
    return EpochStats().add(step(1)).add(step(2))


def test_epoch_statistics_are_means_over_steps_and_queries(stats: EpochStats) -> None:
    """If it fails, every display shows sums instead of means, or the reverse."""
    assert stats.loss == pytest.approx(3.5)
    assert stats.positives_per_query == pytest.approx(2.5)
    assert stats.labels_per_pool == pytest.approx(400)
    assert stats.queries_per_second == pytest.approx(50)
    assert stats.memory_bytes == 10**9 + 2
    assert by_head_and_term(stats.mean_losses) == {"dual_encoder/decoupled_softmax": 3.0, "classifier/bce": 0.5}


def test_the_remaining_time_counts_steps_and_the_time_between_epochs() -> None:
    """If it fails, the estimate omits validation, or counts the first mining in every step."""
    remaining, stats = RemainingTime(), EpochStats().add(step(10))
    assert remaining.after(step(10), stats, 100.0) == pytest.approx(20 * 2.0)
    # the next epoch's first step ends 32 s later; the step itself takes 2 s
    assert remaining.after(step(1, epoch=2), stats, 132.0) == pytest.approx(19 * 2.0 + 30.0)
    assert remaining.after(step(10, epoch=3), stats, 200.0) == pytest.approx(0.0)


def test_live_statistics_show_every_term(stats: EpochStats) -> None:
    """If it fails, the live display hides a term of the loss."""
    console = Console(file=io.StringIO(), width=120)
    console.print(live_statistics(step(2), stats))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3.000 = decoupled softmax 3.000 (query→label 1.000, label→query 2.000)" in drawn
    assert "0.500 = BCE 0.500 (query→label 0.500)" in drawn
    assert "2.5 positives per query among 400 labels" in drawn
    assert "heads 0.001" in drawn
    assert "50 queries per second" in drawn
    assert "1.0 GB" in drawn


def test_a_log_has_a_line_about_the_run_whenever_it_is_due() -> None:
    """If it fails, a run without a terminal may print nothing for half an hour."""
    lines: SimpleQueue[str] = SimpleQueue()
    log = StatusLog(lambda: "mining", lines.put, seconds=0.001)
    log.start()
    assert [lines.get(timeout=60) for _ in range(3)] == ["mining"] * 3
    log.stop()
    log.stop()  # stopping twice, or before the start, does nothing
    StatusLog(lambda: "", lines.put).stop()


def test_a_failure_of_the_status_log_is_raised_at_the_end_of_the_run() -> None:
    """If it fails, a log that ended early looks like a run that has nothing to report."""
    failed = Event()

    def write(line: str) -> None:
        failed.set()
        raise OSError(f"no space for {line!r}")

    def run(error: Exception | None = None) -> None:
        failed.clear()
        callback = ConsoleCallback(lambda: False)
        callback.console = Console(file=io.StringIO())
        callback.log = StatusLog(lambda: "mining", write, seconds=0.001)
        with callback:
            assert failed.wait(60)
            if error is not None:
                raise error

    with pytest.raises(OSError, match="no space for 'mining'"):
        run()
    with pytest.raises(ValueError, match="diverged") as raised:
        run(ValueError("diverged"))
    assert raised.value.__notes__ == ["The status line failed too: no space for 'mining'"]


def test_the_status_is_that_of_the_innermost_stage_or_of_the_steps(stats: EpochStats) -> None:
    """If it fails, the lines of a log do not say what the run is doing."""
    callback = ConsoleCallback(quiet=True)
    assert callback.status() == "starting"
    with callback.stage("tokenizing"):
        assert callback.status() == "tokenizing"
    callback.on_step(step(2), stats)
    assert callback.status() == "epoch 1 of 3, step 2 of 10, 0:00:56 left"
    with callback.stage("validation") as progress:
        progress(500, 2000)
        assert callback.status() == "validation: 500 of 2,000, 0:00:00 left"
    assert callback.status().startswith("epoch 1")


def test_an_epoch_is_one_line(stats: EpochStats) -> None:
    """If it fails, a log without a terminal does not show the progress of the run."""
    metrics = {"P@1": 61.5, "P@5": 40.0, "PSP@5": 30.0, "R@10": 45.0}
    record = EpochRecord(
        epoch=2, loss=stats.loss, seconds=75.0, score=1.0, classifier_weight=0.3, popularity=0.0, cone_fraction=0.5,
        metrics={"unified": metrics}, stats=stats,
    )  # fmt: skip
    line = epoch_line(record, True, 3700.0, wide=True)
    assert line == (
        "★ epoch   2  loss  3.500 = dual 3.000 + classifier 0.500  P@1 61.50  P@5 40.00  PSP@5 30.00  R@10 45.00  w 0.3"
        "  0:01:15  2.5 positives  50 queries/s  1.0 GB  1:01:40 left"
    )
    assert "queries/s" not in epoch_line(record, False, 0.0, wide=False)


def test_a_title_is_shown_as_it_is() -> None:
    """If it fails, a dataset named "clicks [/old]" ends training in a traceback, or loses its name."""
    console = Console(file=io.StringIO(), width=120)
    of_head = dict.fromkeys(HEADLINE_METRICS, 12.5)
    console.print(metrics_table("clicks [/old] [red]", dict.fromkeys(HEADS, of_head), 0.55, 1.5))
    assert "clicks [/old] [red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_durations_read_as_a_clock() -> None:
    """If it fails, two hours are shown as two minutes."""
    assert [duration(s) for s in (0.4, 61, 7322)] == ["0:00:00", "0:01:01", "2:02:02"]


@pytest.mark.parametrize("epochs", [(1.0, 3.0), (1.0, 100.0), (1.0,)])
def test_epochs_are_whole_numbers(epochs: tuple[float, ...]) -> None:
    """If this failed, the axis of a chart would show epoch 1.5."""
    svg = line_chart("P@1", {"unified": [(epoch, 50.0 + epoch) for epoch in epochs]}, "epoch")
    ticks = re.findall(r"text-anchor: middle[^>]*>([^<]*)</text>", svg)
    assert ticks[-1] == "epoch"
    assert all(tick.isdigit() for tick in ticks[:-1])


@pytest.mark.parametrize("curve", [[(1.0, 5.0)], [(1.0, 5.0), (2.0, 5.0)], [(1.0, -3.0), (20.0, 99.9)]])
def test_every_point_is_within_its_chart(curve: list[tuple[float, float]]) -> None:
    """If this failed, the curve of a run of one epoch, or a flat one, would not be visible."""
    svg = line_chart("P@1", {"unified": curve}, "epoch", mark=curve[-1][0])
    points = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([^"]*)" y="([^"]*)"', svg)]
    assert len(points) == len(curve)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)
    assert svg == line_chart("P@1", {"unified": curve}, "epoch", mark=curve[-1][0]), "not reproducible"


def test_texts_of_a_chart_are_escaped() -> None:
    """If this failed, a note or title could add HTML to the report."""
    svg = line_chart("<b>", {"unified": [(1, 1), (2, 2)]}, "<i>", notes={(1, 1): "<script>"})
    assert not re.search("<(b|i|script)>", svg)


def test_logarithmic_axes_have_short_numbers() -> None:
    """If this failed, a chart of a million labels would have no readable axis, or none for a single label."""
    curve = [(1.0, 2_000_000.0), (1_000_000.0, 1.0)]
    svg = line_chart("Positives", {"unified": curve}, "rank", logarithmic=True)
    assert {"1", "10k", "1M"} <= set(re.findall(r">([^<]*)</text>", svg))
    assert 'id="positives-unified"' in line_chart("Positives", {"unified": [(1.0, 1.0)]}, "rank", logarithmic=True)


def test_a_column_chart_has_a_column_per_name() -> None:
    """If this failed, a day without clicks would be left out, or the names of many days would overlap."""
    days = {f"2026-09-{day:02}": 1000.0 * (day % 3) for day in range(1, 31)}
    svg = column_chart("Clicks", days, "day", ["unified"] * 29 + ["classifier"])
    assert len(re.findall(r'id="clicks-column-\d+"', svg)) == 30
    assert svg.count("2026-09-") == 4
    assert svg.count("var(--classifier)") == 1
    assert "url(" not in svg
    assert 'aria-label="Clicks by day; a: 1; b: 0"' in column_chart("Clicks", {"a": 1, "b": 0}, "day")
    assert "NaN" not in column_chart("Clicks", {"a": 0}, "day")
