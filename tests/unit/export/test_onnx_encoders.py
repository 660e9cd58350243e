"""The ONNX encoders have the vectors of their model, for all batch sizes and lengths and both kinds of encoder."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModel, DistilBertConfig

from export.encoders import write_encoders
from export.geometry import Cone
from training.model.row_table import RowTable
from training.model.static_encoder import StaticEncoder
from training.model.transformer_encoder import TransformerEncoder
from training.model.unified import UnifiedModel
from training.recipe.schema import Recipe

VOCABULARY, N_LABELS = 200, 1000
BIAS = 0.4
SHAPES = [(1, 1), (1, 9), (5, 5), (2, 1), (33, 12), (4, 40)]


def static() -> StaticEncoder:
    encoder = StaticEncoder(RowTable(torch.randn(VOCABULARY, 24)), torch.zeros(VOCABULARY, 1), 50)
    assert encoder.pairs is not None
    for table in (encoder.weights, encoder.places, encoder.pairs):
        table.weight.normal_(generator=torch.Generator().manual_seed(1))
    return encoder


def transformer() -> TransformerEncoder:
    config = DistilBertConfig(vocab_size=VOCABULARY, dim=24, n_layers=2, n_heads=2, hidden_dim=48)
    return TransformerEncoder(AutoModel.from_config(config))


@pytest.mark.parametrize("make", [static, transformer])
def test_onnx_equals_torch(make: type, tmp_path: Path) -> None:
    """If it fails, a bundle encodes queries or labels differently from the trained model."""
    torch.manual_seed(0)
    recipe = Recipe.model_validate({"name": "small", "heads": {"dual_encoder": {"dim": 16}, "classifier": {"dim": 8}}})
    model = UnifiedModel(make(), recipe, n_labels=N_LABELS).eval()
    cone = Cone(np.full(9, 9**-0.5, np.float32), 0.5)
    write_encoders(model, cone, BIAS, tmp_path)
    query, label = (onnxruntime.InferenceSession(str(tmp_path / f"{name}_encoder.onnx")) for name in ("query", "label"))
    for batch, length in SHAPES:
        ids_BT = torch.randint(1, VOCABULARY, (batch, length))
        lengths_B1 = torch.randint(1, length + 1, (batch, 1))
        mask_BT = (torch.arange(length) < lengths_B1).long()
        inputs = {"input_ids": (ids_BT * mask_BT).numpy(), "attention_mask": mask_BT.numpy()}
        with torch.inference_mode():
            dual, classifier = model.query_vectors(ids_BT * mask_BT, mask_BT)
            labels = model.label_vectors(ids_BT * mask_BT, mask_BT)
        with_bias = np.concatenate([classifier, np.full((batch, 1), BIAS, np.float32)], 1)
        expected = np.concatenate([dual, cone.invert(with_bias)], 1)
        np.testing.assert_allclose(query.run(None, inputs)[0], expected, atol=1e-5)
        np.testing.assert_allclose(label.run(None, inputs)[0], labels, atol=1e-5)
    # ψ has one row per label: it belongs to vectors.npy, and would make the encoder grow with the catalogue.
    shapes = [list(one.dims) for one in onnx.load(tmp_path / "query_encoder.onnx").graph.initializer]
    assert shapes
    assert not [shape for shape in shapes if N_LABELS in shape]
