"""Read and write the files of a checkpoint. Readers raise CheckpointError with the file and the fix."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
from pydantic import ValidationError
from tokenizers import Tokenizer

from retrieval.errors import CheckpointError, one_line
from retrieval.system.atomic_files import atomic_file, write_text
from training.batching.training_data import TrainingData
from training.checkpoint.schema import (
    CHECKPOINT,
    ENCODER,
    LABELS,
    MEMORY,
    TOKENIZER,
    VALIDATION,
    CheckpointFacts,
    EpochRecord,
)
from training.model.cascade import Model
from training.model.transformer_encoder import TransformerEncoder

REPEATED = "repeated"  # column of the validation queries: whether it is a training query too


def read_facts(folder: Path) -> CheckpointFacts:
    """Read checkpoint.json. Raises CheckpointError if it is missing or another version wrote it."""
    path = folder / CHECKPOINT
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint (no {CHECKPOINT}). Make one with `diptych train`.")
    try:
        return CheckpointFacts.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{path}: {where}: {first['msg']}. Train again.") from error


def save_facts(folder: Path, facts: CheckpointFacts) -> None:
    """Write checkpoint.json."""
    write_text(folder / CHECKPOINT, facts.model_dump_json(indent=2))


def read_record(path: Path) -> EpochRecord | None:
    """Read the epoch's record from the header of a weights file; None if the file is missing."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return EpochRecord.model_validate(json.loads(file.metadata()["facts"])["record"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error)}). Delete the folder and train again.") from error


def save_static_files(folder: Path, model: Model, tokenizer: Tokenizer, labels: pa.Table, data: TrainingData) -> None:
    """Write the files that training does not change: tokenizer, encoder config, labels, stored queries."""
    write_text(folder / TOKENIZER, tokenizer.to_str())
    if isinstance(model.encoder, TransformerEncoder):
        (folder / ENCODER).mkdir(exist_ok=True)
        write_text(folder / ENCODER / "config.json", model.encoder.transformer.config.to_json_string())  # type: ignore[union-attr, operator]
    validation = data.validation.table()
    if data.repeated_Q is not None:
        validation = validation.append_column(REPEATED, pa.array(data.repeated_Q))
    tables = {LABELS: labels, VALIDATION: validation}
    if data.memory is not None:
        tables[MEMORY] = data.memory.table()
    for name, table in tables.items():
        with atomic_file(folder / name) as temporary, temporary.open("wb") as file:
            pq.write_table(table, file)  # Arrow opens only paths in UTF-8


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises CheckpointError if it is missing or invalid."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Train again.")
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise CheckpointError(f"{path} is not a tokenizer: {error}. Train again.") from error


def read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file."""
    try:
        with path.open("rb") as file:
            return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Train again.") from error
