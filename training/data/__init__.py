"""Contract 1: read the prepared dataset, and hold its label lists in flat arrays."""

from training.data.dataset import SPLITS, Dataset, DatasetMeta, Split, SplitName
from training.data.ragged import Ragged

__all__ = ["SPLITS", "Dataset", "DatasetMeta", "Ragged", "Split", "SplitName"]
