"""Python environments of the peers, made with venv and pip on first use.

Peers have separate environments because some need other versions; libpecos needs an older numpy and scipy.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import DiptychError

SCIKIT_LEARN = "scikit-learn==1.9.1"
NOTE = "installed.json"


@dataclass(frozen=True)
class Environment:
    """Packages that pip installs; those in `without_dependencies` are installed without their dependencies."""

    name: str
    packages: tuple[str, ...]
    without_dependencies: tuple[str, ...] = ()


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("scikit-learn", (SCIKIT_LEARN, "numpy==2.4.6", "scipy==1.17.1")),
        Environment("omikuji", ("omikuji==0.5.2", SCIKIT_LEARN, "numpy==2.4.6", "scipy==1.17.1")),
        # libpecos also depends on torch and transformers, six gigabytes that XR-Linear never imports.
        Environment(
            "pecos", (SCIKIT_LEARN, "numpy==1.26.4", "scipy==1.13.1"), without_dependencies=("libpecos==1.2.8",)
        ),
        # fasttext-wheel is fastText's own code with wheels; it needs numpy < 2.
        Environment("fasttext", ("fasttext-wheel==0.9.2", SCIKIT_LEARN, "numpy==1.26.4", "scipy==1.17.1")),
        # transformers as libpecos 1.2.8 imports it: later versions lack the names.
        Environment(
            "pecos-transformer",
            (
                SCIKIT_LEARN,
                "numpy==1.26.4",
                "scipy==1.13.1",
                "sentencepiece==0.2.0",
                "torch==2.13.0",
                "transformers==4.46.3",
            ),
            without_dependencies=("libpecos==1.2.8",),
        ),
        # torch, transformers and tokenizers as in constraints.txt, so that only the trainers differ.
        Environment(
            "sentence-transformers",
            (
                "sentence-transformers==6.2.0",
                "accelerate==1.15.0",
                "datasets==5.2.0",
                "numpy==2.4.6",
                "tokenizers==0.23.3",
                "torch==2.13.0",
                "transformers==5.23.0",
            ),
        ),
    )
}


def python_of(environment: Environment, folder: Path) -> Path:
    """Return the interpreter of the environment in `folder`; make it first, or again if its packages have changed.

    Raises DiptychError if pip cannot install it; folder/NAME.log has the cause.
    """
    home = folder / environment.name
    python = home / "bin" / "python"
    contents = json.dumps([environment.packages, environment.without_dependencies, list(sys.version_info[:2])])
    note = home / NOTE
    if note.is_file() and note.read_text(encoding="utf-8") == contents:
        return python
    if home.exists() and not (home / "pyvenv.cfg").is_file():
        raise DiptychError(f"{home} exists and is not a Python environment. Give --environments another folder.")
    shutil.rmtree(home, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    with (folder / f"{environment.name}.log").open("w", encoding="utf-8") as log:
        for command in (
            [sys.executable, "-m", "venv", str(home)],
            [*install, *environment.packages],
            *([[*install, "--no-deps", *environment.without_dependencies]] if environment.without_dependencies else []),
        ):
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
                raise DiptychError(
                    f"the environment of {environment.name} could not be made: {' '.join(command)} failed, see "
                    f"{log.name}. Exclude its peers with --peers, or install the missing packages there by hand."
                )
    note.write_text(contents, encoding="utf-8")
    return python
