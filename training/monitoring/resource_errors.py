"""What a machine runs out of while it trains, as one sentence that says what to do."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError

from retrieval.errors import TrainingError
from training.monitoring.epoch_stats import resident_bytes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors gives the number in its text alone, numpy none at all.
SAYS_FULL = re.compile(rf"os error ({'|'.join(str(number) for number in FULL)})\b|\d+ requested and \d+ written")


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Raise TrainingError where a disk or a memory is full, or tensors cannot be written; all else passes."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(_memory("the GPU's memory", _gpu())) from error
    except MemoryError as error:
        raise TrainingError(_memory("the memory", _host())) from error
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise TrainingError(
                f"no space is left for {folder}. Free some and repeat the command: it goes on from what was saved "
                "before, and that is kept."
            ) from error
        if isinstance(error, OSError):
            raise
        raise TrainingError(f"{folder} cannot be written to ({error}). Is it still there?") from error
    except RuntimeError as error:
        # torch reports missing memory as a RuntimeError too; CUDA does besides torch.OutOfMemoryError.
        if "CUDA" in str(error) and "out of memory" in str(error):
            raise TrainingError(_memory("the GPU's memory", _gpu())) from error
        if "can't allocate memory" not in str(error):
            raise
        raise TrainingError(_memory("the memory", _host())) from error


def is_full(error: Exception) -> bool:
    """Whether a write failed because the disk, a quota or a limit on a file's size is full."""
    return getattr(error, "errno", None) in FULL or SAYS_FULL.search(str(error)) is not None


def _memory(what: str, used: str) -> str:
    return (
        f"{what} ran out ({used}). Train into another --out with a smaller batching.batch_size, batching.pool_size or "
        "encoder.dim, or give it more memory and repeat the command; what was saved before is kept."
    )


def _host() -> str:
    return f"the process holds {resident_bytes() / 1e9:.1f} of {psutil.virtual_memory().total / 1e9:.1f} GB"


def _gpu() -> str:
    free, total = torch.cuda.mem_get_info()
    return f"{(total - free) / 1e9:.1f} of {total / 1e9:.1f} GB are taken"
