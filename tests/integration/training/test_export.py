"""`diptych export` on a small trained checkpoint: the content of the bundle, and the store after a failed export."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.build import export as build
from export.job import ExportSettings
from export.quality import bundle_quality
from retrieval import Retriever, open_bundle
from retrieval.bundle.facts import LabelFacts
from retrieval.errors import BundleError, CheckpointError, GateError
from retrieval.open import open_store
from retrieval.quantized_vectors import quantize
from retrieval.store.local import Store
from retrieval.system.progress import silent_stage
from tests.support.command import run
from tests.support.training.checkpoints import N_LABELS, export_to_store
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.evaluation.checkpoint_evaluation import selected_mix
from training.evaluation.imputation import impute


@pytest.fixture(scope="module")
def small(words_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the checkpoint, so that tests may write next to it."""
    return shutil.copytree(words_checkpoint.parent, tmp_path_factory.mktemp("small") / "words") / "checkpoint"


@pytest.fixture(scope="module")
def opened(small: Path) -> Checkpoint:
    return load_checkpoint(small)


@pytest.fixture(scope="module")
def store(small: Path) -> Store:
    return export_to_store(small)


@pytest.fixture(scope="module")
def retriever(store: Store) -> Retriever:
    return open_bundle(store.path)


@pytest.fixture(scope="module")
def whole(small: Path) -> Retriever:
    """A bundle of the same checkpoint with float32 vectors and a graph, as older releases wrote it."""
    settings = ExportSettings(vectors="float32", index="hnsw", m=8, ef_construction=50)
    return open_bundle(build(small, open_store(small.parent / "whole"), settings=settings).path)


def test_a_checkpoint_without_its_memory_is_refused(small: Path, tmp_path: Path) -> None:
    """If it fails, export ends in a traceback, or the bundle gives other answers than validation measured."""
    folder = shutil.copytree(small, tmp_path / "checkpoint")
    (folder / "memory.parquet").unlink()
    with pytest.raises(CheckpointError, match=r"memory\.parquet cannot be read"):
        load_checkpoint(folder)


def test_the_manifest_records_what_was_checked(retriever: Retriever, opened: Checkpoint) -> None:
    """If it fails, a bundle is published without the measurements that its manifest should record."""
    manifest = retriever.manifest
    trained = int(opened.trained_L.sum())
    assert manifest.labels == LabelFacts(
        count=N_LABELS, trained=trained, imputed=N_LABELS - trained, duplicates=0, zeros=0
    )
    assert manifest.classifier_weight == opened.classifier_weight
    assert min(manifest.parity.query_cosine, manifest.parity.label_cosine) >= 0.9999
    assert (manifest.index.recall_queries, manifest.parity.labels) == (120, N_LABELS)
    assert manifest.parity.queries > 120, "no query was as long as a query may be"
    assert manifest.parity.longest_tokens == opened.max_tokens
    memory = manifest.memory
    assert memory is not None, "validation selected no votes, so the memory is not tested"
    assert memory.votes == opened.facts.best.votes
    assert memory.parity_cosine >= 0.9999
    assert memory.ef_search.recall >= 0.97
    assert opened.memory is not None
    assert (memory.queries, memory.half) == (len(opened.memory), "classifier")
    assert {0.0, 0.25, 0.5, 0.75, 1.0, opened.classifier_weight} == {one.weight for one in manifest.index.ef_search}
    assert all(one.recall_at_10 >= 0.99 for one in manifest.index.ef_search)
    assert manifest.quality is not None
    for figure in ("P@1", "P@5"):
        assert manifest.quality.checkpoint[figure] == pytest.approx(opened.metrics["unified"][figure], abs=1e-6)
        assert manifest.quality.bundle[figure] == pytest.approx(manifest.quality.checkpoint[figure], abs=1.0)
    assert manifest.quality.seen_labels is not None
    seen = opened.facts.best.seen_metrics["unified"]
    assert manifest.quality.seen_labels["P@1"] == pytest.approx(seen["P@1"], abs=1.0)
    assert retriever.check_golden().queries == manifest.golden.queries == 100


