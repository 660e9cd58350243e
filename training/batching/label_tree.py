"""The label tree of a cascade: nested balanced clusters of labels by the training queries that they are true for.

Labels are halved by balanced 2-means over N(Yᵀ X): X are the normalized TF-IDF vectors of the training queries' tokens,
Y their labels. A label without a training query has the vector of its own text (Parabel, Prabhu et al. 2018;
CascadeXML, section 3).

Shapes: N texts, L labels, V tokens of the vocabulary, C clusters of a level.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import RecipeError
from training.batching.clustering import halve
from training.batching.training_data import TrainingData
from training.data.ragged import Ragged
from training.data.token_cache import TokenizedTexts, inverse_document_frequency
from training.optim.random_streams import Stream, random_generator

SparseMatrix = Any  # scipy.sparse.csr_array of float32


def label_tree(data: TrainingData, clusters: Sequence[int], vocabulary: int, seed: int) -> list[NDArray[np.int32]]:
    """Cluster the labels at each level of `clusters`; return the parent of each node of all levels but the first.

    The last array has the cluster of each label. The same data and seed give the same tree. Raises RecipeError if there
    are fewer labels than clusters.
    """
    n_labels = len(data.label_tokens)
    if n_labels < clusters[-1]:
        raise RecipeError(
            f"cascade.clusters has {clusters[-1]:,} clusters, but the dataset has {n_labels:,} labels: give fewer"
        )
    features_LV = label_features(data.train_tokens, data.train.labels, data.label_tokens, vocabulary)
    return tree_of(features_LV, clusters, random_generator(seed, Stream.LABEL_TREE))


def tree_of(
    features_LV: SparseMatrix, clusters: Sequence[int], generator: np.random.Generator
) -> list[NDArray[np.int32]]:
    """Halve the labels until there are as many clusters as at the last level, and number them in order of the halves.

    The clusters of the other levels are those of earlier halvings, so cluster c of a level is below ⌊c / k⌋.
    """
    cluster_L = np.empty(features_LV.shape[0], np.int32)
    for cluster, members in enumerate(halve(features_LV, clusters[-1].bit_length() - 1, generator)):
        cluster_L[members] = cluster
    above = [np.arange(below, dtype=np.int32) // np.int32(below // count) for count, below in pairwise(clusters)]
    return [*above, cluster_L]


def label_features(
    query_tokens: TokenizedTexts, labels: Ragged, label_tokens: TokenizedTexts, vocabulary: int
) -> SparseMatrix:
    """Return N(Yᵀ X) [L, V]; for a label without a query, the TF-IDF vector of its text."""
    from scipy.sparse import csr_array, diags_array

    idf_V = inverse_document_frequency(vocabulary, query_tokens).numpy().astype(np.float32)
    ones_V = np.ones(len(labels.values), np.float32)
    truth_NL = csr_array((ones_V, labels.values, labels.offsets), shape=(len(labels), len(label_tokens)))
    without_L = np.bincount(labels.values, minlength=len(label_tokens)) == 0
    own_text_LV = diags_array(without_L.astype(np.float32)) @ tf_idf(label_tokens, idf_V)
    return normalized((truth_NL.T @ tf_idf(query_tokens, idf_V) + own_text_LV).tocsr())


def tf_idf(tokens: TokenizedTexts, idf_V: NDArray[np.float32]) -> SparseMatrix:
    """Return the normalized TF-IDF vectors of texts [N, V]."""
    from scipy.sparse import csr_array

    ids = tokens.ids
    # A copy: the sum of duplicates is computed in place.
    matrix_NV = csr_array((idf_V[ids.values], ids.values, ids.offsets), shape=(len(ids), len(idf_V)), copy=True)
    matrix_NV.sum_duplicates()
    return normalized(matrix_NV)


def normalized(matrix: SparseMatrix) -> SparseMatrix:
    """Return the rows with unit length; zero rows stay zero."""
    norm_N = np.sqrt(matrix.multiply(matrix).sum(axis=1))
    scale_N = np.divide(1.0, norm_N, out=np.zeros_like(norm_N), where=norm_N > 0).astype(np.float32)
    return matrix.multiply(scale_N[:, None]).tocsr()
