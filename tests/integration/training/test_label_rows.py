"""Classifier rows from label texts: ψ = g2 Φ(z) + η (SiameseXML)."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retrieval import open_bundle
from tests.support.command import run
from tests.support.listener import RecordingCallback
from tests.support.training.checkpoints import N_LABELS, SETTINGS, write_words
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.dataset import Dataset
from training.data.token_cache import tokenize_in_memory
from training.evaluation.checkpoint_evaluation import evaluate_checkpoint
from training.recipe.loading import load_recipe
from training.run import train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_words(tmp_path_factory.mktemp("rows") / "dataset")


@pytest.fixture(scope="module")
def opened(dataset: Dataset) -> Checkpoint:
    recipe = load_recipe("systems/siamesexml", [*SETTINGS, "validation.every_epochs=3"])
    train(dataset, recipe, dataset.folder.parent / "checkpoint", RecordingCallback())
    return load_checkpoint(dataset.folder.parent / "checkpoint")


def test_a_row_is_the_texts_vector_plus_the_residual(opened: Checkpoint, dataset: Dataset) -> None:
    """If it fails, a checkpoint has the residuals only, or trains free rows."""
    tokens = tokenize_in_memory(dataset.label_texts, opened.tokenizer)
    text_LC = torch.zeros(N_LABELS, opened.unified.classifier_dim)
    with torch.inference_mode():
        for rows, batch in tokens.batches_by_length(64):
            encoded_BE = opened.unified.encoder(batch.input_ids_BT, batch.attention_mask_BT)
            text_LC[rows] = opened.unified.classifier_vectors(encoded_BE)
    residual_LC = load_file(opened.folder / "state.safetensors")["model.classifier.weight"]
    assert residual_LC.any()
    torch.testing.assert_close(opened.unified.classifier_rows(), text_LC + residual_LC, atol=1e-4, rtol=1e-4)
    assert opened.trained_L.all(), "a label without positives has its text's vector, and needs no imputed row"


def test_validation_evaluate_and_bundle_use_the_same_rows(opened: Checkpoint, dataset: Dataset) -> None:
    """If it fails, a bundle ranks by other rows than those that were validated."""
    again = evaluate_checkpoint(opened.folder, dataset, "validation").metrics
    for head, values in opened.metrics.items():
        assert again[head] == pytest.approx(values, abs=1e-6)
    store = opened.folder.parent / "store"
    assert run("export", opened.folder, "--store", store, "--activate", "--vectors", "float32") == 0
    with open_bundle(store) as retriever:
        assert retriever.manifest.labels.imputed == 0
        rows_QK = retriever.search_rows(dataset.split("validation").texts, 12).rows_QK
    expected = evaluate_checkpoint(opened.folder, dataset, "validation").result.rankings["unified"]
    answers = [[row for row in rows if row not in (0, 5)][:10] for rows in rows_QK.tolist()]
    assert np.mean(np.array(answers) == expected) > 0.99, "equal but for ties"