def test_the_vectors_are_those_of_the_checkpoint(whole: Retriever, opened: Checkpoint) -> None:
    """If it fails, labels have the vectors of other labels, or untrained labels have zero or random ones."""
    dual_dim, retriever = opened.unified.dual_dim, whole
    halves_LD = retriever.vectors_LD[:] / retriever.manifest.model.label_scale()
    psi_LC = opened.unified.classifier_rows().numpy()
    unit_LC = psi_LC / np.maximum(np.linalg.norm(psi_LC, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(np.linalg.norm(halves_LD[:, :dual_dim], axis=1), 1.0, atol=1e-5)
    unit_LC *= opened.trained_L[:, None]
    popularity_L = np.log1p(opened.positives_L) / np.log1p(opened.positives_L.max())
    half_LC = np.column_stack([unit_LC, np.sqrt(selected_mix(opened).popularity) * popularity_L])
    direction_C = half_LC.sum(axis=0) / np.linalg.norm(half_LC.sum(axis=0))
    half_LC[~opened.trained_L, :-1] = impute(
        halves_LD[:, :dual_dim], opened.unified.classifier_rows(), opened.trained_L
    ).rows(opened.cone_fraction)
    shrunk_LC = half_LC - (1 - retriever.manifest.model.cone_shrink) * np.outer(half_LC @ direction_C, direction_C)
    np.testing.assert_allclose(halves_LD[:, dual_dim:], shrunk_LC, atol=1e-5)
    assert retriever.manifest.model.classifier_dim == opened.unified.classifier_dim + 1
    assert selected_mix(opened).popularity > 0
    assert not opened.trained_L.all()
    assert retriever.manifest.model.cone_shrink < 1, "the checkpoint has no cone: nothing was put to the test"


def test_the_bundle_has_the_label_table(retriever: Retriever, opened: Checkpoint) -> None:
    """If it fails, answers lose ids or attributes of the dataset."""
    assert retriever.labels.table.to_pylist() == opened.labels.to_pylist()
    assert retriever.labels.table.column_names == opened.labels.column_names
    assert retriever.search(["cheap red shoes"], 1)[0][0].attributes == {"market": "US"}


def test_the_default_name_is_readable(store: Store) -> None:
    """If it fails, a store's bundles cannot be told apart, or a dataset's name breaks the bundle's."""
    assert str(store.active()).startswith("words-more-default-20")


def test_a_second_export_has_another_name(small: Path, store: Store) -> None:
    """If it fails, exporting twice fails, or replaces a bundle that is being served."""
    before = store.active()
    second = build(small, store, settings=ExportSettings(m=8, ef_construction=50, index="hnsw"))
    assert second.name != before
    assert second.manifest.index.m == 8
    assert store.active() == before
    assert len(store.bundles()) == 2


def test_a_name_in_use_is_an_error_before_any_work(small: Path, store: Store) -> None:
    """If it fails, a long export fails at its end because its name is in use."""
    stages: list[str] = []
    name = str(store.active())

    def stage(title: str) -> object:
        stages.append(title)
        return silent_stage(title)

    for refused, said in ((name, f"already has a bundle '{name}'"), ("../away", "not a bundle name")):
        with pytest.raises(BundleError, match=said):
            build(small, store, name=refused, stage=stage)  # type: ignore[arg-type]
    assert stages == []


@pytest.mark.parametrize(
    ("gate", "value", "said"),
    [
        ("parity.MIN_COSINE", 1.5, r"parity: .* at least 1\.5 is required"),
        ("index.recall.MIN_RECALL", 1.5, r"recall: .*Raise --m"),
    ],
)
def test_a_failed_gate_leaves_nothing_in_the_store(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str, value: float, said: str
) -> None:
    """If it fails, a bundle that failed a gate can be activated, or fills the disk."""
    monkeypatch.setattr(f"export.{gate}", value)
    store = open_store(tmp_path / "store")
    with pytest.raises(GateError, match=said):
        build(small, store, settings=ExportSettings(index="hnsw"))
    assert store.bundles() == []
    assert list((store.path / ".incoming").iterdir()) == []


def test_vectors_are_in_int8_by_default(retriever: Retriever, whole: Retriever) -> None:
    """If it fails, a bundle has four times as many bytes as it needs, or its vectors are not the checkpoint's."""
    assert (retriever.manifest.vectors, retriever.manifest.format_version) == ("int8", 6)
    assert (whole.manifest.vectors, whole.manifest.format_version) == ("float32", 4)
    step = np.abs(whole.vectors_LD[:]).max() / 127
    np.testing.assert_allclose(retriever.vectors_LD[:], whole.vectors_LD[:], atol=0.51 * step)
    assert retriever.manifest.labels == whole.manifest.labels


def test_int8_that_loses_quality_is_not_used(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a bundle loses answers to save memory, or the default cannot export such a checkpoint."""

    def too_coarse(vectors_BD: np.ndarray, dual_dim: int) -> tuple[np.ndarray, np.ndarray]:
        codes_BD, scales_BH = quantize(vectors_BD, dual_dim)
        return np.where(np.arange(codes_BD.shape[1]) == 0, codes_BD, 0), scales_BH  # one number of each vector

    monkeypatch.setattr("export.index.int8_vectors.quantize", too_coarse)
    store = open_store(tmp_path / "store")
    with pytest.raises(GateError, match=r"int8 lower P@\d by more than .* points. Export with --vectors float32"):
        build(small, store, settings=ExportSettings(vectors="int8"))
    exported = build(small, store, settings=ExportSettings(index="exact")).manifest
    assert exported.vectors == "float32"
    assert "vector_scales.npy" not in exported.files


def test_the_index_is_exact_if_that_is_faster_or_the_graph_finds_too_few(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a small catalogue is refused or answers slowly, although comparing all labels would do."""
    store = open_store(tmp_path / "store")
    monkeypatch.setattr("export.index.kind.median_seconds", lambda searches, vectors: [2.0, 1.0])
    assert build(small, store, settings=ExportSettings(m=8)).manifest.index.kind == "hnsw"
    monkeypatch.setattr("export.index.kind.median_seconds", lambda searches, vectors: [1.0, 2.0])
    assert build(small, store, settings=ExportSettings(m=8)).manifest.index.kind == "exact"
    monkeypatch.setattr("export.index.recall.MIN_RECALL", 1.5)
    exported = build(small, store, settings=ExportSettings(m=8))
    assert exported.manifest.index.kind == "exact"
    assert not {"index.hnsw", "directions.npy"} & exported.manifest.files.keys()
    with open_bundle(exported.path) as reader:
        assert reader.check_golden().passed


def test_a_bundle_that_is_worse_than_its_checkpoint_is_not_published(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a bundle whose encoder or index lost accuracy is published."""

    def worse(*asked: object) -> tuple[dict[str, float], None]:
        values, _ = bundle_quality(*asked)  # type: ignore[arg-type]
        return {figure: value - 5 for figure, value in values.items()}, None

    monkeypatch.setattr("export.job.bundle_quality", worse)
    with pytest.raises(GateError, match=r"quality: P@1 of the bundle is"):
        build(small, open_store(tmp_path / "store"))
    assert open_store(tmp_path / "store").bundles() == []


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, a mistyped folder ends in a traceback."""
    with pytest.raises(CheckpointError, match="no checkpoint"):
        build(tmp_path, open_store(tmp_path / "store"))
    assert run("export", tmp_path, "--store", tmp_path / "store") == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a checkpoint")


def test_a_store_that_cannot_be_written_is_named(small: Path, tmp_path: Path) -> None:
    """If it fails, a full or read-only disk ends in a traceback."""
    (tmp_path / "store").write_text("a file where the store should be")
    with pytest.raises(BundleError, match="cannot be changed"):
        build(small, open_store(tmp_path / "store"))


def test_int8_of_a_static_encoder_fails_with_measurements(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, an int8 bundle that is not faster is published, or the error lacks the measurements."""
    store = open_store(tmp_path / "store")
    assert run("export", small, "--store", store.path, "--name", "small", "--precision", "int8") == 1
    said = capsys.readouterr().err
    figures = r"P@1 is (\d+\.\d\d), with float32 \1 .* batches of 1, .* batches of 64, .* speed-up is"
    assert re.search(
        rf"error: precision: int8 has no benefit for this model: {figures}.*Export with --precision float32\.\n$", said
    )
    assert store.bundles() == []
    assert list((store.path / ".incoming").iterdir()) == []


def test_float16_answers_as_float32_and_the_manifest_records_its_loss(small: Path, retriever: Retriever) -> None:
    """If it fails, a bundle for GPUs has different answers, or its manifest lacks the loss."""
    store = open_store(small.parent / "half")
    built = build(small, store, settings=ExportSettings(precision="float16"))
    reduced = built.manifest.reduced
    assert reduced is not None
    assert (built.manifest.precision, reduced.speeds) == ("float16", ())
    assert reduced.least_cosine > 0.9999
    assert abs(reduced.float32_p_at_1 - reduced.p_at_1) <= 100 / reduced.queries + 1e-9
    assert (retriever.manifest.precision, retriever.manifest.reduced) == ("float32", None)
    assert built.manifest.golden.score_tolerance > retriever.manifest.golden.score_tolerance
    files = built.manifest.files.keys()
    assert files == retriever.manifest.files.keys(), "something was left in the folder"
    with open_bundle(built.path) as half:
        assert np.array_equal(half.vectors_LD[:], retriever.vectors_LD[:]), "labels are encoded in float32"
