"""Save the weights of the best epoch, and load weights into a model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrieval.errors import CheckpointError
from retrieval.system import stopping
from training.batching.training_data import TrainingData
from training.checkpoint.schema import WEIGHTS, EpochRecord
from training.checkpoint.tensor_file import ShardedRows, write_tensors
from training.model.cascade import Model, has_label_rows
from training.model.unified import UnifiedModel
from training.optim.distributed import SINGLE_PROCESS, Processes

OPTIMIZER_STATE = (".second_moment", ".steps")  # of row tables: part of the run's state, not of the best weights


def save_best_weights(
    folder: Path, model: Model, data: TrainingData, record: EpochRecord | None, processes: Processes = SINGLE_PROCESS
) -> None:
    """Write the model's weights and the labels' numbers in the training data, with `record` in the header.

    Residuals η are written as ψ, so that an opened checkpoint needs no label texts for its rows. All processes call it;
    rank zero, which has the record, writes.
    """
    tensors: dict[str, Tensor | ShardedRows] = {
        name: rows_of_labels(model, name, tensor.detach().cpu().contiguous())
        for name, tensor in model.inference_state_dict().items()
        if not name.endswith(OPTIMIZER_STATE)
    }
    if isinstance(model, UnifiedModel) and model.adds_text:
        rows_SC = model.label_rows(data.label_tokens).to(model.classifier_rows().dtype).cpu()
        tensors["classifier.weight"] = ShardedRows(rows_SC, model.n_labels)
    trained_S = torch.from_numpy(model.trained_labels(data.positives_L).astype(np.uint8))
    tensors["trained"] = ShardedRows(trained_S, model.n_labels)
    tensors["positives"] = torch.from_numpy(data.positives_L)
    tensors["inverse_propensity"] = torch.from_numpy(data.inverse_propensity_L)
    optional = {"frequency": data.click_frequency_L, "age": data.label_age_L}
    tensors |= {name: torch.from_numpy(value_L) for name, value_L in optional.items() if value_L is not None}
    with stopping.saving():
        write_tensors(folder / WEIGHTS, tensors, {"record": record and record.model_dump()}, processes)


def rows_of_labels(model: Model, name: str, tensor: Tensor) -> Tensor | ShardedRows:
    """Return a tensor of the model's state dict as what it is: a whole one, or the shard's rows of the label table."""
    return ShardedRows(tensor, model.n_labels) if has_label_rows(model, name) else tensor


def load_weights(model: Model, tensors: Mapping[str, Tensor], source: Path, *, optimizer_state: bool = False) -> None:
    """Load weights by name. Raises CheckpointError if tensors are missing, unexpected or of another shape.

    With `optimizer_state`, the optimizer state of the row tables is required too.
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
