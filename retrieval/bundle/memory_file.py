"""memory.arrow: the training queries of a bundle's query memory, with text, labels (rows of the label table), weights.

Suffixes: M training queries, V labels of all of them.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.bundle.arrow_file import read_uncompressed
from retrieval.bundle.index_file import Buffer
from retrieval.bundle.memory_labels import MAX_LABELS_PER_QUERY, MemoryLabels
from retrieval.errors import BundleError, one_line

SCHEMA = pa.schema(
    [
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("labels", pa.large_list(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("weights", pa.large_list(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    ]
)


def write_memory(path: Path, texts: pa.Array, labels: MemoryLabels) -> None:
    """Write the texts and weighted labels of M training queries as one Arrow record batch."""
    starts = pa.array(labels.starts_M1, pa.int64())
    lists = [
        pa.LargeListArray.from_arrays(starts, pa.array(values), type=SCHEMA.field(name).type)
        for name, values in (("labels", labels.label_V), ("weights", labels.weight_V))
    ]
    batch = pa.record_batch([texts.cast(pa.large_string()), *lists], schema=SCHEMA)
    with path.open("wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)


def memory_in(content: Buffer, path: Path, queries: int, n_labels: int) -> tuple[pa.Array, MemoryLabels]:
    """View texts and labels in the bytes of a memory.arrow, named `path` in errors, and check every number.

    Raises BundleError unless there are `queries` queries whose labels are distinct rows of the label table.
    """
    try:
        table = read_uncompressed(pa.py_buffer(content))
        table.validate(full=True)  # Arrow does not check the offsets of texts and lists when it reads
    except (pa.ArrowException, ValueError, OSError) as error:
        raise BundleError(f"{path} is not an Arrow file ({one_line(error)}). Export the bundle again.") from error
    if table.schema != SCHEMA or table.num_rows != queries or any(column.null_count for column in table.columns):
        raise _invalid(path, f"it does not have {queries} queries with texts, labels and weights")
    text_M, label_M, weight_M = (column.combine_chunks() for column in table.columns)
    starts_M1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(pc.list_value_length(label_M).to_numpy())])
    if not (np.diff(starts_M1) == pc.list_value_length(weight_M).to_numpy()).all():
        raise _invalid(path, "a query has not one weight per label")
    flat = label_M.flatten(), weight_M.flatten()
    if any(values.null_count for values in flat):
        raise _invalid(path, "a label or a weight is missing")
    labels = MemoryLabels(starts_M1, *(values.to_numpy() for values in flat))
    _check_numbers(path, labels, n_labels)
    return text_M, labels


def _check_numbers(path: Path, labels: MemoryLabels, n_labels: int) -> None:
    lengths_M, label_V, weight_V = np.diff(labels.starts_M1), labels.label_V, labels.weight_V
    if int(lengths_M.max(initial=0)) > MAX_LABELS_PER_QUERY:
        raise _invalid(path, f"a query has more than {MAX_LABELS_PER_QUERY} labels")
    if len(label_V) and not (int(label_V.min()) >= 0 and int(label_V.max()) < n_labels):
        raise _invalid(path, f"a label is not one of the {n_labels} rows of the label table")
    if not ((weight_V > 0) & (weight_V <= 1)).all():  # also refuses NaN
        raise _invalid(path, "a weight is not above 0 and at most 1")
    key_V = np.repeat(np.arange(len(lengths_M)), lengths_M) * n_labels + label_V
    if len(np.unique(key_V)) != len(key_V):
        raise _invalid(path, "a query has a label twice")


def _invalid(path: Path, reason: str) -> BundleError:
    return BundleError(f"{path}: {reason}. Export the bundle again.")
