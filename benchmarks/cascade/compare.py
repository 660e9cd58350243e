"""Compare three cascades with the same features of labels: a layer per level, the last layer for all, and two levels.

    python -m benchmarks.cascade.compare SOURCE… --model FOLDER --out FOLDER [--epochs N…] [--set KEY=VALUE …]

SOURCE is anything that `diptych prepare` reads, or a prepared dataset; --epochs has one value, or one per source.
Every run has its own process; those that --out already has are not repeated, and a stopped one is resumed. The page is
written after each source. The test split is read once per run, at its end, and selects nothing.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.cascade.page import CASCADE, LAST_LAYER, TWO_LEVELS, Results, introduction, section
from benchmarks.measuring.running import count, open_or_prepare, run_command
from benchmarks.measuring.systems import RecipeRun, read_result, run_recipe
from retrieval.errors import BadInput
from training.recipe.loading import load_recipe

RECIPE = "systems/cascadexml"
LABELS_PER_CLUSTER = 8  # of the last level of clusters, about; as in the recipe for keywords


def main() -> int:
    """Run the missing variants, then write the page."""
    return run_command(measure, arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CascadeXML: does each level need its own layer?")
    parser.add_argument("sources", type=Path, nargs="+", help="anything that `diptych prepare` reads, or datasets")
    parser.add_argument("--model", type=Path, required=True, help="folder of a pretrained encoder with six layers")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--epochs", type=count, nargs="+", default=[15], help="epochs: one number, or one per source")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--threads", type=count, default=1, help="threads to train with (default: 1)")
    parser.add_argument("--finished-only", action="store_true", help="train nothing; write the page of finished runs")
    parser.add_argument("--markdown", type=Path, help="the page (default: OUT/cascade.md)")
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Run the variants on each source and write the page; return its path."""
    if len(options.epochs) not in (1, len(options.sources)):
        raise BadInput(f"--epochs has {len(options.epochs)} numbers for {len(options.sources)} sources: give one each")
    epochs = options.epochs * len(options.sources) if len(options.epochs) == 1 else options.epochs
    path: Path = options.markdown or options.out / "cascade.md"
    sections: list[list[str]] = []
    for source, number in zip(options.sources, epochs, strict=True):
        dataset = open_or_prepare(source, options.out.resolve() / _name(source) / "dataset")
        results: Results = {}
        for title, overrides in variants(dataset.n_labels).items():
            run = RecipeRun(":".join([RECIPE, *overrides]), 0, (*settings(options, number),))
            folder = options.out.resolve() / _name(source) / title.replace(" ", "-")
            if options.finished_only:
                if (folder / "run.json").is_file():
                    results[title] = read_result(title, 0, folder)
                continue
            console.rule(f"{dataset.meta.name}: {title}", align="left")
            results[title] = run_recipe(run, dataset.folder.resolve(), dataset.fingerprint, folder, options.threads)
        sections.append(section(dataset, results, number))
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [*introduction(command(options), RECIPE, options.threads), *(line for of in sections for line in of)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def command(options: argparse.Namespace) -> str:
    """Return the command that repeats the runs, with files by their names."""
    sources = [source.name for source in options.sources]
    overrides = [word for override in options.overrides for word in ("--set", override)]
    words = [*sources, "--model", options.model.name, "--epochs", *map(str, options.epochs), *overrides]
    return shlex.join(["python", "-m", "benchmarks.cascade.compare", *words])


def settings(options: argparse.Namespace, epochs: int) -> list[str]:
    """Return the overrides of every run: encoder, epochs, phases that fit them, and those of the command line."""
    phases = [f"cascade.warmup_epochs={min(1.0, epochs / 4):g}", f"cascade.final_epochs={min(3.0, epochs / 2):g}"]
    every = f"validation.every_epochs={max(1, epochs // 3)}"
    model = f"encoder.model={options.model.resolve()}"
    return [model, f"optimizer.epochs={epochs}", *phases, every, *options.overrides]


def variants(n_labels: int) -> dict[str, list[str]]:
    """Return the overrides of each variant by its name.

    All score about as many labels per query. The clusters are halved until the last level has about LABELS_PER_CLUSTER
    labels per cluster.
    """
    recipe = load_recipe(RECIPE).cascade
    assert recipe is not None
    last = 1 << max(1, round(n_labels / LABELS_PER_CLUSTER).bit_length() - 1)
    clusters = f"cascade.clusters={_listed(max(1, last // 16), max(1, last // 4), last)}"
    two: dict[str, list[object]] = {
        "clusters": [last // 2], "layers": [[3, 4], [6]],
        "shortlist": [max(1, recipe.shortlist[-1] // 2)], "dropout": [recipe.dropout[0], recipe.dropout[-1]],
        "loss_weights": [1.0, recipe.loss_weights[-1]],
    }  # fmt: skip
    layers = _listed(*(list(recipe.layers[-1]) for _ in recipe.layers))
    return {
        CASCADE: [clusters],
        LAST_LAYER: [clusters, f"cascade.layers={layers}"],
        TWO_LEVELS: [f"cascade.{key}={_listed(*value)}" for key, value in two.items()],
    }


def _listed(*values: object) -> str:
    return str(list(values)).replace(" ", "")


def _name(source: Path) -> str:
    return source.name.split(".")[0]


if __name__ == "__main__":
    sys.exit(main())
