"""What the papers found, as comparisons of two systems that this framework runs, and what we find.

A claim says which of two systems is ahead on which metric; ours is the difference over the test queries, paired, with
its interval. Seeds are averaged query by query before queries are resampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.measuring.scoring import Judge, without_excluded
from benchmarks.measuring.systems import Ran
from retrieval import metrics
from retrieval.metrics import Ratio
from training.evaluation.significance import Bootstrap, Estimate

UNIFIED = "systems/unidec_ds_dsbce"
PICK_ONE = "loss.dual_encoder.positives=one:loss.classifier.positives=one"
ONE_WAY = "loss.dual_encoder.query_to_label=1:loss.classifier.query_to_label=1"
GANDALF = "batching.label_queries.share=1:batching.label_queries.targets=gandalf"

POOLED, FULL = "DePSL, pool ≤ L/30", "DEXML-full"


def systems(n_labels: int) -> dict[str, str]:
    """Every system that is run, by the name it has in the tables: a recipe, with overrides after colons."""
    return {
        "UniDEC DS / DS+BCE": UNIFIED,
        "UniDEC DS / DS": "systems/unidec_ds_ds",
        "UniDEC DS / BCE": "systems/unidec_ds_bce",
        "UniDEC SupCon / SupCon": "systems/unidec_supcon_supcon",
        "UniDEC SupCon / SupCon+BCE": "systems/unidec_supcon_supconbce",
        "without mined negatives": f"{UNIFIED}:batching.hard_negatives=0",
        "query→label alone": f"{UNIFIED}:{ONE_WAY}",
        "POL instead of PSL": f"{UNIFIED}:{PICK_ONE}",
        "random batches": f"{UNIFIED}:batching.clustered=false",
        "with Gandalf": f"{UNIFIED}:{GANDALF}",
        "DePSL": "systems/depsl",
        "DPR": "systems/dpr",
        "ANCE": "systems/ance",
        "NGAME": "systems/ngame",
        "DEXML": "systems/dexml",
        POOLED: f"systems/depsl:loss.dual_encoder.query_to_label=1:batching.pool_size={max(1, n_labels // 30)}",
        FULL: "systems/dexml_full",
        "Renee": "systems/renee",
    }


WARM = {"Renee": "NGAME"}  # the system whose encoder another one begins with


@dataclass(frozen=True)
class Claim:
    """`first`, (system, head), is ahead of `second` on the metrics in `ahead` and behind it on those in `behind`."""

    text: str
    theirs: str
    first: tuple[str, str]
    second: tuple[str, str]
    ahead: tuple[str, ...]
    behind: tuple[str, ...] = ()


def _of(name: str) -> tuple[str, str]:
    return name, "unified"


BASE = "UniDEC DS / DS+BCE"
CLAIMS = (
    Claim("Concatenation is better than the dual encoder alone", "P@k, three of four sets",
          _of(BASE), (BASE, "dual_encoder"), ("P@1", "P@5")),
    Claim("Concatenation is better than the classifier alone", "P@k, three of four sets",
          _of(BASE), (BASE, "classifier"), ("P@1", "P@5")),
    Claim("PSL is better than POL", "P and PSP up", _of(BASE), _of("POL instead of PSL"), ("P@1", "P@5", "PSP@5")),
    Claim("Mined negatives raise P and lower PSP@1", "P up, PSP@1 down",
          _of(BASE), _of("without mined negatives"), ("P@1", "P@5"), ("PSP@1",)),
    Claim("Both directions of the loss trade P for PSP on short text", "P down, PSP up",
          _of(BASE), _of("query→label alone"), ("PSP@1", "PSP@5"), ("P@1", "P@5")),
    Claim("Decoupled softmax is better than SupCon", "P@1 up", _of(BASE), _of("UniDEC SupCon / SupCon+BCE"), ("P@1",)),
    Claim("Decoupled softmax is better than SupCon, without BCE", "P@1 up",
          _of("UniDEC DS / DS"), _of("UniDEC SupCon / SupCon"), ("P@1",)),
    Claim("BCE beside decoupled softmax raises P and lowers PSP", "P up, PSP down",
          _of(BASE), _of("UniDEC DS / DS"), ("P@1", "P@5"), ("PSP@1", "PSP@5")),
    Claim("BCE beside SupCon raises P and lowers PSP", "P up, PSP down",
          _of("UniDEC SupCon / SupCon+BCE"), _of("UniDEC SupCon / SupCon"), ("P@1", "P@5"), ("PSP@1", "PSP@5")),
    Claim("Gandalf raises tail metrics", "PSP up", _of("with Gandalf"), _of(BASE), ("PSP@1", "PSP@5")),
)  # fmt: skip


@dataclass(frozen=True)
class ClaimResult:
    """Our difference on one metric of a claim, in points, and whether it has the sign that the claim gives it."""

    metric: str
    expected: str
    difference: Estimate
    verdict: str


def findings(claim: Claim, runs: Mapping[str, Sequence[Ran]], judge: Judge) -> list[ClaimResult]:
    """A claim metric by metric; `runs` are each system's runs by its name, one a seed."""
    wanted = {**dict.fromkeys(claim.ahead, "up"), **dict.fromkeys(claim.behind, "down")}
    sides = {side: ratios(runs[name], head, judge) for side, (name, head) in
             (("first", claim.first), ("second", claim.second))}  # fmt: skip
    drawn = Bootstrap({(side, metric): of[metric] for side, of in sides.items() for metric in wanted})
    found = []
    for metric, expected in wanted.items():
        difference = drawn.difference(("first", metric), ("second", metric))
        found.append(ClaimResult(metric, expected, difference, verdict(difference, expected)))
    return found


def ratios(runs: Sequence[Ran], head: str, judge: Judge) -> dict[str, Ratio]:
    """Each metric's ratio of sums over the test queries, its gains averaged over the seeds."""
    each = [
        metrics.ratios(
            without_excluded(run.rankings[head], judge.asked.exclude), judge.asked.labels, judge.inverse_propensity_L,
            metrics.KS,
        )
        for run in runs
    ]  # fmt: skip
    return {
        metric: Ratio(np.mean([of[metric].gain_Q for of in each], axis=0), each[0][metric].base_Q) for metric in each[0]
    }


def verdict(difference: Estimate, expected: str) -> str:
    """`holds` or `does not hold` where the interval leaves 0 out, else `not decided`."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "not decided"
    return "holds" if (difference.low > 0) == (expected == "up") else "does not hold"
