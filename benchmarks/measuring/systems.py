"""Systems to compare: peers with their settings, and recipes. Each run has its own process and its own folder.

The process writes rankings.json and cost.json; run.json then describes the run. If run.json describes the same run, it
is not repeated.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import training
from benchmarks.peers.environments import ENVIRONMENTS, python_of
from retrieval.errors import DiptychError, RecipeError
from training.recipe.loading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Peer:
    """A system of another project: title in the table, module in benchmarks.peers, environment and settings.

    A peer that `needs_model` fine-tunes a pretrained encoder; its folder is the setting `model`.
    """

    name: str
    title: str
    module: str
    environment: str
    settings: dict[str, Any] = field(default_factory=dict)
    needs_model: bool = False


PEERS = {
    peer.name: peer
    for peer in (
        Peer("knn", "lexical kNN", "neighbours", "scikit-learn", {"neighbours": 50, "power": 3}),
        Peer("tfidf", "TF-IDF profiles", "profiles", "scikit-learn"),
        Peer("parabel", "omikuji Parabel ×3", "omikuji_trees", "omikuji", {"beam": 10, "n_trees": 3}),
        Peer(
            "bonsai",
            "omikuji Bonsai ×3",
            "omikuji_trees",
            "omikuji",
            {"beam": 10, "n_trees": 3, "cluster_balanced": False, "cluster_k": 100, "max_depth": 3},
        ),
        Peer("pecos", "PECOS XR-Linear", "pecos_xr_linear", "pecos", {"beam": 10}),
        Peer(
            "fasttext",
            "fastText",
            "fasttext_labels",
            "fasttext",
            {"loss": "hs", "dim": 100, "epoch": 25, "lr": 0.5, "wordNgrams": 2, "minn": 3, "maxn": 5},
        ),
        Peer(
            "xr-transformer",
            "PECOS XR-Transformer",
            "pecos_xr_transformer",
            "pecos-transformer",
            {
                "beam": 10,
                "tokens": 32,
                "matcher": {"batch_size": 32, "learning_rate": 1e-4, "num_train_epochs": 3, "batch_gen_workers": 1},
            },
            needs_model=True,
        ),
    )
}


def chosen_peers(names: Sequence[str] | None, model: Path | None) -> list[Peer]:
    """Return the peers of these names (None: all that can run); `model` is the encoder of those that need one.

    Raises DiptychError for a named peer that needs a model if none is given.
    """
    peers = []
    for peer in (PEERS[name] for name in (PEERS if names is None else names)):
        if peer.needs_model and model is None:
            if names is None:
                continue
            raise DiptychError(f"{peer.name} fine-tunes a pretrained encoder. Give its folder with --model.")
        with_model = {"model": str(model.resolve())} if peer.needs_model and model else {}
        peers.append(replace(peer, settings=peer.settings | with_model))
    return peers


@dataclass(frozen=True)
class RecipeRun:
    """One recipe and seed, with overrides as NAME[:KEY=VALUE…]; `also` has overrides that its title does not show."""

    spec: str
    seed: int
    also: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """Name of a shipped recipe, or a file."""
        return self.spec.split(":")[0]

    @property
    def overrides(self) -> list[str]:
        """Overrides as KEY=VALUE, the seed last."""
        return [*self.spec.split(":")[1:], *self.also, f"seed={self.seed}"]

    @property
    def title(self) -> str:
        """Title in the table."""
        return " ".join([Path(self.recipe).stem, *self.spec.split(":")[1:]])

    @property
    def folder(self) -> str:
        """Name of the run's folder: the title without special characters, and the seed."""
        return "".join(c if c.isalnum() or c in "._-=" else "_" for c in f"{self.title}-seed{self.seed}")

    def check(self) -> None:
        """Raise RecipeError if the recipe does not exist or an override is not valid for it."""
        if any(override.startswith("seed=") for override in self.overrides[:-1]):
            raise RecipeError(f"recipe '{self.spec}' sets the seed. Use --seeds instead.")
        load_recipe(self.recipe, self.overrides)


