"""Contract 2, the checkpoint: a folder that export needs nothing beside, and that training can go on from exactly.

    checkpoint.json            recipe, dataset fingerprint, weight between the halves, figures, history
    model.safetensors          the best epoch's weights, which labels were trained on how many positives, propensities;
                               header: the record of that epoch
    tokenizer.json             truncation inside
    encoder/config.json        a transformer's shape
    labels.parquet             id, text, attributes
    validation.parquet         up to 2,000 validation queries with truth and excludes
    state.safetensors          state to resume from: weights, optimiser, clusters, hard negatives, cursor; see
                               training/checkpoint/state.py

safetensors and JSON only, no pickle. Every file is written aside and renamed, so each is whole or absent; the state is
one file, so what it holds belongs together.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from retrieval.errors import CheckpointError, one_line
from retrieval.system import stopping
from training.data.dataset import Split
from training.evaluation.imputation import KEPT
from training.evaluation.scoring import Blend, Figures, learned
from training.model.tokens import special_ids
from training.model.unified import TransformerEncoder, UnifiedModel, empty_model
from training.monitoring.epoch_stats import Tally
from training.recipe.schema import Recipe

FORMAT_VERSION: Literal[2] = 2
OPTIMIZER_STATE = (".second_moment", ".steps")  # of row tables: part of the state, not of the model


class Record(BaseModel):
    """One validated epoch: what it cost, what its steps added up to, and what it reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float
    seconds: float
    score: float
    classifier_weight: float
    popularity: float = 0.0
    kept: float = KEPT[0]
    figures: Figures
    tally: Tally = Tally()


class Cursor(BaseModel):
    """Where a run stands: the next step of which epoch, how many were taken in all, and the best epoch so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = 0
    step: int = 0
    taken: int = 0
    tally: Tally = Tally()
    seconds: float = 0.0
    best: Record | None = None
    history: tuple[Record, ...] = ()


class CheckpointFacts(BaseModel):
    """checkpoint.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    recipe: Recipe
    dataset_name: str
    dataset_fingerprint: str
    n_labels: int
    train_queries: int = 0
    vocabulary: int
    device: str = ""
    versions: dict[str, str] = {}
    finished: str = ""
    classifier_weight: float
    best: Record
    history: tuple[Record, ...]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: the best epoch's model on the CPU in evaluation mode, and what export needs beside it.

    `positives_L` counts each label's training positives; `trained_L` are those whose classifier row has learned.
    """

    folder: Path
    facts: CheckpointFacts
    model: UnifiedModel
    labels: pa.Table
    validation: Split
    trained_L: NDArray[np.bool_]
    positives_L: NDArray[np.int64]
    inverse_propensity_L: NDArray[np.float64]
    tokenizer: Tokenizer

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained with."""
        return self.facts.recipe

    @property
    def encoder_kind(self) -> str:
        """`static` or `transformer`."""
        return self.recipe.encoder.kind

    @property
    def tokenizer_path(self) -> Path:
        """tokenizer.json, with truncation inside and padding off."""
        return self.folder / "tokenizer.json"

    @property
    def pad_id(self) -> int:
        """Token id that fills a batch."""
        return special_ids(self.tokenizer)[0]

    @property
    def max_tokens(self) -> int:
        """Tokens after which a text is cut."""
        return self.recipe.encoder.max_tokens

    @property
    def blend(self) -> Blend:
        """How the halves are mixed: w and the worth of popularity, chosen on validation."""
        return Blend(self.facts.classifier_weight, self.facts.best.popularity)

    @property
    def kept(self) -> float:
        """κ, how much of "no" a label that was never learned takes over from its neighbours, chosen on validation."""
        return self.facts.best.kept

    @property
    def classifier_weight(self) -> float:
        """w, the classifier's share of the score, chosen on validation."""
        return self.facts.classifier_weight

    @property
    def dataset_name(self) -> str:
        """The prepared dataset's name."""
        return self.facts.dataset_name

    @property
    def dataset_fingerprint(self) -> str:
        """The prepared dataset's content hash."""
        return self.facts.dataset_fingerprint

    @property
    def metrics(self) -> Figures:
        """Validation figures of the best epoch, percent: unified, dual_encoder, classifier."""
        return self.facts.best.figures


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Open a checkpoint; raises CheckpointError naming the file and the way out."""
    folder = Path(folder)
    facts = read_facts(folder)
    tensors, described = read_tensors(folder / "model.safetensors")
    _same_epoch(folder, facts, described)
    model = empty_model(facts.recipe, facts.n_labels, facts.vocabulary, folder / "encoder")
    trained_L = tensors.pop("trained").numpy().astype(bool)
    positives_L = tensors.pop("positives").numpy().copy()  # a view would hold the whole mapped file
    inverse_propensity_L = tensors.pop("inverse_propensity").numpy().copy()
    fill_model(model, tensors, folder / "model.safetensors")
    labels = _read_parquet(folder / "labels.parquet")
    if {labels.num_rows, len(trained_L), len(positives_L), len(inverse_propensity_L)} != {facts.n_labels}:
        raise CheckpointError(
            f"{folder} holds files of different runs: labels.parquet has {labels.num_rows} labels, checkpoint.json "
            f"{facts.n_labels}, model.safetensors {len(trained_L)}. Copy the whole folder again, or train again."
        )
    return Checkpoint(
        folder=folder,
        facts=facts,
        model=model.eval(),
        labels=labels,
        validation=Split.from_table(_read_parquet(folder / "validation.parquet")),
        trained_L=trained_L,
        positives_L=positives_L,
        inverse_propensity_L=inverse_propensity_L,
        tokenizer=read_tokenizer(folder / "tokenizer.json"),
    )


def read_facts(folder: Path) -> CheckpointFacts:
    """checkpoint.json of a folder; CheckpointError when there is none or it is of another version."""
    path = folder / "checkpoint.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint (no checkpoint.json). Make one with `diptych train`.")
    try:
        return CheckpointFacts.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{path}: {where}: {first['msg']}. Train again.") from error


def save_best(
    folder: Path,
    model: UnifiedModel,
    positives_L: NDArray[np.int64],
    inverse_propensity_L: NDArray[np.float64],
    record: Record,
) -> None:
    """Save the current model as the checkpoint's weights, with its record in the header.

    `positives_L` counts each label's training positives. A label whose row has never moved (its positives were never
    sampled) counts as not trained.
    """
    trained_L = learned(model.classifier_rows(), positives_L)
    tensors = {
        n: t.detach().cpu().contiguous() for n, t in model.answering_state().items() if not n.endswith(OPTIMIZER_STATE)
    }
    tensors["trained"] = torch.from_numpy(trained_L.astype(np.uint8))
    tensors["positives"] = torch.from_numpy(positives_L)
    tensors["inverse_propensity"] = torch.from_numpy(inverse_propensity_L)
    with stopping.saving():
        write_tensors(folder / "model.safetensors", tensors, {"record": record.model_dump()})


def read_record(path: Path) -> Record | None:
    """Return the record in the header of a weights file; None if there is no file or an older release wrote it."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return Record.model_validate(facts["record"]) if "record" in facts else None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error)}). Delete the folder and train again.") from error


