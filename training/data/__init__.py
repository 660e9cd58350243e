"""The reading side of training: what can be prepared, how it is checked, and the prepared dataset (contract 1)."""

from training.data.dataset import SPLITS, Dataset, DatasetMeta, Split, SplitName
from training.data.ragged import Ragged
from training.prepare.writing import write_dataset

__all__ = ["SPLITS", "Dataset", "DatasetMeta", "Ragged", "Split", "SplitName", "write_dataset"]
