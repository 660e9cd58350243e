"""Compare the training speed of Diptych and sentence-transformers, in (query, positive) pairs per second.

    python benchmarks/pairs_per_second.py DATASET --model FOLDER_OR_NAME --environments FOLDER [--batch 256]
        [--max-tokens 32] [--steps 20] [--rounds 3] [--threads 1] [--markdown FILE]

Both sides fine-tune the same encoder on the same pairs, drawn from DATASET's training split, on the CPU in float32,
with an in-batch softmax over the same number of pairs per step (sentence-transformers: MultipleNegativesRankingLoss).
The sides run in alternation. Each round of a side is a separate process; loading and the first steps are not measured.
sentence-transformers runs in a separate environment, which is made on first use. Writes only FILE.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measuring.pairs_process import recipe_of
from benchmarks.measuring.running import count
from benchmarks.measuring.systems import ROOT, THREAD_VARIABLES
from benchmarks.peers.environments import ENVIRONMENTS, python_of
from benchmarks.peers.watched_steps import StepTask
from retrieval.errors import BadInput, DiptychError
from training.batching.batches import sample_positives
from training.data.dataset import Dataset, DatasetMeta, Split, SplitName
from training.data.token_cache import TextTokenizer, tokenize_in_memory
from training.model.tokenizer import make_tokenizer, query_identity_version
from training.prepare.writing import write_dataset

WARMUP_STEPS = 5  # before the measured steps
OURS, THEIRS = "Diptych, systems/dpr", "sentence-transformers"
PEER = ENVIRONMENTS["sentence-transformers"]


@dataclass(frozen=True)
class PairsRound:
    """Cost of the measured steps of one round: seconds of wall time and CPU time, and encoded texts and tokens."""

    pairs: int
    wall: float
    cpu: float
    texts: int
    tokens: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class TokenizationCost:
    """Tokens per pair, and the CPU seconds per pair to tokenize them in advance."""

    dataset: str
    tokens_per_pair: float
    seconds_per_pair: float


Rounds = dict[str, list[PairsRound]]


def main() -> int:
    """Measure, print and write the page. Prints an error and returns 1 if a side cannot be measured."""
    options, console = arguments(), Console(highlight=False)
    try:
        lines = measure(options, Console(stderr=True, highlight=False))
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Training speed in pairs per second, compared with sentence-transformers."
    )
    parser.add_argument("dataset", type=Path, help="a prepared dataset")
    parser.add_argument("--model", required=True, help="a Hugging Face encoder: a folder, or a name")
    parser.add_argument("--environments", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--batch", type=count, default=256, help="pairs per step (default: 256)")
    parser.add_argument("--max-tokens", type=count, default=32, help="truncation of texts (default: 32)")
    parser.add_argument("--steps", type=count, default=20, help="measured steps per round (default: 20)")
    parser.add_argument("--rounds", type=count, default=3, help="rounds per side (default: 3)")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--markdown", type=Path, help="also write the page here")
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> list[str]:
    """Run both sides; return the lines of the page."""
    if options.markdown and not options.markdown.resolve().parent.is_dir():
        raise BadInput(f"--markdown '{options.markdown}': its folder does not exist. Create it first.")
    dataset = Dataset.open(options.dataset)
    task = StepTask(
        model=options.model, max_tokens=options.max_tokens, batch=options.batch, warm=WARMUP_STEPS, steps=options.steps,
        threads=options.threads, seed=0,
    )  # fmt: skip
    with TemporaryDirectory() as name:
        folder = Path(name)
        pairs = draw_pairs(dataset, task, folder)
        cost = tokenization_cost(dataset, pairs, task)  # fails early if the model cannot be read
        python = python_of(PEER, options.environments.resolve())
        commands = {
            OURS: [sys.executable, "-m", "benchmarks.measuring.pairs_process"],
            THEIRS: [str(python), "-m", "benchmarks.peers.sentence_transformers_trainer"],
        }
        rounds = alternate(commands, task, folder, options.rounds, lambda line: console.print(line, markup=False))
    return page(options, task, cost, rounds)


def draw_pairs(dataset: Dataset, task: StepTask, folder: Path) -> Split:
    """Write the pairs for both sides: random training queries, each with a random positive.

    Their number makes complete batches for Diptych, which halves the queries until no half exceeds the batch size.
    """
    train, generator = dataset.split("train"), np.random.default_rng(task.seed)
    needed = task.batch * 2 ** (task.warm + task.steps - 1).bit_length()
    if needed > len(train):
        raise BadInput(
            f"{task.warm + task.steps} steps of {task.batch} pairs need {needed:,} training queries, but "
            f"{dataset.folder} has {len(train):,}. Give a smaller --batch or fewer --steps."
        )
    queries = train.take(generator.choice(len(train), needed, replace=False))
    drawn = replace(queries, labels=sample_positives(queries.labels, 1, generator))
    splits: dict[SplitName, Any] = {"train": drawn.table(), "validation": dataset.split("validation").table()}
    write_dataset(folder / "dataset", dataset.label_table, splits, DatasetMeta(name=dataset.meta.name))
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for query, label in zip(drawn.texts, drawn.labels.values, strict=True):
            file.write(json.dumps({"query": query, "positive": dataset.label_texts[label]}) + "\n")
    return drawn


def tokenization_cost(dataset: Dataset, drawn: Split, task: StepTask) -> TokenizationCost:
    """Tokenize the pairs once, as Diptych does before its steps. Raises RecipeError if the model cannot be read."""
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)  # threads of the tokenizer, read once
    tokenizer = make_tokenizer(recipe_of(task), [])
    texts = [*drawn.texts, *(dataset.label_texts[label] for label in drawn.labels.values)]
    started = time.process_time()
    tokens = tokenize_in_memory(texts, TextTokenizer(tokenizer, query_identity_version(tokenizer)))
    seconds = time.process_time() - started
    return TokenizationCost(dataset.meta.name, len(tokens.ids.values) / len(drawn), seconds / len(drawn))


def alternate(
    commands: Mapping[str, Sequence[str]], task: StepTask, folder: Path, rounds: int, log: Callable[[str], object]
) -> Rounds:
    """Run all sides in alternation. Each round has its own seed, equal for all sides."""
    results: Rounds = {side: [] for side in commands}
    for seed in range(rounds):
        replace(task, seed=seed).write(folder)
        for side, command in commands.items():
            result = run(side, command, folder)
            results[side].append(result)
            log(f"round {seed + 1} of {rounds}: {result.pairs / result.wall:,.0f} pairs per second, {side}")
    return results


def run(side: str, command: Sequence[str], folder: Path) -> PairsRound:
    """Run the task in `folder` in a new process. Raises DiptychError with its last line if it fails."""
    task, out = StepTask.read(folder), folder / "round.json"
    names = (*THREAD_VARIABLES, "RAYON_NUM_THREADS")
    variables = {name: str(task.threads) for name in names} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, str(folder), str(out)], env=os.environ | variables, check=False, capture_output=True, text=True
    )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"it ended with code {ended.returncode} without a message"]
        raise DiptychError(f"{side} could not be measured: {lines[-1].removeprefix('error: ')}")
    result = PairsRound(pairs=task.batch * task.steps, **json.loads(out.read_text(encoding="utf-8")))
    out.unlink()
    return result


# ---- the page


def page(options: argparse.Namespace, task: StepTask, cost: TokenizationCost, rounds: Rounds) -> list[str]:
    """Return the table, notes, command and versions."""
    ours, theirs = rounds.values()
    versions = theirs[0].versions
    return [
        f"# {cost.dataset}: training speed compared with sentence-transformers",
        "",
        f"`{_command(options)}`",
        "",
        f"{Path(options.model).name}, all weights fine-tuned on the CPU, float32, {task.threads} "
        f"thread{'s' if task.threads > 1 else ''}, {task.batch} pairs per step, texts truncated at {task.max_tokens} "
        f"tokens. Median (minimum–maximum) of {len(ours)} round{'s' if len(ours) > 1 else ''} of {task.steps} steps, "
        f"the sides in alternation, each round in a new process; loading and the first {task.warm} steps are not "
        "measured. Ratios are computed per round. On a shared machine, CPU time varies less than wall time.",
        "",
        *table(rounds, cost),
        "",
        *notes(rounds, cost),
        "",
        f"{', '.join(f'{name} {of}' for name, of in versions.items())}; Diptych with "
        f"{', '.join(f'{name} {of}' for name, of in ours[0].versions.items())}; Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} processors.",
    ]


def table(rounds: Rounds, cost: TokenizationCost) -> list[str]:
    """Return a row per quantity, with a column per side and the ratio of Diptych to sentence-transformers."""
    ours, theirs = rounds.values()
    tokenizing = cost.seconds_per_pair
    rows: list[tuple[str, str, Callable[[PairsRound], float], Callable[[PairsRound], float]]] = [
        ("pairs per second", "{:,.0f}", lambda r: r.pairs / r.wall, lambda r: r.pairs / r.wall),
        ("pairs per second of CPU time", "{:,.0f}", lambda r: r.pairs / r.cpu, lambda r: r.pairs / r.cpu),
        (
            "the same, with tokenizing for one epoch", "{:,.0f}",
            lambda r: r.pairs / (r.cpu + tokenizing * r.pairs), lambda r: r.pairs / r.cpu,
        ),
        ("texts encoded per pair", "{:.2f}", lambda r: r.texts / r.pairs, lambda r: r.texts / r.pairs),
        ("tokens encoded per pair, padding included", "{:.1f}", _tokens_per_pair, _tokens_per_pair),
        ("tokens encoded per second of CPU time", "{:,.0f}", _tokens_per_second, _tokens_per_second),
    ]  # fmt: skip
    lines = [f"| | {' | '.join(rounds)} | ratio |", "|---|---:|---:|---:|"]
    for title, form, of_ours, of_theirs in rows:
        mine, others = [of_ours(one) for one in ours], [of_theirs(one) for one in theirs]
        ratios = [a / b for a, b in zip(mine, others, strict=True)]
        lines.append(f"| {title} | {_spread(mine, form)} | {_spread(others, form)} | {_spread(ratios, '{:.2f}')} |")
    return lines


def notes(rounds: Rounds, cost: TokenizationCost) -> list[str]:
    """Explain the comparison, and how much of the ratio comes from fewer tokens."""
    ours, theirs = rounds.values()
    less = statistics.median(b.tokens / a.tokens for a, b in zip(ours, theirs, strict=True))
    fast = statistics.median(_tokens_per_second(a) / _tokens_per_second(b) for a, b in zip(ours, theirs, strict=True))
    return [
        f"A pair has {cost.tokens_per_pair:.1f} tokens. Diptych encodes the distinct texts of a step, grouped by "
        "length, with little padding. sentence-transformers encodes both texts of every pair, and pads queries and "
        f"positives to the longest text of the batch. So it encodes {less:.2f} times as many tokens per pair, and "
        f"Diptych encodes {fast:.2f} times as many tokens per second of CPU time; the ratio is the product. "
        "sentence-transformers has no option that groups pairs by length. It avoids padding only with "
        "flash attention, which needs a GPU.",
        "",
        "sentence-transformers tokenizes in each step. Diptych tokenizes once per run, which takes "
        f"{1e6 * cost.seconds_per_pair:.0f} µs of CPU time per pair; one row of the table includes it. All other "
        "settings are defaults: Diptych's loss, heads and TensorBoard events; MultipleNegativesRankingLoss and fused "
        "AdamW of sentence-transformers, which logs, saves and evaluates nothing.",
    ]


def _tokens_per_pair(result: PairsRound) -> float:
    return result.tokens / result.pairs


def _tokens_per_second(result: PairsRound) -> float:
    return result.tokens / result.cpu


def _spread(values: Sequence[float], form: str) -> str:
    """Format the median, and the range if it is visible."""
    middle, low, high = (form.format(of(values)) for of in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def _command(options: argparse.Namespace) -> str:
    words = ["python", "benchmarks/pairs_per_second.py", options.dataset.name, "--model", Path(options.model).name]
    words += ["--environments", "FOLDER", "--batch", str(options.batch), "--max-tokens", str(options.max_tokens)]
    words += ["--steps", str(options.steps), "--rounds", str(options.rounds), "--threads", str(options.threads)]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
