"""Save and restore the state of a run (state.safetensors).

The file has everything that the next step needs: weights, their average, the optimizers' moments and step counts,
clusters, hard negatives and the position in the run. Random numbers and learning rates depend on the position only. The
header lists all tensors; a file that lacks one is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from retrieval.errors import CheckpointError
from retrieval.system import stopping
from training.batching.batch_source import NOTHING_MINED, Mined
from training.checkpoint.files import read_record
from training.checkpoint.schema import STATE, WEIGHTS, RunPosition
from training.checkpoint.tensor_file import ShardedRows, read_tensors, write_tensors
from training.checkpoint.weights import load_weights, rows_of_labels
from training.data.ragged import Ragged
from training.model.cascade import Model, has_label_rows
from training.optim.averaging import AveragedWeights
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.optimizers import MOMENTS, Optimizers
from training.recipe.schema import Recipe

FIX = "Restore the file as it was saved, or start again with --restart."


@dataclass(frozen=True)
class RunState:
    """State of a run besides its weights and optimizers."""

    position: RunPosition = field(default_factory=RunPosition)
    mined: Mined = NOTHING_MINED


def save_state(
    folder: Path,
    model: Model,
    optimizers: Optimizers,
    average: AveragedWeights,
    state: RunState,
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Write everything that an exact resume needs as one file. All processes call it; rank zero writes."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    tensors: dict[str, Tensor | ShardedRows] = {}
    for prefix, part in (("model.", weights), ("average.", average.state_dict())):
        tensors |= {f"{prefix}{name}": rows_of_labels(model, name, tensor) for name, tensor in part.items()}
    tensors |= {f"dense.{name}": tensor for name, tensor in optimizers.state_dict().items()}
    tensors["clusters.values"] = torch.from_numpy(state.mined.clusters.values)
    tensors["clusters.offsets"] = torch.from_numpy(state.mined.clusters.offsets)
    if state.mined.hard_negative_NH is not None:
        tensors["hard_negatives"] = torch.from_numpy(state.mined.hard_negative_NH)
    with stopping.saving():
        write_tensors(folder / STATE, tensors, state.position.model_dump() | {"tensors": sorted(tensors)}, processes)


def restore_state(
    folder: Path,
    model: Model,
    optimizers: Optimizers,
    average: AveragedWeights,
    recipe: Recipe,
    n_rows: int,
    processes: Processes = SINGLE_PROCESS,
) -> RunState:
    """Load weights, their average and optimizer state that `save_state` wrote with any number of processes.

    Returns the rest. A process reads only the classifier rows of its labels. `n_rows`: number of training rows. Raises
    CheckpointError if a part is missing or does not fit, or if the best weights are not the recorded ones.
    """
    path = folder / STATE
    tensors, facts = read_tensors(path, lambda name: has_label_rows(model, name.partition(".")[2]), processes)
    if missing := sorted(set(facts.pop("tensors", ())) - tensors.keys()):
        raise CheckpointError(f"{path} lacks {len(missing)} of its tensors, the first is {missing[0]!r}. {FIX}")
    position = read_position(facts, path)
    load_weights(model, _with_prefix("model.", tensors), path, optimizer_state=True)
    _load_dense(model, optimizers, _with_prefix("dense.", tensors), position, path)
    _load_average(average, _with_prefix("average.", tensors), position, path)
    mined = _read_mined(tensors, position, recipe, (n_rows, model.n_labels), path)
    return RunState(reconcile(folder, position), mined)


def read_position(facts: Mapping[str, Any], source: Path) -> RunPosition:
    """Return the position in the header of a saved state. Raises CheckpointError if another version wrote it."""
    try:
        return RunPosition.model_validate(facts)
    except ValidationError as error:
        raise CheckpointError(
            f"{source} was saved by another version ({error.errors()[0]['msg']}). Train again with --restart."
        ) from error


def reconcile(folder: Path, position: RunPosition) -> RunPosition:
    """Return the position with the record in model.safetensors as its best, if that has the higher score.

    It has after a kill between saving better weights and saving the state. Raises CheckpointError if the file is
    missing or has other weights than the position's best.
    """
    path = folder / WEIGHTS
    record = read_record(path)
    if position.best is None:
        return position.model_copy(update={"best": record})
    if record is None:
        raise CheckpointError(f"{path}, the best weights (epoch {position.best.epoch}), is missing. {FIX}")
    if record.score > position.best.score:
        return position.model_copy(update={"best": record})
    if (record.epoch, record.score) != (position.best.epoch, position.best.score):
        raise CheckpointError(
            f"{path} has the weights of epoch {record.epoch}, but {STATE} says that those of epoch "
            f"{position.best.epoch} are the best. {FIX}"
        )
    return position


def _load_dense(
    model: Model, optimizers: Optimizers, state: Mapping[str, Tensor], position: RunPosition, path: Path
) -> None:
    """Load AdamW's state. Raises CheckpointError if it is incomplete, misshapen, or missing after the first step."""
    if position.steps_taken and optimizers.dense.param_groups and not state:
        raise CheckpointError(f"{path} has no optimizer state after {position.steps_taken} steps. {FIX}")
    parameters = {f"{name}.{key}": parameter for name, parameter in model.named_parameters() for key in MOMENTS}
    if unknown := sorted(state.keys() - parameters.keys()):
        raise CheckpointError(f"{path}: the optimizer state {unknown[0]!r} belongs to no parameter. {FIX}")
    for name in state:
        parameter = name.rpartition(".")[0]
        for key in MOMENTS:
            if (moment := state.get(f"{parameter}.{key}")) is None:
                raise CheckpointError(f"{path}: the optimizer state '{parameter}.{key}' is missing. {FIX}")
            shape = torch.Size() if key == "step" else parameters[name].shape
            if moment.shape != shape:
                raise CheckpointError(
                    f"{path}: the optimizer state '{parameter}.{key}' has the shape {list(moment.shape)}, not "
                    f"{list(shape)}. {FIX}"
                )
    optimizers.load_state_dict(dict(state))


