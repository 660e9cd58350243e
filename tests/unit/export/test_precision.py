"""Query encoders of reduced precision: their vectors, what stays float32, and when the gate fails."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.encoders import write_query_encoder
from export.geometry import Cone
from export.int8 import SmoothedLinear, quantize, smooth
from export.precision import HalfEncoder, check_precision, replaced_encoder
from retrieval.bundle.facts import ModelFacts, Reduced, Speed
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from tests.support.training.pretrained import HIDDEN, save_tiny_bert
from training.checkpoint.files import read_tokenizer
from training.data.token_cache import TextTokenizer, TokenizedTexts, tokenize_in_memory
from training.model.pretrained import transformer
from training.model.transformer_encoder import TransformerEncoder
from training.model.unified import UnifiedModel
from training.recipe.schema import Recipe
from training.recipe.sections import TransformerEncoderRecipe

WORDS = [f"w{number}" for number in range(60)]
TEXTS = [" ".join(WORDS[(3 * start + step) % 60] for step in range(1 + start % 7)) for start in range(90)]
CONE = Cone(np.zeros(HIDDEN + 1, np.float32), 1.0)
FACTS = ModelFacts(
    encoder="transformer", dual_dim=HIDDEN, classifier_dim=HIDDEN + 1, balance=0.5, max_tokens=16, max_characters=1024,
    pad_id=0, unknown_id=1, bytes_per_token=3.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture(scope="module")
def model(bert: Path) -> UnifiedModel:
    """Return a BERT with a few columns that are many times larger than the others, as in trained models."""
    recipe = Recipe.model_validate({"name": "small", "encoder": {"kind": "transformer", "model": str(bert)}})
    assert isinstance(recipe.encoder, TransformerEncoderRecipe)
    torch.manual_seed(0)
    made = UnifiedModel(TransformerEncoder(transformer(recipe.encoder)), recipe, n_labels=10).eval()
    with torch.no_grad():
        for name, weight in made.encoder.named_parameters():
            if name.endswith("LayerNorm.weight"):
                weight[:2] *= 30
    return made


@pytest.fixture(scope="module")
def tokens(bert: Path) -> TokenizedTexts:
    return tokenize_in_memory(TEXTS, TextTokenizer(read_tokenizer(bert / "tokenizer.json"), 0))


def encoded(bert: Path, path: Path, texts: list[str]) -> np.ndarray:
    return TextEncoder.open(bert / "tokenizer.json", path, FACTS, FACTS.dim, threads=1).encode(texts).vectors_BD


def least_cosine(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return float(((one_ND * other_ND).sum(axis=1) / lengths_N).min())


def test_smoothing_changes_no_vector(model: UnifiedModel, tokens: TokenizedTexts) -> None:
    """If it fails, smoothing changes the model before it is quantised."""
    assert isinstance(model.encoder, TransformerEncoder)
    even, batch = smooth(model.encoder, tokens), tokens.padded()
    layers = [one for one in even.modules() if isinstance(one, SmoothedLinear)]
    assert len(layers) == 2 * 6, "two layers, each query, key, value, output, up and down"
    assert len({id(one.factor_E) for one in layers}) == 2 * 4, "query, key and value read the same"
    with torch.no_grad():
        before_BE, after_BE = (one(batch.input_ids_BT, batch.attention_mask_BT) for one in (model.encoder, even))
    torch.testing.assert_close(after_BE, before_BE, atol=1e-4, rtol=1e-4)
    assert not [one for one in model.encoder.modules() if isinstance(one, SmoothedLinear)], "the model itself changed"


def test_int8_answers_nearly_as_float32(
    model: UnifiedModel, tokens: TokenizedTexts, bert: Path, tmp_path: Path
) -> None:
    """If it fails, int8 loses too much accuracy, or a query's vector depends on the other queries of its batch."""
    assert isinstance(model.encoder, TransformerEncoder)
    plain, even, own, rough = (tmp_path / f"{name}.onnx" for name in ("plain", "even", "own", "rough"))
    write_query_encoder(model, CONE, 0.1, plain)
    with replaced_encoder(model, smooth(model.encoder, tokens)):
        write_query_encoder(model, CONE, 0.1, even)
    quantize(even, own, tokens)
    quantize(plain, rough, tokens)
    exact_ND = encoded(bert, plain, TEXTS)
    own_ND = encoded(bert, own, TEXTS)
    assert least_cosine(exact_ND, own_ND) > 0.995
    assert least_cosine(exact_ND, own_ND) > least_cosine(exact_ND, encoded(bert, rough, TEXTS)), (
        "smoothing does nothing"
    )
    alone_ND = np.concatenate([encoded(bert, own, [text]) for text in TEXTS[:20]])
    np.testing.assert_allclose(alone_ND, own_ND[:20], atol=2e-3)


