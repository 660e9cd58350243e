"""The metrics and heads that every table shows, and the one explanation of each.

The training console, `diptych evaluate`, report.html and `diptych export` take their columns from here.
"""

from collections.abc import Container, Iterable, Sequence

HEADLINE_METRICS = ("P@1", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@10", "C@10")
KEY_METRICS = ("P@1", "P@5", "R@10", "PSP@5")  # for tables with many rows or columns
EXPORT_METRICS = ("P@1", "P@5", "PSP@5")  # of the metrics that the quality check of an export computes
CLICK_METRICS = ("wP@1", "wP@5", "wR@10")  # of queries with click weights
LABEL_GROUP_METRICS = ("R@10", "P@5")  # of a group of labels

UNIFIED = "unified"
HEADS = {UNIFIED: "unified", "dual_encoder": "dual encoder", "classifier": "classifier"}  # key: name for readers
TUNED = "tuned"  # the unified model with the tuned weight, in addition to a fixed one
ALL_LABELS, SEEN_LABELS = "all labels", "labels with training positives only"

METRIC_EXPLANATIONS = {
    "P@k": "precision: the share of the first k answers that are true labels",
    "R@k": "recall: the share of a query's true labels among its first k answers",
    "nDCG@k": "precision in which a true label counts more the higher it ranks",
    "PSP@k": "propensity-scored precision: rare labels count more, 100 is the best possible ranking",
    "wP@k": "click-weighted precision: clicks of the true labels among the first k answers, 100 is the best ranking",
    "wR@k": "click-weighted recall: the share of all clicks that fall on the first k answers of their query",
    "C@k": "coverage: the share of distinct true labels that at least one query finds in its first k answers",
}
HEAD_EXPLANATIONS = {
    "unified": "the weighted sum of both scores, and the one that is served",
    "dual_encoder": "compares the texts of query and label, so it also finds labels without training queries",
    "classifier": "has one learned vector per label, so it is strong for labels with many training queries",
    TUNED: "the unified model with the weight that is best on validation, instead of the recipe's fixed weight",
}


def shown_heads(values: Container[str]) -> dict[str, str]:
    """Return the heads that `values` has with their names: a cascade has only the unified model."""
    return {head: name for head, name in (HEADS | {TUNED: "tuned weight"}).items() if head in values}


def shown_metrics(names: Sequence[str], values: Container[str], clicks: Sequence[str] = CLICK_METRICS) -> list[str]:
    """Return `names`, followed by those click-weighted metrics that `values` has."""
    return [*names, *(name for name in clicks if name in values)]


def metric_explanations(values: Iterable[str]) -> dict[str, str]:
    """Return the explanations of metrics; of the click-weighted ones only if `values` has them."""
    kinds = {name.split("@")[0] for name in values}
    return {name: text for name, text in METRIC_EXPLANATIONS.items() if name[0] != "w" or name.split("@")[0] in kinds}
