"""What can be measured: the peers with their settings, and our recipes; and how one is run, once, in its own process.

A system's folder holds what its run left: rankings.json and cost.json from the process, then run.json, which says what
was run. A folder whose run.json says the same is not run again.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """A system of somebody else's: its title in the table, its module here, its environment, its settings."""

    name: str
    title: str
    module: str
    environment: str
    settings: dict[str, Any] = field(default_factory=dict)


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
    )
}


@dataclass(frozen=True)
class RecipeRun:
    """One recipe with overrides and one seed; written NAME[:KEY=VALUE…]. `also` are overrides outside of its title."""

    spec: str
    seed: int
    also: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """A shipped recipe's name, or a file."""
        return self.spec.split(":")[0]

    @property
    def overrides(self) -> list[str]:
        """KEY=VALUE, the seed last."""
        return [*self.spec.split(":")[1:], *self.also, f"seed={self.seed}"]

    @property
    def title(self) -> str:
        """How the table calls it."""
        return " ".join([Path(self.recipe).stem, *self.spec.split(":")[1:]])

    @property
    def folder(self) -> str:
        """A name that a file system takes."""
        return "".join(c if c.isalnum() or c in "._-=" else "_" for c in f"{self.title}-seed{self.seed}")

    def check(self) -> None:
        """Raise RecipeError when there is no such recipe or an override does not go with it."""
        if any(override.startswith("seed=") for override in self.overrides[:-1]):
            raise RecipeError(f"recipe '{self.spec}' sets the seed, which --seeds does. Leave it out.")
        load_recipe(self.recipe, self.overrides)


@dataclass(frozen=True)
class Ran:
    """What a run left: rankings by head as lists of label rows (a peer has `unified` alone), and what it cost."""

    title: str
    seed: int | None
    rankings: dict[str, list[list[int]]]
    cost: dict[str, Any]


def run_peer(peer: Peer, task: Path, fingerprint: str, folder: Path, environments: Path, threads: int) -> Ran:
    """Run a peer on the task unless `folder` holds that very run; raises DiptychError when it fails."""
    environment = ENVIRONMENTS[peer.environment]
    same = {
        "peer": peer.name, "settings": peer.settings, "packages": [*environment.packages, *environment.alone],
        "dataset_fingerprint": fingerprint,
    }  # fmt: skip
    if not _is_there(folder, same):
        python = python_of(environment, environments)
        module, settings = f"benchmarks.peers.{peer.module}", json.dumps(peer.settings)
        command = [str(python), "-m", module, str(task), str(folder), settings, str(threads)]
        _run(command, peer.title, folder, threads, quiet=True)
        _record(folder, same)
    return _ran(peer.title, None, folder)


def run_recipe(run: RecipeRun, dataset: Path, fingerprint: str, folder: Path, threads: int) -> Ran:
    """Train and ask one recipe and seed unless `folder` holds that very run; an unfinished one is gone on with."""
    recipe = load_recipe(run.recipe, run.overrides).model_dump(mode="json")
    same = {"recipe": recipe, "dataset_fingerprint": fingerprint, "code": code_hash()}
    if not _is_there(folder, same):
        if (folder / "run.json").is_file():
            raise DiptychError(
                f"{folder} holds a run of other data, recipe or code. Remove it, or give another --out, to run it anew."
            )
        module = "benchmarks.measuring.recipe_process"
        command = [sys.executable, "-m", module, str(dataset), str(folder), run.recipe, *run.overrides]
        _run(command, f"{run.title}, seed {run.seed}", folder, threads, quiet=False)
        _record(folder, same)
    return _ran(run.title, run.seed, folder)


def code_hash() -> str:
    """What decides a run beside recipe and data: one hash over the code that learns."""
    digest = hashlib.sha256()
    for path in sorted(Path(training.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(command: Sequence[str], title: str, folder: Path, threads: int, *, quiet: bool) -> None:
    """Run to the end; a quiet one writes to log.txt, since peers draw bars that nobody can turn off.

    The log of what ended well goes: those bars alone are megabytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.txt"
    variables = {name: str(threads) for name in THREAD_VARIABLES} | {"PYTHONPATH": str(ROOT)}
    with path.open("w", encoding="utf-8") as log:
        errors = subprocess.STDOUT if quiet else None
        with subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=errors) as process:
            ended = _end_of(process)
    if ended:
        why = f"{path} says why" if quiet else "the lines above say why"
        raise DiptychError(
            f"{title} ended with code {ended}; {why}. The same command tries again; remove {folder} to begin anew."
        )
    path.unlink()


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """The exit code; a process that Ctrl-C reached as well is left the time to save its state."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        process.kill()  # has no effect on one that has ended


def _is_there(folder: Path, same: dict[str, Any]) -> bool:
    path = folder / "run.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == same


def _record(folder: Path, same: dict[str, Any]) -> None:
    """Write last, whole or not at all: a folder with run.json is one that need not be run again."""
    aside = folder / "run.json.tmp"
    aside.write_text(json.dumps(same, indent=2), encoding="utf-8")
    aside.replace(folder / "run.json")


def _ran(title: str, seed: int | None, folder: Path) -> Ran:
    rankings, cost = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("rankings", "cost"))
    return Ran(title, seed, rankings, cost)
