"""Commands `diptych prepare`, `train` and `evaluate`. Heavy imports happen when a command runs."""

import shlex
from pathlib import Path
from signal import SIGINT
from typing import Annotated

import typer

from retrieval.system import stopping
from training.prepare.commands import prepare

app = typer.Typer()
app.command(
    epilog="Example:\n"
    "  diptych prepare log --label-column keyword_id --label-text-column keyword_text --test-days 1 --out dataset\n"
    "  diptych prepare LF-AmazonTitles-131K --out dataset"
)(prepare)


def _recipes(incomplete: str) -> list[str]:
    from training.recipe.loading import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, or cuda.", autocompletion=lambda: ["auto", "cpu", "cuda"])]


@app.command(
    epilog="Example:\n"
    "  diptych train --dataset dataset --out checkpoint\n"
    "  diptych train --dataset dataset --out checkpoint --recipe minilm --set optimizer.epochs=20"
)
def train(
    dataset: Annotated[Path, typer.Option(help="Dataset folder written by `diptych prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    recipe: Annotated[
        str, typer.Option(help="A shipped recipe by name, or a YAML file.", autocompletion=_recipes)
    ] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. batching.batch_size=512."),
    ] = None,
    device: DeviceOption = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Delete an earlier run in --out.")] = False,
) -> None:
    """Train the unified model on a dataset. Rerun the same command to resume an interrupted run.

    On several GPUs: torchrun --nproc-per-node GPUS -m diptych train …; the batch size stays the same.
    """
    from training.checkpoint.run_folder import REPORT
    from training.data.dataset import Dataset
    from training.monitoring.console import ConsoleCallback, print_summary
    from training.monitoring.resource_errors import resource_errors
    from training.optim.distributed import torchrun_processes
    from training.recipe.loading import load_recipe
    from training.reporting.report import write_report
    from training.run import train as run
    from training.trainer import Stopped

    loaded = load_recipe(recipe, set_ or [])
    with (
        resource_errors(out),
        torchrun_processes() as processes,
        ConsoleCallback(_stopping, quiet=not processes.is_rank_zero) as callback,
    ):
        try:
            facts = run(
                Dataset.open(dataset), loaded, out, callback, device=device, restart=restart, should_stop=_stopping,
                processes=processes,
            )  # fmt: skip
            report = out / REPORT
            if processes.is_rank_zero and not report.is_file():
                with callback.stage("writing the report"):
                    write_report(out, device)
        except (Stopped, stopping.StopRequested, KeyboardInterrupt):
            command = _resume_command(dataset, out, recipe, set_ or [], device)
            callback.print(f"Stopped and saved in {out}. Resume with:\n  {command}")
            raise typer.Exit(128 + (stopping.requested() or SIGINT)) from None
    if processes.is_rank_zero:
        print_summary(facts, out, report)


def _stopping() -> bool:
    return stopping.requested() is not None


def _resume_command(dataset: Path, out: Path, recipe: str, overrides: list[str], device: str) -> str:
    """Return the shell command that resumes a run; without --restart, which would delete what was saved."""
    words = ["diptych", "train", "--dataset", str(dataset), "--out", str(out), "--recipe", recipe]
    words += [word for override in overrides for word in ("--set", override)]
    return shlex.join([*words, "--device", device] if device != "auto" else words)


@app.command(
    epilog="Example:\n"
    "  diptych evaluate checkpoint --dataset dataset\n"
    "  diptych evaluate checkpoint --dataset dataset --compare other-checkpoint"
)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder written by `diptych train`.")],
    dataset: Annotated[Path, typer.Option(help="Prepared dataset that the checkpoint was trained on.")],
    split: Annotated[
        str,
        typer.Option(
            help="Split to evaluate: test, validation or train. Use test only for final reporting.",
            autocompletion=lambda: ["test", "validation", "train"],
        ),
    ] = "test",
    weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Classifier weight in the score: 0 is the dual encoder only, 1 the classifier only. "
            "Default: the weight selected on validation.",
        ),
    ] = None,
    memory_weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the votes of training queries; default: the one selected on validation."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="Second checkpoint, trained on the same dataset: test on which slices one is better."
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Number of worst queries to list.")] = 3,
    resamples: Annotated[
        int, typer.Option(min=100, help="Resamples of the bootstrap intervals and of the permutation test.")
    ] = 10_000,
    device: DeviceOption = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print all results as JSON.")] = False,
) -> None:
    """Evaluate a checkpoint on one split, with confidence intervals, or compare two checkpoints.

    All labels are ranked by exact search; a cascade uses its shortlists. Metrics are given for the unified model, for
    each head (dual encoder, classifier), by label frequency and by query length. With clicks and dates in the dataset,
    also weighted by clicks, by age of the label, and for repeated and new queries.
    """
    from retrieval.system.terminal import print_json
    from training.data.dataset import Dataset
    from training.evaluation.checkpoint_evaluation import evaluate_checkpoint, require_same_dataset
    from training.evaluation.summary import (
        EvaluationComparison,
        EvaluationSummary,
        compare_evaluations,
        summarize,
        to_json,
    )
    from training.reporting import evaluation_console

    opened = Dataset.open(dataset)
    if compare is not None:
        require_same_dataset(compare, opened)
    evaluation = evaluate_checkpoint(checkpoint, opened, split, weight, device, memory_weight=memory_weight)
    summary: EvaluationSummary | EvaluationComparison
    if compare is None:
        summary = summarize(evaluation, worst, resamples)
    else:
        other = evaluate_checkpoint(compare, opened, split, weight, device, evaluation, memory_weight)
        summary = compare_evaluations(evaluation, other, worst, resamples)
    if json:
        print_json(to_json(summary))
    else:
        evaluation_console.show(summary)