def _same_epoch(folder: Path, facts: CheckpointFacts, described: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the weights belong to another epoch than checkpoint.json says."""
    epoch = described.get("record", {}).get("epoch", facts.best.epoch)  # older releases wrote none
    if epoch != facts.best.epoch:
        raise CheckpointError(
            f"{folder / 'model.safetensors'} holds the weights of epoch {epoch}, but checkpoint.json describes those "
            f"of epoch {facts.best.epoch}. Copy the whole folder again, or train again with --restart."
        )


def cursor_of(facts: Mapping[str, Any], source: Path) -> Cursor:
    """The cursor in a saved state; CheckpointError when another version wrote it."""
    try:
        return Cursor.model_validate(facts)
    except ValidationError as error:
        raise CheckpointError(
            f"{source} was saved by another version ({error.errors()[0]['msg']}). Train again with --restart."
        ) from error


def save_facts(folder: Path, facts: CheckpointFacts) -> None:
    """Write checkpoint.json."""
    write_text(folder / "checkpoint.json", facts.model_dump_json(indent=2))


def save_surroundings(
    folder: Path, model: UnifiedModel, tokenizer: Tokenizer, labels: pa.Table, validation: Split
) -> None:
    """Write what does not change while training: tokenizer, encoder config, label table, validation queries."""
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    if isinstance(model.encoder, TransformerEncoder):
        (folder / "encoder").mkdir(exist_ok=True)
        write_text(folder / "encoder" / "config.json", model.encoder.transformer.config.to_json_string())  # type: ignore[union-attr, operator]
    for name, table in (("labels", labels), ("validation", validation.table())):
        with _written(folder / f"{name}.parquet") as aside, aside.open("wb") as file:
            pq.write_table(table, file)  # Arrow itself takes only paths that are UTF-8


def read_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer.json; CheckpointError when it is missing or broken."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Train again.")
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise CheckpointError(f"{path} is no tokenizer: {error}. Train again.") from error


def fill_model(
    model: UnifiedModel, tensors: Mapping[str, Tensor], source: Path, *, optimizer_state: bool = False
) -> None:
    """Load weights by name, all of them and nothing else; CheckpointError names what does not fit.

    With `optimizer_state`, the optimizer state of the row tables must be there too.
    """
    try:
        missing, unexpected = model.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit its recipe: {str(error).splitlines()[-1].strip()}") from error
    missing = [name for name in missing if optimizer_state or not name.endswith(OPTIMIZER_STATE)]
    if missing or unexpected:
        raise CheckpointError(
            f"{source}: missing tensors {missing[:3]}, unexpected {list(unexpected)[:3]}. Train again."
        )


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """One safetensors file with JSON facts in its header, written aside, flushed to disk, renamed.

    Raises SafetensorError or OSError when it cannot be written; what had its name before is kept.
    """
    with _written(path) as aside:
        save_file(tensors, aside, metadata={"facts": json.dumps(facts)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write_tensors` wrote; CheckpointError when it is missing or broken."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Train again.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Delete the folder and train again.") from error


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with _written(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """The name to write to; what stands there is on disk before it becomes `path`, and gone when writing failed.

    Readable by whoever may read other new files (safetensors writes 0600).
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)  # a full disk needs the room


def _read_parquet(path: Path) -> pa.Table:
    try:
        with path.open("rb") as file:
            return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Train again.") from error
