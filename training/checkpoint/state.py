"""Save and restore the state of a run (state.safetensors), and reconcile it with the best weights.

The file holds everything that a step needs: weights, the optimizers' moments and step counts, clusters, hard negatives
and the cursor. Random numbers and learning rates depend on the cursor alone. A file that misses a part is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.errors import CheckpointError
from retrieval.system import stopping
from training.checkpoint import files as ck
from training.checkpoint.files import Cursor
from training.data.ragged import Ragged
from training.model.unified import UnifiedModel
from training.optim import optimizers as optimization
from training.recipe.schema import Recipe

STATE, WEIGHTS = "state.safetensors", "model.safetensors"
REMEDY = "Put the file back as it was saved, or start again with --restart."


@dataclass(frozen=True)
class RunState:
    """The state of a run besides its weights and optimizers."""

    cursor: Cursor
    clusters: Ragged
    hard_negative_NH: NDArray[np.int32] | None


def save_state(folder: Path, model: UnifiedModel, dense: torch.optim.AdamW, state: RunState) -> None:
    """Write everything that an exact resume needs, as one file that lists its tensors."""
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {f"dense.{name}": tensor for name, tensor in optimization.dense_state(model, dense).items()}
    tensors |= {
        "clusters.values": torch.from_numpy(state.clusters.values),
        "clusters.offsets": torch.from_numpy(state.clusters.offsets),
    }
    if state.hard_negative_NH is not None:
        tensors["hard_negatives"] = torch.from_numpy(state.hard_negative_NH)
    with stopping.saving():
        ck.write_tensors(folder / STATE, tensors, state.cursor.model_dump() | {"tensors": sorted(tensors)})


def restore_state(folder: Path, model: UnifiedModel, dense: torch.optim.AdamW, recipe: Recipe, rows: int) -> RunState:
    """Read what `save_state` wrote; load weights into `model` and moments into `dense`. rows: training queries.

    Raises CheckpointError if a part is missing or does not fit, or if the best weights are not the recorded ones.
    """
    path = folder / STATE
    tensors, facts = ck.read_tensors(path)
    listed = facts.pop("tensors", None)  # absent in states of older releases
    if listed is not None and (missing := sorted(set(listed) - tensors.keys())):
        raise CheckpointError(f"{path} misses {len(missing)} of its tensors, the first is {missing[0]!r}. {REMEDY}")
    cursor = ck.cursor_of(facts, path)
    ck.fill_model(model, _under("model.", tensors), path, optimizer_state=True)
    _restore_dense(model, dense, _under("dense.", tensors), cursor, path)
    clusters, mined = _mined(tensors, cursor, recipe, (rows, len(model.classifier)), path)
    return RunState(reconcile(folder, cursor), clusters, mined)


def reconcile(folder: Path, cursor: Cursor) -> Cursor:
    """Return the cursor with the record in model.safetensors as its best, if that has the higher score.

    It has after a kill between saving better weights and saving the state. Raises CheckpointError if the file is
    missing or holds other weights than the cursor's best.
    """
    path = folder / WEIGHTS
    record = ck.read_record(path)
    if cursor.best is None:
        return cursor.model_copy(update={"best": record})
    if not path.is_file():
        raise CheckpointError(f"{path}, the best weights (epoch {cursor.best.epoch}), is missing. {REMEDY}")
    if record is None:  # an older release wrote it
        return cursor
    if record.score > cursor.best.score:
        return cursor.model_copy(update={"best": record})
    if (record.epoch, record.score) != (cursor.best.epoch, cursor.best.score):
        raise CheckpointError(
            f"{path} holds the weights of epoch {record.epoch}, but {STATE} says that those of epoch "
            f"{cursor.best.epoch} are the best. {REMEDY}"
        )
    return cursor


def _restore_dense(
    model: UnifiedModel, dense: torch.optim.AdamW, saved: Mapping[str, Tensor], cursor: Cursor, path: Path
) -> None:
    """Load AdamW's state. Raises CheckpointError if it is incomplete, misshapen, or missing after the first step."""
    if cursor.taken and dense.param_groups and not saved:
        raise CheckpointError(f"{path} holds no optimizer state after {cursor.taken} steps. {REMEDY}")
    names = {f"{name}.{key}": parameter for name, parameter in model.named_parameters() for key in optimization.MOMENTS}
    if unknown := sorted(saved.keys() - names.keys()):
        raise CheckpointError(f"{path}: the optimizer state {unknown[0]!r} belongs to no parameter. {REMEDY}")
    for name in saved:
        parameter = name.rpartition(".")[0]
        for key in optimization.MOMENTS:
            if (moment := saved.get(f"{parameter}.{key}")) is None:
                raise CheckpointError(f"{path}: the optimizer state '{parameter}.{key}' is missing. {REMEDY}")
            shape = torch.Size() if key == "step" else names[name].shape
            if moment.shape != shape:
                raise CheckpointError(
                    f"{path}: the optimizer state '{parameter}.{key}' has the shape {list(moment.shape)}, not "
                    f"{list(shape)}. {REMEDY}"
                )
    optimization.restore_dense_state(model, dense, dict(saved))


def _mined(
    tensors: Mapping[str, Tensor], cursor: Cursor, recipe: Recipe, sizes: tuple[int, int], path: Path
) -> tuple[Ragged, NDArray[np.int32] | None]:
    """Return clusters and hard negatives. Raises CheckpointError if the next step needs one that is missing or invalid.

    sizes: number of training rows and of labels.
    """
    batching, (rows, labels) = recipe.batching, sizes
    due = cursor.step == 0 and cursor.epoch % batching.refresh_epochs == 0  # computed again before the next step
    values, offsets = (tensors.get(f"clusters.{name}") for name in ("values", "offsets"))
    mined = tensors.get("hard_negatives")
    if values is None or offsets is None or (mined is None and batching.hard_negatives and not due):
        lost = "clusters" if values is None or offsets is None else "hard negatives"
        raise CheckpointError(f"{path} holds no {lost}, which the next step needs. {REMEDY}")
    value_V, offset_R = values.numpy(), offsets.numpy()
    whole = offset_R.ndim == 1 and len(offset_R) and offset_R[0] == 0 and offset_R[-1] == len(value_V)
    if not whole or (np.diff(offset_R) < 0).any() or not _within(value_V, 0, rows):
        raise CheckpointError(f"{path} holds clusters of other training queries. {REMEDY}")
    if mined is not None and (mined.ndim != 2 or len(mined) != rows or not _within(mined.numpy(), -1, labels)):
        raise CheckpointError(f"{path} holds hard negatives of other training queries or labels. {REMEDY}")
    return Ragged(value_V, offset_R), None if mined is None else mined.numpy()


def _within(values: NDArray[np.integer], least: int, beyond: int) -> bool:
    return not values.size or (int(values.min()) >= least and int(values.max()) < beyond)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
