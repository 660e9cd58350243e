"""Co-occurrence of labels: in how many training queries two labels occur together, counted or by random walks.

Shapes: L labels, B labels of a block, E entries of a block.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from training.data.ragged import Ragged
from training.optim.random_streams import Stream, random_generator

LABELS_PER_BLOCK = 2_000
WALK_STEPS = 400  # per label, and
RESTART = 0.8  # the probability to return to the label before a step: as in ECLARE (Mittal et al. 2021)

Block = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]  # label [E], other label [E], G [E]


def shared_queries(labels: Ragged, n_labels: int, block: int = LABELS_PER_BLOCK) -> Iterator[Block]:
    """Yield the labels of each block with the labels they occur with, themselves included, and the numbers of queries.

    `labels` are the training queries' positives. Blocks of the sparse product bound the memory.
    """
    from scipy.sparse import csr_array

    ones = np.ones(len(labels.values), np.float32)
    clicked_NL = csr_array((ones, labels.values, labels.offsets), shape=(len(labels), n_labels))
    clicked_LN = clicked_NL.T.tocsr()
    for start in range(0, n_labels, block):
        shared = (clicked_LN[start : start + block] @ clicked_NL).tocoo()
        yield shared.coords[0] + start, shared.coords[1].astype(np.int64), shared.data.astype(np.float64)


def random_walks(labels: Ragged, n_labels: int, seed: int, block: int = LABELS_PER_BLOCK) -> Iterator[Block]:
    """Yield the labels of each block with the labels that random walks from them visit, and the numbers of visits.

    A step goes from a label to one of its queries and to one of that query's labels. Labels without a query are left
    out. The walks of a label depend on the seed and its row only.
    """
    by_label = np.argsort(labels.values, kind="stable")
    queries_of_label = Ragged.from_lengths(
        labels.row_of_value[by_label], np.bincount(labels.values, minlength=n_labels)
    )
    for start in range(0, n_labels, block):
        begin_B = start + np.flatnonzero(queries_of_label.lengths[start : start + block] > 0)
        uniform_BS = np.array(
            [random_generator(seed, Stream.LABEL_QUERIES, 0, int(row)).random((WALK_STEPS, 3)) for row in begin_B]
        ).reshape(len(begin_B), WALK_STEPS, 3)
        at_B, visits = begin_B, []
        for step in range(WALK_STEPS):
            restart_B, to_query_B, to_label_B = uniform_BS[:, step].T
            at_B = np.where(restart_B < RESTART, begin_B, at_B)
            at_B = _one_of_each(labels, _one_of_each(queries_of_label, at_B, to_query_B), to_label_B)
            visits.append(begin_B * n_labels + at_B)
        keys_E, count_E = np.unique(np.concatenate(visits), return_counts=True)
        yield keys_E // n_labels, keys_E % n_labels, count_E.astype(np.float64)


def _one_of_each(lists: Ragged, row_B: NDArray[np.int64], uniform_B: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return one value of each of the rows, chosen by a number in [0, 1)."""
    position_B = lists.offsets[row_B] + (uniform_B * lists.lengths[row_B]).astype(np.int64)
    return lists.values[position_B].astype(np.int64)
