"""Turn errors of exhausted resources (disk, memory, GPU memory) into a TrainingError that names the fix."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError

from retrieval.errors import TrainingError
from training.optim.step_stats import resident_bytes

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors has the error number only in its text, numpy not at all.
DISK_FULL_TEXT = re.compile(
    rf"os error ({'|'.join(str(number) for number in DISK_FULL)})\b|\d+ requested and \d+ written"
)


@contextmanager
def resource_errors(folder: Path) -> Iterator[None]:
    """Raise TrainingError if a disk or memory is full, or tensors cannot be written to `folder`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(_memory("the GPU's memory", _gpu())) from error
    except MemoryError as error:
        raise TrainingError(_memory("the memory", _host())) from error
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise TrainingError(
                f"no space is left for {folder}. Free some and repeat the command: it resumes from the last saved "
                "state, which is kept."
            ) from error
        if isinstance(error, OSError):
            raise
        raise TrainingError(f"{folder} cannot be written to ({error}). Is it still there?") from error
    except RuntimeError as error:
        # torch also reports exhausted memory as RuntimeError, on the CPU and with CUDA.
        if "CUDA" in str(error) and "out of memory" in str(error):
            raise TrainingError(_memory("the GPU's memory", _gpu())) from error
        if "can't allocate memory" not in str(error):
            raise
        raise TrainingError(_memory("the memory", _host())) from error


def is_full(error: Exception) -> bool:
    """Return whether a write failed because a disk, quota or file size limit is full."""
    return getattr(error, "errno", None) in DISK_FULL or DISK_FULL_TEXT.search(str(error)) is not None


def _memory(kind: str, used: str) -> str:
    return (
        f"{kind} ran out ({used}). Train into another --out with a smaller batching.batch_size, batching.pool_size or "
        "encoder.dim, or give it more memory and repeat the command; the last saved state is kept."
    )


def _host() -> str:
    return f"the process holds {resident_bytes() / 1e9:.1f} of {psutil.virtual_memory().total / 1e9:.1f} GB"


def _gpu() -> str:
    free, total = torch.cuda.mem_get_info()
    return f"{(total - free) / 1e9:.1f} of {total / 1e9:.1f} GB are in use"