Rankings = dict[str, list[list[int]]]  # by head


@dataclass(frozen=True)
class RunResult:
    """Rankings of a run by head, as lists of label rows (a peer has only `unified`), and its costs.

    `seen_rankings` are of the labels with a training positive; a peer has deeper rankings instead, to be restricted.
    """

    title: str
    seed: int | None
    rankings: Rankings
    seen_rankings: Rankings
    cost: dict[str, Any]


def run_peer(peer: Peer, task: Path, fingerprint: str, folder: Path, environments: Path, threads: int) -> RunResult:
    """Run a peer on the task unless `folder` has the same run. Raises DiptychError if it fails."""
    environment = ENVIRONMENTS[peer.environment]
    run = {
        "peer": peer.name, "settings": peer.settings,
        "packages": [*environment.packages, *environment.without_dependencies],
        "dataset_fingerprint": fingerprint,
    }  # fmt: skip
    if not _has_run(folder, run):
        python = python_of(environment, environments)
        module, settings = f"benchmarks.peers.{peer.module}", json.dumps(peer.settings)
        command = [str(python), "-m", module, str(task), str(folder), settings, str(threads)]
        _run(command, peer.title, folder, threads, quiet=True)
        _record(folder, run)
    return read_result(peer.title, None, folder)


def run_recipe(run: RecipeRun, dataset: Path, fingerprint: str, folder: Path, threads: int) -> RunResult:
    """Train and rank one recipe and seed unless `folder` has the same run; an unfinished run is resumed."""
    recipe = load_recipe(run.recipe, run.overrides).model_dump(mode="json")
    description = {"recipe": recipe, "dataset_fingerprint": fingerprint, "code": code_hash()}
    if not _has_run(folder, description):
        if (folder / "run.json").is_file():
            raise DiptychError(f"{folder} has a run of other data, recipe or code. Remove it, or give another --out.")
        module = "benchmarks.measuring.recipe_process"
        command = [sys.executable, "-m", module, str(dataset), str(folder), run.recipe, *run.overrides]
        _run(command, f"{run.title}, seed {run.seed}", folder, threads, quiet=False)
        _record(folder, description)
    return read_result(run.title, run.seed, folder)


def code_hash() -> str:
    """Return a hash of the code in training/: with recipe and data, it determines a run."""
    digest = hashlib.sha256()
    for path in sorted(Path(training.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(command: Sequence[str], title: str, folder: Path, threads: int, *, quiet: bool) -> None:
    """Run to the end. `quiet` writes stderr to log.txt, because progress bars of peers cannot be turned off.

    The log of a successful run is deleted: progress bars take megabytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.txt"
    variables = {name: str(threads) for name in THREAD_VARIABLES} | {"PYTHONPATH": str(ROOT)}
    with path.open("w", encoding="utf-8") as log:
        errors = subprocess.STDOUT if quiet else None
        with subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=errors) as process:
            code = _exit_code(process)
    if code:
        cause = f"{path} has the cause" if quiet else "the cause is above"
        raise DiptychError(
            f"{title} ended with code {code}; {cause}. Rerun the same command to resume, or remove {folder} to restart."
        )
    path.unlink()


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for the exit code. After Ctrl-C, which reaches the process too, wait until it has saved its state."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        process.kill()  # no effect if it has ended


def _has_run(folder: Path, description: dict[str, Any]) -> bool:
    path = folder / "run.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == description


def _record(folder: Path, description: dict[str, Any]) -> None:
    """Write run.json atomically, as the last file of a run."""
    temporary = folder / "run.json.tmp"
    temporary.write_text(json.dumps(description, indent=2), encoding="utf-8")
    temporary.replace(folder / "run.json")


def read_result(title: str, seed: int | None, folder: Path) -> RunResult:
    """Read the result of a finished run of any recipe, data and code."""
    rankings, cost = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("rankings", "cost"))
    seen = folder / "seen_rankings.json"
    return RunResult(title, seed, rankings, json.loads(seen.read_text("utf-8")) if seen.is_file() else rankings, cost)