def _load_average(average: AveragedWeights, state: Mapping[str, Tensor], position: RunPosition, path: Path) -> None:
    """Load the average. Raises CheckpointError if it is missing after the first epoch or does not fit the model."""
    try:
        average.load_state_dict(state)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the averaged weights do not fit the model. {FIX}") from error
    if average.decay and average.epochs < position.epoch:
        raise CheckpointError(
            f"{path} has averaged weights of {average.epochs} epochs, but {position.epoch} are finished. {FIX}"
        )


def _read_mined(
    tensors: Mapping[str, Tensor], position: RunPosition, recipe: Recipe, sizes: tuple[int, int], path: Path
) -> Mined:
    """Return clusters and hard negatives. Raises CheckpointError if the next step needs one that is missing or invalid.

    sizes: number of training rows and of labels.
    """
    batching, (n_rows, n_labels) = recipe.batching, sizes
    refresh_due = position.step == 0 and position.epoch % batching.refresh_epochs == 0  # before the next step
    values, offsets = (tensors.get(f"clusters.{name}") for name in ("values", "offsets"))
    mined = tensors.get("hard_negatives")
    if values is None or offsets is None or (mined is None and batching.hard_negatives and not refresh_due):
        missing = "clusters" if values is None or offsets is None else "hard negatives"
        raise CheckpointError(f"{path} has no {missing}, which the next step needs. {FIX}")
    value_V, offset_R = values.numpy(), offsets.numpy()
    complete = offset_R.ndim == 1 and len(offset_R) and offset_R[0] == 0 and offset_R[-1] == len(value_V)
    if not complete or (np.diff(offset_R) < 0).any() or not _in_range(value_V, 0, n_rows):
        raise CheckpointError(f"{path} has clusters of other training queries. {FIX}")
    if mined is not None and (mined.ndim != 2 or len(mined) != n_rows or not _in_range(mined.numpy(), -1, n_labels)):
        raise CheckpointError(f"{path} has hard negatives of other training queries or labels. {FIX}")
    return Mined(Ragged(value_V, offset_R), None if mined is None else mined.numpy())


def _in_range(values: NDArray[np.integer], start: int, stop: int) -> bool:
    return not values.size or (int(values.min()) >= start and int(values.max()) < stop)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
