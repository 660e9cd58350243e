"""Compare two estimates of examination probabilities on simulated logs with known truth.

    python -m benchmarks.click_logs.examination [--seeds 6]

"Poisson" is training/prepare/clicks/examination.py; "EM" is the algorithm of Chuklin, Markov and de Rijke (Click Models
for Web Search, 2015, chapter 4), for the same model with binomial clicks. Relevant pairs are shown at higher positions.
The error is the root mean square of log(estimate / truth), over positions and seeds.

Suffixes: N cells (a pair at a position), P pairs, K positions.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.running import count
from training.prepare.clicks.examination import estimate_examination

FloatArray = NDArray[np.float64]
Cells = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # pair, position, clicks, impressions
TRUTH_K = np.arange(1, 9) ** -0.8
LOGS = (  # pairs, impressions per pair, Beta distribution of the relevance
    (2_000, 1_000, (1, 9)), (5_000, 20, (1, 9)), (20_000, 4, (1, 9)), (20_000, 4, (1, 1)), (5_000, 100, (1, 99)),
)  # fmt: skip
EM_STEPS, EM_TOLERANCE = 5_000, 1e-7


def simulated(pairs: int, impressions: int, relevance: tuple[float, float], seed: int) -> Cells:
    """Return the cells of a log: each pair is shown near the position that its relevance earns."""
    random = np.random.default_rng(seed)
    relevance_P = random.beta(*relevance, pairs)
    noisy_P = relevance_P + random.normal(0, 0.1, pairs)
    usual_P = np.argsort(np.argsort(-noisy_P)) * len(TRUTH_K) // pairs
    share_PK = np.exp(-np.abs(np.arange(len(TRUTH_K)) - usual_P[:, None]) / 2)
    shown_PK = random.multinomial(random.poisson(impressions, pairs), share_PK / share_PK.sum(1, keepdims=True))
    clicks_PK = random.binomial(shown_PK, TRUTH_K * relevance_P[:, None])
    pair_N, place_N = np.nonzero(shown_PK)
    return pair_N, place_N + 1, clicks_PK[pair_N, place_N], shown_PK[pair_N, place_N]


def expectation_maximisation(
    pair_N: NDArray[Any], position_N: NDArray[Any], clicks_N: NDArray[Any], impressions_N: NDArray[Any]
) -> FloatArray:
    """Return examination probabilities relative to position 1, from the cells that have an influence on them."""
    useful_P = (np.bincount(pair_N) > 1) & (np.bincount(pair_N, clicks_N) > 0)
    chosen_N = useful_P[pair_N]
    pair, place = np.unique(pair_N[chosen_N], return_inverse=True)[1], position_N[chosen_N] - 1
    clicks, shown = clicks_N[chosen_N], impressions_N[chosen_N]
    examination_K = np.full(len(TRUTH_K), 0.5)
    relevance_P = np.minimum(np.bincount(pair, clicks) / np.bincount(pair, 0.5 * shown), 0.99)
    for _ in range(EM_STEPS):
        examined_N, relevant_N = examination_K[place], relevance_P[pair]
        missed_N = (shown - clicks) / np.maximum(1 - examined_N * relevant_N, 1e-12)
        next_K = np.bincount(place, clicks + missed_N * examined_N * (1 - relevant_N)) / np.bincount(place, shown)
        relevance_P = np.bincount(pair, clicks + missed_N * relevant_N * (1 - examined_N)) / np.bincount(pair, shown)
        change = np.abs(np.log(next_K / next_K[0] * examination_K[0] / examination_K)).max()
        examination_K = next_K
        if change < EM_TOLERANCE:
            break
    return np.asarray(examination_K / examination_K[0])


def error_and_seconds(estimate: Callable[..., FloatArray], logs: list[Cells]) -> tuple[float, float]:
    """Return the error over all logs, and the mean CPU seconds per log."""
    begin = time.process_time()
    estimates = [estimate(*log) for log in logs]
    seconds = (time.process_time() - begin) / len(logs)
    return float(np.sqrt(np.mean([np.log(one / TRUTH_K) ** 2 for one in estimates]))), seconds


def main() -> None:
    """Print a table of both estimates."""
    parser = argparse.ArgumentParser(description="Estimates of examination probabilities.")
    parser.add_argument("--seeds", type=count, default=6)
    seeds = parser.parse_args().seeds
    print("| pairs | impressions | mean relevance | error, Poisson | error, EM | seconds, Poisson | seconds, EM |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for pairs, impressions, (clicked, not_clicked) in LOGS:
        logs = [simulated(pairs, impressions, (clicked, not_clicked), seed) for seed in range(seeds)]
        error, seconds = error_and_seconds(estimate_examination, logs)
        em_error, em_seconds = error_and_seconds(expectation_maximisation, logs)
        print(
            f"| {pairs:,} | {impressions:,} | {clicked / (clicked + not_clicked):.2f} | {error:.3f} | {em_error:.3f} "
            f"| {seconds:.3f} | {em_seconds:.2f} |"
        )


if __name__ == "__main__":
    main()
