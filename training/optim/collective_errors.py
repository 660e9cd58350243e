"""Errors of collectives: name the cause of a RuntimeError from gloo, NCCL or PyTorch's store."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from retrieval.errors import TrainingError, one_line
from retrieval.system import stopping

# Exception types do not distinguish the causes, so the messages must.
CONNECTION_LOST = re.compile(
    r"connection (closed|reset|refused)|connection was|broken pipe|closed by peer|socket|timed? ?out|remote process|"
    r"recv(value)? failed|store->get|heartbeat", re.IGNORECASE,
)  # fmt: skip
OUT_OF_MEMORY = re.compile(r"out of memory|can.?t allocate|cannot allocate|bad_alloc", re.IGNORECASE)


@contextmanager
def collective_errors() -> Iterator[None]:
    """Turn the RuntimeError of a failed collective into a TrainingError that names the cause.

    torchrun signals all processes at once, so a connection lost after a signal raises StopRequested instead.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # resource_errors handles it
    except RuntimeError as error:  # from gloo, NCCL, and torch's checks of tensors
        text = one_line(error)
        if OUT_OF_MEMORY.search(text):
            raise TrainingError(
                f"memory ran out while the processes of this run exchanged data ({text}). Train into another --out "
                "with a smaller batching.batch_size or batching.pool_size; what was saved before is kept."
            ) from error
        if not CONNECTION_LOST.search(text):
            raise TrainingError(
                f"the processes of this run cannot exchange data ({text}). Start all of them with the same releases of "
                "diptych and PyTorch, and the same arguments; what was saved before is kept."
            ) from error
        if (number := stopping.requested()) is not None:
            raise stopping.StopRequested(number) from None
        raise TrainingError(
            f"another process of this run has ended; its own message has the cause ({text}). Rerun the same command to "
            "resume from what was saved."
        ) from error
