"""How many (query, positive) pairs per second our trainer learns, and sentence-transformers' own.

    python benchmarks/pairs_per_second.py DATASET --model FOLDER_OR_NAME --environments FOLDER [--batch 256]
        [--max-tokens 32] [--steps 20] [--rounds 3] [--threads 1] [--markdown FILE]

Both sides fine-tune the same encoder on the same pairs, drawn from DATASET's training split, on the CPU in float32, by
an in-batch softmax over as many pairs per step (theirs is MultipleNegativesRankingLoss), in turn: ours, theirs, ours, …
Each round of a side is a process of its own; loading and the first steps do not count. Theirs runs in an environment of
its own, made on first use. Nothing is written but FILE.
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
from training.data.token_cache import tokenize_in_memory
from training.model.tokenizer import make_tokenizer
from training.prepare.writing import write_dataset

WARM = 5  # steps before the measured ones
OURS, THEIRS = "Diptych, systems/dpr", "sentence-transformers"
PEER = ENVIRONMENTS["sentence-transformers"]


@dataclass(frozen=True)
class PairsRound:
    """What a side's measured steps took: seconds of the clock and of processors, texts and tokens computed."""

    pairs: int
    wall: float
    cpu: float
    texts: int
    tokens: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Texts:
    """What is learned from: how the texts look to the tokenizer, and what tokenizing beforehand takes."""

    dataset: str
    tokens_per_pair: float
    seconds_per_pair: float


Rounds = dict[str, list[PairsRound]]


def main() -> int:
    """Measure, print and write the page; an error is one sentence and code 1."""
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
    parser = argparse.ArgumentParser(description="Pairs learned a second, beside sentence-transformers.")
    parser.add_argument("dataset", type=Path, help="a prepared dataset")
    parser.add_argument("--model", required=True, help="a Hugging Face encoder: a folder, or a name")
    parser.add_argument("--environments", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--batch", type=count, default=256, help="pairs per step (default: 256)")
    parser.add_argument("--max-tokens", type=count, default=32, help="where texts are cut (default: 32)")
    parser.add_argument("--steps", type=count, default=20, help="measured steps of a round (default: 20)")
    parser.add_argument("--rounds", type=count, default=3, help="times that each side runs (default: 3)")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--markdown", type=Path, help="also write the page here")
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> list[str]:
    """Everything `main` does but printing; returns the page's lines."""
    if options.markdown and not options.markdown.resolve().parent.is_dir():
        raise BadInput(f"--markdown '{options.markdown}': there is no such folder to write to.")
    dataset = Dataset.open(options.dataset)
    task = StepTask(
        model=options.model, max_tokens=options.max_tokens, batch=options.batch, warm=WARM, steps=options.steps,
        threads=options.threads, seed=0,
    )  # fmt: skip
    with TemporaryDirectory() as name:
        folder = Path(name)
        drawn = draw(dataset, task, folder)
        texts = looked_at(dataset, drawn, task)  # refuses a model that cannot be read before the long parts
        python = python_of(PEER, options.environments.resolve())
        commands = {
            OURS: [sys.executable, "-m", "benchmarks.measuring.pairs_process"],
            THEIRS: [str(python), "-m", "benchmarks.peers.sentence_transformers_trainer"],
        }
        rounds = in_turn(commands, task, folder, options.rounds, lambda line: console.print(line, markup=False))
    return page(options, task, texts, rounds)


def draw(dataset: Dataset, task: StepTask, folder: Path) -> Split:
    """Write the pairs for both sides: training queries at random, each with one of its positives at random.

    As many as make whole batches for our trainer, which halves its queries until none is above the batch size.
    """
    train, generator = dataset.split("train"), np.random.default_rng(task.seed)
    wanted = task.batch * 2 ** (task.warm + task.steps - 1).bit_length()
    if wanted > len(train):
        raise BadInput(
            f"{task.warm + task.steps} steps of {task.batch} pairs are drawn from {wanted:,} queries, but "
            f"{dataset.folder} has {len(train):,} to train on. Give a smaller --batch or fewer --steps."
        )
    queries = train.take(generator.choice(len(train), wanted, replace=False))
    drawn = replace(queries, labels=sample_positives(queries.labels, 1, generator))
    splits: dict[SplitName, Any] = {"train": drawn.table(), "validation": dataset.split("validation").table()}
    write_dataset(folder / "dataset", dataset.label_table, splits, DatasetMeta(name=dataset.meta.name))
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for query, label in zip(drawn.texts, drawn.labels.values, strict=True):
            file.write(json.dumps({"query": query, "positive": dataset.label_texts[label]}) + "\n")
    return drawn


def looked_at(dataset: Dataset, drawn: Split, task: StepTask) -> Texts:
    """Tokenize the drawn pairs once, as our trainer does before its steps; RecipeError when the model cannot be."""
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)  # the tokenizer's own threads, read when it first starts them
    tokenizer = make_tokenizer(recipe_of(task), [])
    texts = [*drawn.texts, *(dataset.label_texts[label] for label in drawn.labels.values)]
    started = time.process_time()
    tokens = tokenize_in_memory(texts, tokenizer)
    seconds = time.process_time() - started
    return Texts(dataset.meta.name, len(tokens.ids.values) / len(drawn), seconds / len(drawn))


