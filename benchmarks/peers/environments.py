"""Each peer's own Python environment, made with venv and pip when it is first needed.

libpecos needs an older numpy and scipy than the project, so peers never share the project's environment.
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
    """What pip installs; `alone` comes without its dependencies."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("scikit-learn", (SCIKIT_LEARN, "numpy==2.4.6", "scipy==1.17.1")),
        Environment("omikuji", ("omikuji==0.5.2", SCIKIT_LEARN, "numpy==2.4.6", "scipy==1.17.1")),
        # libpecos also depends on torch and transformers, six gigabytes that XR-Linear never imports.
        Environment("pecos", (SCIKIT_LEARN, "numpy==1.26.4", "scipy==1.13.1"), alone=("libpecos==1.2.8",)),
        # torch, transformers and tokenizers as in constraints.txt: what is compared is the trainers.
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
    """The interpreter of the environment in `folder`, made or made again when it is not what is asked for.

    Raises DiptychError when pip cannot install it; folder/NAME.log then says why.
    """
    home = folder / environment.name
    python = home / "bin" / "python"
    wanted = json.dumps([environment.packages, environment.alone, list(sys.version_info[:2])])
    note = home / NOTE
    if note.is_file() and note.read_text(encoding="utf-8") == wanted:
        return python
    if home.exists() and not (home / "pyvenv.cfg").is_file():
        raise DiptychError(f"{home} exists and is no Python environment. Give --environments another folder.")
    shutil.rmtree(home, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    with (folder / f"{environment.name}.log").open("w", encoding="utf-8") as log:
        for command in (
            [sys.executable, "-m", "venv", str(home)],
            [*install, *environment.packages],
            *([[*install, "--no-deps", *environment.alone]] if environment.alone else []),
        ):
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
                raise DiptychError(
                    f"the environment of {environment.name} could not be made: {' '.join(command)} failed, see "
                    f"{log.name}. Leave its peers out with --peers, or install there by hand what is missing."
                )
    note.write_text(wanted, encoding="utf-8")
    return python
