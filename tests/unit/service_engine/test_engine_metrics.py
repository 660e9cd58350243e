"""Statistics of an engine reach the metrics of the service."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from retrieval import open_bundle
from service.engine.batch_searcher import BatchSearcher
from service.engine.protocol import HEAD, Batch, Query, decode_answers, encode_answers
from service.observe.metrics import Metrics
from tests.support.bundles import make_bundle


def test_full_scans_reach_the_metrics_once(tmp_path: Path) -> None:
    """If it fails, a bundle whose index returns too few candidates is slow, and no metric shows it."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    with open_bundle(make_bundle(tmp_path / "bundle", ["red shoes", "blue hats"])) as retriever:
        searcher = BatchSearcher(retriever)
        retriever._full_scans.add(3)
        for number in (1, 2):
            (frame,) = encode_answers(searcher.answer(Batch(number, [Query.create(["red"], 1)])))
            stages = decode_answers(frame[HEAD.size :]).stages
            metrics.observe_batch(1, stages[:4], stages.tokens, stages.padding, stages.full_scans)
    assert registry.get_sample_value("diptych_full_scans_total") == 3
