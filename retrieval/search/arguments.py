"""Check the arguments of a search before anything is computed."""

import math
from collections.abc import Sequence

import numpy as np

from retrieval.bundle.facts import ModelFacts
from retrieval.bundle.memory_labels import MAX_MEMORY_WEIGHT
from retrieval.errors import BadInput

MAX_SUPPORTING = 10  # training queries per hit


def check_memory(memory_weight: float, supporting: int, has_memory: bool) -> None:
    """Check the options of a search that concern the query memory. Raises BadInput."""
    is_number = isinstance(memory_weight, int | float | np.number) and not isinstance(memory_weight, bool)
    if not is_number or not 0.0 <= memory_weight <= MAX_MEMORY_WEIGHT:
        raise BadInput(f"memory_weight is {memory_weight!r}; it must be from 0 (no votes) to {MAX_MEMORY_WEIGHT:g}")
    if (
        isinstance(supporting, bool)
        or not isinstance(supporting, int | np.integer)
        or not 0 <= supporting <= MAX_SUPPORTING
    ):
        raise BadInput(f"supporting is {supporting!r}; it must be an integer from 0 to {MAX_SUPPORTING}")
    if memory_weight and not has_memory:
        raise BadInput(f"memory_weight is {memory_weight!r}, but the bundle has no query memory; leave it out")


def check_weight(weight: float, model: ModelFacts) -> None:
    """Raise BadInput for a weight above 0 without a classifier, and for one below 1 without a dual encoder."""
    if weight and not model.classifier_dim:
        raise BadInput(f"weight is {weight:g}, but this bundle has no classifier; leave it out, or set it to 0")
    if weight != 1.0 and not model.dual_dim:
        raise BadInput(f"weight is {weight:g}, but this bundle has no dual encoder; leave it out, or set it to 1")


def check_search(k: int, weight: float, min_score: float | None) -> None:
    """Check the options of a search. Raises BadInput that names the option and its value."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise BadInput(f"k is {k!r}; it must be an integer of at least 1")
    if not isinstance(weight, int | float | np.number) or not 0.0 <= weight <= 1.0:
        raise BadInput(f"weight is {weight!r}; it must be from 0 (dual encoder only) to 1 (classifier only)")
    if min_score is not None and not (isinstance(min_score, int | float | np.number) and math.isfinite(min_score)):
        raise BadInput(f"min_score is {min_score!r}; it must be a finite number")


def check_queries(queries: Sequence[str]) -> None:
    """Check that every query is text that can be encoded. Raises BadInput that names the first one that is not."""
    if isinstance(queries, str):
        raise BadInput("queries is a single text; give a list of texts")
    for place, query in enumerate(queries):
        if not isinstance(query, str):
            raise BadInput(f"query {place} is {type(query).__name__}, not text")
        if not query.strip():
            raise BadInput(f"query {place} is empty")
        try:
            query.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(f"query {place} is not valid Unicode at character {error.start}") from error