def in_turn(
    commands: Mapping[str, Sequence[str]], task: StepTask, folder: Path, rounds: int, told: Callable[[str], object]
) -> Rounds:
    """Every side once, then every side again, …; each round has a seed of its own, the same for all sides."""
    found: Rounds = {side: [] for side in commands}
    for seed in range(rounds):
        replace(task, seed=seed).write(folder)
        for side, command in commands.items():
            taken = run(side, command, folder)
            found[side].append(taken)
            told(f"round {seed + 1} of {rounds}: {taken.pairs / taken.wall:,.0f} pairs per second, {side}")
    return found


def run(side: str, command: Sequence[str], folder: Path) -> PairsRound:
    """The task in `folder`, in a process of its own; DiptychError with its last line when it fails."""
    task, out = StepTask.read(folder), folder / "round.json"
    names = (*THREAD_VARIABLES, "RAYON_NUM_THREADS")
    variables = {name: str(task.threads) for name in names} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, str(folder), str(out)], env=os.environ | variables, check=False, capture_output=True, text=True
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"it ended with code {ended.returncode} and said nothing"]
        raise DiptychError(f"{side} could not be measured: {said[-1].removeprefix('error: ')}")
    taken = PairsRound(pairs=task.batch * task.steps, **json.loads(out.read_text(encoding="utf-8")))
    out.unlink()
    return taken


# ---- the page


def page(options: argparse.Namespace, task: StepTask, texts: Texts, rounds: Rounds) -> list[str]:
    """The table, how to read it, and what made it."""
    ours, theirs = rounds.values()
    versions = theirs[0].versions
    return [
        f"# {texts.dataset}: pairs learned a second, beside sentence-transformers",
        "",
        f"`{_command(options)}`",
        "",
        f"{Path(options.model).name} fine-tuned whole on the CPU, float32, {task.threads} "
        f"thread{'s' if task.threads > 1 else ''}, {task.batch} pairs per step, texts cut at {task.max_tokens} tokens. "
        f"Median (least–greatest) of {len(ours)} round{'s' if len(ours) > 1 else ''} of {task.steps} steps, the sides "
        f"in turn, each round a process of its own; loading and the first {task.warm} steps do not count. The ratio is "
        "taken round by round. Where other work shares the machine, processor time is the steadier figure.",
        "",
        *table(rounds, texts),
        "",
        *notes(rounds, texts),
        "",
        f"{', '.join(f'{name} {of}' for name, of in versions.items())}; ours with "
        f"{', '.join(f'{name} {of}' for name, of in ours[0].versions.items())}; Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} processors.",
    ]