def test_only_the_layers_linear_maps_become_int8(model: UnifiedModel, tokens: TokenizedTexts, tmp_path: Path) -> None:
    """If it fails, heads, embeddings or attention lose accuracy without a speed-up."""
    write_query_encoder(model, CONE, 0.1, tmp_path / "plain.onnx")
    quantize(tmp_path / "plain.onnx", tmp_path / "own.onnx", tokens)
    graph = onnx.load(tmp_path / "own.onnx").graph
    bytes_ = [one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2]
    assert len(bytes_) == 2 * 6
    scales = {one.name: one for one in graph.initializer}
    widths = [
        len(onnx.numpy_helper.to_array(scales[node.input[1]]))
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in {one.name for one in bytes_}
    ]
    assert sorted(widths) == sorted(one.dims[1] for one in bytes_), "one scale for all columns, not one for each"


def test_float16_keeps_what_goes_in_and_out(model: UnifiedModel, bert: Path, tmp_path: Path) -> None:
    """If it fails, a float16 bundle cannot be opened, or it has different answers."""
    write_query_encoder(model, CONE, 0.1, tmp_path / "plain.onnx")
    own = model.encoder
    with replaced_encoder(model, HalfEncoder(own)):
        write_query_encoder(model, CONE, 0.1, tmp_path / "half.onnx")
    assert model.encoder is own
    assert {one.dtype for one in own.parameters()} == {torch.float32}, "the model itself was halved"
    kinds = {one.data_type for one in onnx.load(tmp_path / "half.onnx").graph.initializer if len(one.dims) == 2}
    assert onnx.TensorProto.FLOAT16 in kinds
    exact_ND, half_ND = (encoded(bert, tmp_path / name, TEXTS) for name in ("plain.onnx", "half.onnx"))
    assert half_ND.dtype == np.float32
    assert least_cosine(exact_ND, half_ND) > 0.9999


def test_texts_encoded_side_by_side_keep_their_places(model: UnifiedModel, bert: Path, tmp_path: Path) -> None:
    """If this failed, encoding on several threads would mix up or change the vectors of a batch."""
    write_query_encoder(model, CONE, 0.1, tmp_path / "plain.onnx")
    files = bert / "tokenizer.json", tmp_path / "plain.onnx"
    encoder = TextEncoder.open(*files, FACTS, FACTS.dim, threads=3)
    alone_ND = np.concatenate([encoder.encode([text]).vectors_BD for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS).vectors_BD, alone_ND, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 pays on a GPU only, and there is none here")
def test_float16_opens_on_a_gpu(model: UnifiedModel, bert: Path, tmp_path: Path) -> None:
    """If it fails, float16, which is meant for GPUs, does not run on one."""
    with replaced_encoder(model, HalfEncoder(model.encoder)):
        write_query_encoder(model, CONE, 0.1, tmp_path / "half.onnx")
    on = {
        provider: TextEncoder.open(
            bert / "tokenizer.json", tmp_path / "half.onnx", FACTS, FACTS.dim, provider=provider
        ).encode(TEXTS)
        for provider in ("cpu", "cuda")
    }
    assert least_cosine(on["cpu"].vectors_BD, on["cuda"].vectors_BD) > 0.999


@pytest.mark.parametrize(
    ("p_at_1", "alone", "together", "queries", "accepted"),
    [
        (79.6, 250.0, 2500.0, 1000, True),
        (79.4, 250.0, 2500.0, 1000, False),
        (79.2, 250.0, 2500.0, 120, True),
        (79.0, 250.0, 2500.0, 120, False),
        (80.0, 290.0, 1900.0, 1000, True),
        (80.0, 210.0, 1800.0, 1000, False),
        (80.0, 100.0, 1000.0, 1000, False),
    ],
)
def test_int8_must_be_as_good_and_faster(
    p_at_1: float, alone: float, together: float, queries: int, accepted: bool
) -> None:
    """If it fails, an int8 bundle that is worse or hardly faster is published, or a good one is rejected."""
    speeds = (Speed(batch=1, float32=100, reduced=alone), Speed(batch=64, float32=1000, reduced=together))
    reduced = Reduced(
        queries=queries, least_cosine=0.99, mean_cosine=0.995, float32_p_at_1=80.0, p_at_1=p_at_1, speeds=speeds
    )
    answers, speed = rf"is {p_at_1:.2f}, with float32 80\.00", rf"{alone:.0f} .* 100; .* {together:,.0f} .* 1,000"
    with nullcontext() if accepted else pytest.raises(GateError, match=rf"int8 .* {answers} .* {speed}; .* speed-up"):
        check_precision(reduced, "int8")


def test_float16_is_checked_only_by_its_answers() -> None:
    """If it fails, float16 is rejected for its speed on a CPU, for which it is not meant."""
    kept = Reduced(queries=999, least_cosine=1.0, mean_cosine=1.0, float32_p_at_1=80.0, p_at_1=79.9, speeds=())
    check_precision(kept, "float16")
    with pytest.raises(
        GateError, match=r"^precision: float16 has no benefit .*: P@1 is 70\.00, .* Export with --precision"
    ):
        check_precision(kept.model_copy(update={"p_at_1": 70.0}), "float16")
