"""Plot P@1 against PSP@5 on the test split, for each objective and over its classifier weights.

    python benchmarks/dial.py FOLDER [FOLDER …] --svg FILE

Each FOLDER is the --out of a finished `benchmarks/quality.py` with the three objectives among its recipes:

    --recipe default:objective=precision default default:objective=tail

Shapes: Q queries, K ranks.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

from benchmarks.measuring.plots import STYLE
from benchmarks.measuring.recipe_process import ExactSearch
from benchmarks.measuring.systems import RecipeRun
from retrieval import metrics
from retrieval.errors import DiptychError
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.evaluation.checkpoint_evaluation import selected_mix

OBJECTIVES = {"precision": "#b91c1c", "balanced": "#c2410c", "tail": "#0f766e"}
NAME_OFFSETS = {"precision": (7, -12), "balanced": (7, 5), "tail": (7, 5)}  # the first two are often close
WEIGHTS = tuple(step / 10 for step in range(11))
Points = dict[float, tuple[float, float]]


def main() -> int:
    """Draw all folders. Prints an error and returns 1 if a run is missing."""
    parser = argparse.ArgumentParser(description="P@1 against PSP@5 by objective and weight.")
    parser.add_argument("folders", type=Path, nargs="+", help="--out of benchmarks/quality.py, one per dataset")
    parser.add_argument("--svg", type=Path, required=True)
    options = parser.parse_args()
    try:
        with plt.rc_context(STYLE):
            figure, panels = plt.subplots(
                1, len(options.folders), squeeze=False, figsize=(4.2 * len(options.folders), 3.8)
            )
            for folder, panel in zip(options.folders, panels[0], strict=True):
                draw(panel, folder)
            options.svg.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(options.svg, metadata={"Date": None})
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def draw(panel: Any, folder: Path) -> None:
    """Draw one dataset: a curve per objective, with a ring at the weight selected on validation."""
    dataset = Dataset.open(folder / "dataset")
    for objective, colour in OBJECTIVES.items():
        spec = "default" if objective == "balanced" else f"default:objective={objective}"
        points, selected = curve(folder / RecipeRun(spec, 0).folder / "checkpoint", dataset)
        panel.plot(*zip(*points.values(), strict=True), color=colour, linewidth=1.2, marker=".", markersize=3)
        panel.plot(*points[selected], "o", color=colour, markersize=8, fillstyle="none")
        panel.annotate(objective, points[selected], NAME_OFFSETS[objective], textcoords="offset points", color=colour)
    panel.set_title(f"{dataset.meta.name}: P@1 by PSP@5, percent; w from 0 to 1")
    panel.set_xlabel("PSP@5")
    panel.set_ylabel("P@1")


def curve(checkpoint: Path, dataset: Dataset) -> tuple[Points, float]:
    """Return (PSP@5, P@1) of the test split by classifier weight, and the weight selected on validation."""
    opened = load_checkpoint(checkpoint)
    search = ExactSearch(opened, dataset)
    mixes = {w: selected_mix(opened)._replace(weight=w) for w in sorted({*WEIGHTS, opened.classifier_weight})}
    rankings = search.rank(search.queries.texts, list(mixes.values()), search.queries.exclude)
    points = {}
    for weight, mix in mixes.items():
        values = metrics.evaluate(rankings[mix], search.queries.labels, opened.inverse_propensity_L, (1, 5))
        points[weight] = (values["PSP@5"], values["P@1"])
    return points, opened.classifier_weight


if __name__ == "__main__":
    sys.exit(main())
