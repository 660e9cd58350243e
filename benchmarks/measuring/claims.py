"""Findings of the papers as comparisons of two systems that this framework runs.

A claim states which of two systems is better on which metric. It is checked by the paired difference over the test
queries, with an interval. Seeds are averaged per query before queries are resampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.systems import RunResult
from retrieval.metrics import Ratio
from training.evaluation.significance import Bootstrap, Estimate

# The published rate of ψ is for hundreds of thousands of steps; in a few hundred, the classifier learns nothing.
FEW_STEPS = "optimizer.classifier_lr=0.1"
UNIFIED = f"systems/unidec:{FEW_STEPS}"
PICK_ONE = "loss.dual_encoder.positives=one:loss.classifier.positives=one"
FILLED = "batching.fill_with_positives=true"
ONE_WAY = "loss.dual_encoder.query_to_label=1:loss.classifier.query_to_label=1"
GANDALF = "batching.label_queries.share=1:batching.label_queries.targets=gandalf"

POOLED, FULL = "DePSL, pool ≤ L/30", "DePSL, all labels"


def systems(n_labels: int) -> dict[str, str]:
    """Return every system by its name in the tables: a recipe, with overrides after colons."""
    return {
        "UniDEC DS / DS+BCE": UNIFIED,
        "UniDEC DS / DS": f"systems/unidec_ds_ds:{FEW_STEPS}",
        "UniDEC DS / BCE": f"systems/unidec_ds_bce:{FEW_STEPS}",
        "UniDEC SupCon / SupCon": f"systems/unidec_supcon_supcon:{FEW_STEPS}",
        "UniDEC SupCon / SupCon+BCE": f"systems/unidec_supcon_supconbce:{FEW_STEPS}",
        "without mined negatives": f"{UNIFIED}:batching.hard_negatives=0",
        # As in the thesis: other positives of the queries take the places of the mined negatives.
        "positives instead of mined negatives": f"{UNIFIED}:batching.hard_negatives=0:{FILLED}",
        "query→label only": f"{UNIFIED}:{ONE_WAY}",
        "POL instead of PSL": f"{UNIFIED}:{PICK_ONE}",
        "random batches": f"{UNIFIED}:batching.clustered=false",
        "with Gandalf": f"{UNIFIED}:{GANDALF}",
        "DePSL": "systems/depsl",
        "DePSL, query→label only": "systems/depsl:loss.dual_encoder.query_to_label=1",
        "DPR": "systems/dpr",
        "ANCE": "systems/ance",
        "NGAME": "systems/ngame",
        "SiameseXML": "systems/siamesexml",
        "DEXML": "systems/dexml",
        POOLED: f"systems/depsl:loss.dual_encoder.query_to_label=1:batching.pool_size={max(1, n_labels // 30)}",
        FULL: "systems/depsl:loss.dual_encoder.query_to_label=1:batching.pool_size=all:batching.hard_negatives=0",
        "DEXML-full": "systems/dexml_full",
        "Renee": "systems/renee",
    }


WARM = {"Renee": "NGAME"}  # system: the system whose encoder it begins with


@dataclass(frozen=True)
class Claim:
    """`first`, a (system, head), is better than `second` on the metrics `better` and worse on the metrics `worse`."""

    text: str
    published: str
    first: tuple[str, str]
    second: tuple[str, str]
    better: tuple[str, ...]
    worse: tuple[str, ...] = ()


def _model(name: str) -> tuple[str, str]:
    return name, "unified"


BASE = "UniDEC DS / DS+BCE"
CLAIMS = (
    Claim("The unified model is better than its dual encoder", "P@k, three of four sets",
          _model(BASE), (BASE, "dual_encoder"), ("P@1", "P@5")),
    Claim("The unified model is better than its classifier", "P@k, three of four sets",
          _model(BASE), (BASE, "classifier"), ("P@1", "P@5")),
    Claim("PSL is better than POL", "P and PSP up",
          _model(BASE), _model("POL instead of PSL"), ("P@1", "P@5", "PSP@5")),
    Claim("Mined negatives raise P and lower PSP@1", "P up, PSP@1 down",
          _model(BASE), _model("without mined negatives"), ("P@1", "P@5"), ("PSP@1",)),
    Claim("Mined negatives raise P and lower PSP@1, compared with other positives in pools of equal size",
          "P up, PSP@1 down",
          _model(BASE), _model("positives instead of mined negatives"), ("P@1", "P@5"), ("PSP@1",)),
    Claim("Both directions of the loss trade P for PSP on short text, dual encoder only", "P down, PSP up",
          _model("DePSL"), _model("DePSL, query→label only"), ("PSP@1", "PSP@5"), ("P@1", "P@5")),
    Claim("Both directions of the loss trade P for PSP on short text", "P down, PSP up",
          _model(BASE), _model("query→label only"), ("PSP@1", "PSP@5"), ("P@1", "P@5")),
    Claim("Decoupled softmax is better than SupCon", "P@1 up",
          _model(BASE), _model("UniDEC SupCon / SupCon+BCE"), ("P@1",)),
    Claim("Decoupled softmax is better than SupCon, without BCE", "P@1 up",
          _model("UniDEC DS / DS"), _model("UniDEC SupCon / SupCon"), ("P@1",)),
    Claim("BCE in addition to decoupled softmax raises P and lowers PSP", "P up, PSP down",
          _model(BASE), _model("UniDEC DS / DS"), ("P@1", "P@5"), ("PSP@1", "PSP@5")),
    Claim("BCE in addition to SupCon raises P and lowers PSP", "P up, PSP down",
          _model("UniDEC SupCon / SupCon+BCE"), _model("UniDEC SupCon / SupCon"), ("P@1", "P@5"), ("PSP@1", "PSP@5")),
    Claim("Gandalf raises tail metrics", "PSP up", _model("with Gandalf"), _model(BASE), ("PSP@1", "PSP@5")),
)  # fmt: skip


@dataclass(frozen=True)
class ClaimResult:
    """The measured difference on one metric of a claim, in points, and whether it has the expected sign."""

    metric: str
    expected: str
    difference: Estimate
    verdict: str


def findings(
    claim: Claim, runs: Mapping[str, Sequence[RunResult]], scorer: Scorer, *, seen: bool = False
) -> list[ClaimResult]:
    """Check a claim for each of its metrics; `runs` are the runs of each system by name, one per seed.

    `seen` measures among the labels with a training positive.
    """
    expected_signs = {**dict.fromkeys(claim.better, "up"), **dict.fromkeys(claim.worse, "down")}
    sides = {side: ratios(runs[name], head, scorer, seen=seen) for side, (name, head) in
             (("first", claim.first), ("second", claim.second))}  # fmt: skip
    bootstrap = Bootstrap({(side, metric): of[metric] for side, of in sides.items() for metric in expected_signs})
    results = []
    for metric, expected in expected_signs.items():
        difference = bootstrap.difference(("first", metric), ("second", metric))
        results.append(ClaimResult(metric, expected, difference, verdict(difference, expected)))
    return results


def ratios(runs: Sequence[RunResult], head: str, scorer: Scorer, *, seen: bool = False) -> dict[str, Ratio]:
    """Return each metric as a ratio of sums over the test queries, with gains averaged over the seeds."""
    by_run = [scorer.ratios((run.seen_rankings if seen else run.rankings)[head], seen=seen) for run in runs]
    return {
        metric: Ratio(np.mean([of[metric].gain_Q for of in by_run], axis=0), by_run[0][metric].base_Q)
        for metric in by_run[0]
    }


def verdict(difference: Estimate, expected: str) -> str:
    """Return `not decided` if the interval contains 0, else `holds` or `does not hold`."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "not decided"
    return "holds" if (difference.low > 0) == (expected == "up") else "does not hold"
