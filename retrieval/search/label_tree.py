"""A tree of labels in levels: level 0 is the coarsest clustering, the last level is the labels themselves.

Suffixes: N nodes of a level, C nodes of the level below (children), S selected nodes, L labels, R allowed labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BundleError

Nodes = NDArray[np.int64]
Parents = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class AllowedNodes:
    """The labels that a filter allows, and the nodes above them: one bool per node of each level."""

    masks: tuple[NDArray[np.bool_], ...]

    @cached_property
    def count(self) -> int:
        """Return the number of allowed labels."""
        return int(np.count_nonzero(self.masks[-1]))

    @cached_property
    def rows_R(self) -> Nodes:
        """Return the allowed labels, ascending."""
        return np.flatnonzero(self.masks[-1])


@dataclass(frozen=True, eq=False)
class LabelTree:
    """The nodes of each level and their children.

    Attributes:
        sizes: number of nodes of each level; the last one is the number of labels.
        parents: for each level after the first, the node of the level above it [N].
        starts: for each level before the last, the place of each node's first child [N + 1] (CSR).
        children: for each level before the last, the nodes of the next level [C], grouped by their parents.
    """

    sizes: tuple[int, ...]
    parents: tuple[Parents, ...]
    starts: tuple[Nodes, ...]
    children: tuple[Parents, ...]

    @classmethod
    def of(cls, parents: Sequence[NDArray[np.integer[Any]]], clusters: int) -> Self:
        """Build a tree from the parents of each level after the first; `clusters`: number of nodes of level 0.

        Raises BundleError if a parent does not exist or a cluster has no children.
        """
        if not parents:
            raise BundleError("the label tree has one level; it needs clusters and labels. Export the bundle again.")
        sizes = (clusters, *(len(parent_N) for parent_N in parents))
        for level, parent_N in enumerate(parents, start=1):
            _check_parents(level, parent_N, sizes[level - 1])
        starts = tuple(
            np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(parent_N, minlength=size))])
            for parent_N, size in zip(parents, sizes[:-1], strict=True)
        )
        children = tuple(np.argsort(parent_N, kind="stable").astype(np.int32) for parent_N in parents)
        return cls(sizes, tuple(parent_N.astype(np.int32) for parent_N in parents), starts, children)

    @property
    def levels(self) -> int:
        """Return the number of levels, including that of the labels."""
        return len(self.sizes)

    def children_of(self, level: int, node_S: Nodes) -> tuple[Nodes, Nodes]:
        """Return the children [C] of some nodes of a level, and for each child the place of its parent in `node_S`."""
        starts_N = self.starts[level]
        first_S = starts_N[node_S]
        count_S = starts_N[node_S + 1] - first_S
        place_C = np.repeat(np.arange(len(node_S)), count_S)
        before_S = np.cumsum(count_S) - count_S
        child_C = self.children[level][np.arange(len(place_C)) + (first_S - before_S)[place_C]]
        return child_C.astype(np.int64), place_C

    def among(self, allowed_L: NDArray[np.bool_]) -> AllowedNodes:
        """Return the nodes that have an allowed label below them."""
        masks = [allowed_L]
        for size, parent_N in zip(reversed(self.sizes[:-1]), reversed(self.parents), strict=True):
            mask_N = np.zeros(size, np.bool_)
            mask_N[parent_N[masks[-1]]] = True
            masks.append(mask_N)
        return AllowedNodes(tuple(reversed(masks)))


def _check_parents(level: int, parent_N: NDArray[np.integer[Any]], size: int) -> None:
    """Raise BundleError unless the parents are nodes of a level of `size` nodes, each with a child."""
    if parent_N.ndim != 1 or not np.issubdtype(parent_N.dtype, np.integer):
        raise BundleError(
            f"the parents of level {level} of the label tree are {parent_N.dtype} of shape {parent_N.shape}, not one "
            "integer per node. Export the bundle again."
        )
    if len(parent_N) and not 0 <= int(parent_N.min()) <= int(parent_N.max()) < size:
        wrong = int(np.flatnonzero((parent_N < 0) | (parent_N >= size))[0])
        raise BundleError(
            f"node {wrong} of level {level} of the label tree has the parent {int(parent_N[wrong])}, but level "
            f"{level - 1} has the nodes 0 to {size - 1}. Export the bundle again."
        )
    if size < 1 or not (has_child_N := np.bincount(parent_N, minlength=size) > 0).all():
        empty = int(np.argmin(has_child_N)) if size > 0 else 0
        raise BundleError(
            f"node {empty} of level {level - 1} of the label tree has no children. Export the bundle again."
        )