def table(rounds: Rounds, texts: Texts) -> list[str]:
    """A row a figure, a column a side, and what ours is of theirs."""
    ours, theirs = rounds.values()
    once = texts.seconds_per_pair
    rows: list[tuple[str, str, Callable[[PairsRound], float], Callable[[PairsRound], float]]] = [
        ("pairs per second", "{:,.0f}", lambda r: r.pairs / r.wall, lambda r: r.pairs / r.wall),
        ("pairs per second of CPU time", "{:,.0f}", lambda r: r.pairs / r.cpu, lambda r: r.pairs / r.cpu),
        (
            "the same, our tokenizing counted as if for one epoch", "{:,.0f}",
            lambda r: r.pairs / (r.cpu + once * r.pairs), lambda r: r.pairs / r.cpu,
        ),
        ("texts computed a pair", "{:.2f}", lambda r: r.texts / r.pairs, lambda r: r.texts / r.pairs),
        ("tokens computed per pair, padding included", "{:.1f}", _tokens_per_pair, _tokens_per_pair),
        ("tokens computed a second of processor time", "{:,.0f}", _tokens_a_second, _tokens_a_second),
    ]  # fmt: skip
    lines = [f"| | {' | '.join(rounds)} | ratio |", "|---|---:|---:|---:|"]
    for title, form, of_ours, of_theirs in rows:
        mine, others = [of_ours(one) for one in ours], [of_theirs(one) for one in theirs]
        ratios = [a / b for a, b in zip(mine, others, strict=True)]
        lines.append(f"| {title} | {_spread(mine, form)} | {_spread(others, form)} | {_spread(ratios, '{:.2f}')} |")
    return lines


def notes(rounds: Rounds, texts: Texts) -> list[str]:
    """What is compared and what is not, and which part of the ratio is less work."""
    ours, theirs = rounds.values()
    less = statistics.median(b.tokens / a.tokens for a, b in zip(ours, theirs, strict=True))
    fast = statistics.median(_tokens_a_second(a) / _tokens_a_second(b) for a, b in zip(ours, theirs, strict=True))
    return [
        f"A pair's two texts have {texts.tokens_per_pair:.1f} tokens. Ours computes a step's distinct texts, those of "
        "like length together, which leaves less padding; theirs computes every pair's two texts, queries and "
        f"positives each padded to the longest of the batch. So theirs computes {less:.2f} times our tokens for as "
        f"many pairs, and ours {fast:.2f} times theirs in a second of processor time; the ratio is the product. "
        "sentence-transformers has no option that groups pairs by length, and leaves padding out with flash attention "
        "alone, which needs a GPU.",
        "",
        "Theirs tokenizes within each step and ours reads tokens that were made once beforehand, which takes "
        f"{1e6 * texts.seconds_per_pair:.0f} µs of processor time a pair, once a run; a row of the table adds it. "
        "Both have everything else as they come: our loss, heads and events for TensorBoard, their "
        "MultipleNegativesRankingLoss and fused AdamW; theirs logs, saves and evaluates nothing.",
    ]


def _tokens_per_pair(taken: PairsRound) -> float:
    return taken.tokens / taken.pairs


def _tokens_a_second(taken: PairsRound) -> float:
    return taken.tokens / taken.cpu


def _spread(figures: Sequence[float], form: str) -> str:
    """Median, and the range where it shows."""
    middle, low, high = (form.format(of(figures)) for of in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def _command(options: argparse.Namespace) -> str:
    words = ["python", "benchmarks/pairs_per_second.py", options.dataset.name, "--model", Path(options.model).name]
    words += ["--environments", "FOLDER", "--batch", str(options.batch), "--max-tokens", str(options.max_tokens)]
    words += ["--steps", str(options.steps), "--rounds", str(options.rounds), "--threads", str(options.threads)]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
