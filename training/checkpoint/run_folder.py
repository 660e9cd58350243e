"""The folder of a run: locked for one process, and used by one run only."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from retrieval.errors import CheckpointError
from retrieval.system.atomic_files import write_text
from retrieval.system.paths import require_utf8
from training.checkpoint.schema import (
    CHECKPOINT,
    ENCODER,
    LABELS,
    RUN,
    STATE,
    TOKENIZER,
    VALIDATION,
    WEIGHTS,
    RunFacts,
)

LOCK, TENSORBOARD, TOKEN_CACHE, REPORT = ".lock", "tensorboard", "tokens", "report.html"
# Files of a run in order of removal. run.json marks the folder as a run's, so it is overwritten instead.
RUN_FILES = (CHECKPOINT, STATE, WEIGHTS, TOKENIZER, LABELS, VALIDATION, REPORT)
RUN_FOLDERS = (TOKEN_CACHE, ENCODER, TENSORBOARD)


@contextmanager
def locked_run_folder(folder: Path, run: RunFacts, restart: bool) -> Iterator[None]:
    """Create the folder of a run, or check that it belongs to the same run, and lock it for the block.

    `restart` removes the files of the run in the folder. Raises CheckpointError if the folder has files of another
    origin or another run, or if another process has locked it.
    """
    require_utf8(folder)
    path = folder / RUN
    if not path.is_file() and folder.exists() and any(item.name != LOCK for item in folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and has no training run. Give --out a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another process is training in {folder}. Wait until it ends, or give another --out."
            ) from error
        if path.is_file():
            existing = _read_run(path)
            has_weights = any((folder / name).is_file() for name in (STATE, WEIGHTS))
            if has_weights and not restart:
                _require_same_run(folder, existing, run)
            elif restart or existing != run:
                _clear(folder)
        write_text(path, run.model_dump_json(indent=2))
        yield


def _clear(folder: Path) -> None:
    """Remove the files of a run, and no others."""
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _read_run(path: Path) -> RunFacts:
    try:
        return RunFacts.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a training run of this version. Give --out a new folder.") from error


def _require_same_run(folder: Path, existing: RunFacts, run: RunFacts) -> None:
    fix = "Give another --out, or --restart to delete that run."
    if existing.dataset_fingerprint != run.dataset_fingerprint:
        before, now = existing.dataset_fingerprint[:12], run.dataset_fingerprint[:12]
        raise CheckpointError(
            f"the dataset is not the one of the run in {folder} (fingerprint {now} instead of {before}). {fix}"
        )
    if changed := existing.recipe.differences(run.recipe):
        raise CheckpointError(f"{folder} has a run with another recipe ({'; '.join(changed[:3])}). {fix}")
