"""Small real bundles without any training: a tokenizer, an ONNX encoder of a few operators, vectors and an index.

The encoder is a mean of token vectors, projected twice; a label's classifier row is its own text's classifier half, so
a query finds the labels that share its words. Everything a reader does with a bundle is done here for real.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from retrieval import open_bundle
from retrieval.bundle.facts import (
    EfSearch,
    GoldenFacts,
    IndexFacts,
    IndexKind,
    LabelFacts,
    MemoryEfSearch,
    MemoryFacts,
    ModelFacts,
    Parity,
    Provenance,
    VectorPrecision,
)
from retrieval.bundle.golden_answers import Golden, record_golden, write_golden
from retrieval.bundle.labels import write_labels
from retrieval.bundle.manifest import (
    INDEX,
    LABEL_ENCODER,
    LABELS,
    MEMORY_INDEX,
    MEMORY_PROJECTION,
    MEMORY_QUERIES,
    MEMORY_VECTORS,
    NODES,
    PROJECTION,
    QUERY_ENCODER,
    TOKENIZER,
    VECTOR_SCALES,
    VECTORS,
)
from retrieval.bundle.memory_file import write_memory
from retrieval.bundle.memory_labels import MemoryLabels, VoteSettings
from retrieval.bundle.verified_files import seal
from retrieval.quantized_vectors import quantize
from retrieval.sandboxed_opening import verify_in_process
from retrieval.search.distinct_vectors import nodes_of
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import HnswIndex, Vectors
from retrieval.store.local import Store

WORDS = ["cheap", "running", "shoes", "red", "blue", "trail", "city", "rain", "winter", "summer", "kids", "light"]
WIDTH = 20  # directions that the index is about
MEMORY_SIZE, MEMORY_WIDTH = 150, 12  # training queries, and directions of their index
VOTES = VoteSettings(0.3, 0.1, 8)
GOLDEN_QUERIES = ("cheap running shoes", "red winter city", "light rain")


def label_texts(n_labels: int = 200, seed: int = 0) -> list[str]:
    """Return distinct texts of two to four words."""
    draw = np.random.default_rng(seed)
    texts: dict[str, None] = {}
    while len(texts) < n_labels:
        texts[" ".join(draw.choice(WORDS, draw.integers(2, 5), replace=False))] = None
    return list(texts)


def make_bundle(
    folder: Path,
    texts: Sequence[str] | None = None,
    *,
    seed: int = 0,
    prefix: str = "label",
    ef_search: Sequence[int | None] = (32, 32, 32),
    weight: float = 0.5,
    ids: Sequence[str] | None = None,
    attributes: Mapping[str, Sequence[object]] | None = None,
    created: str = "2026-11-22T00:00:00Z",
    memory: VoteSettings | None = None,
    vectors: VectorPrecision = "float32",
    kind: IndexKind = "hnsw",
) -> Path:
    """Write a bundle of `texts` into `folder`; bundles of different `seed` or `prefix` answer differently.

    `ef_search` are its values at weights 0, ½ and 1. Label ids are `{prefix}-{row}`, or `ids`; `attributes` are
    by default `market` and `year`. `memory`: the settings of a query memory of MEMORY_SIZE queries; None: no memory.
    `vectors` is the precision of the label vectors, `kind` that of the index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = label_texts() if texts is None else texts
    dual_dim, classifier_dim = 24, 16
    model = ModelFacts(
        encoder="static", dual_dim=dual_dim, classifier_dim=classifier_dim, max_tokens=16, max_characters=512,
        balance=0.5, pad_id=0, unknown_id=1, bytes_per_token=5.0,
    )  # fmt: skip
    _write_tokenizer(folder / TOKENIZER)
    _write_encoder(folder / QUERY_ENCODER, [dual_dim, classifier_dim], seed)
    _write_encoder(folder / LABEL_ENCODER, [dual_dim], seed)
    encoder = TextEncoder.open(folder / TOKENIZER, folder / QUERY_ENCODER, model, model.dim, threads=1)
    vectors_LD = encoder.encode(texts).vectors_BD * model.label_scale()
    _write_vectors(folder, vectors_LD, dual_dim, vectors)
    nodes = nodes_of(vectors_LD)
    if kind == "hnsw":
        directions_DW = np.ascontiguousarray(np.linalg.eigh(vectors_LD.T @ vectors_LD)[1][:, -WIDTH:])
        np.save(folder / PROJECTION, directions_DW)
        HnswIndex.build(vectors_LD[nodes.representatives] @ directions_DW, threads=1).save(folder / INDEX)
    shared = nodes.size < len(texts)
    if shared:
        np.save(folder / NODES, nodes.node_L)
    rows = range(len(texts))
    if attributes is None:
        attributes = {"market": [("US", "CA")[row % 2] for row in rows], "year": [2020 + row % 3 for row in rows]}
    write_labels(
        folder / LABELS, pa.table({"id": ids or [f"{prefix}-{row}" for row in rows], "text": list(texts), **attributes})
    )
    measured = tuple(
        EfSearch(weight=at, ef=ef if kind == "hnsw" else None, recall_at_10=1.0, recall_at_1=1.0)
        for at, ef in zip((0, 0.5, 1), ef_search, strict=True)
    )
    graph = {"width": WIDTH, "energy": 0.9, "m": 16, "ef_construction": 200} if kind == "hnsw" else {}
    index = IndexFacts(
        kind=kind, nodes=nodes.size if shared else None, recall_target=0.995, recall_queries=0, ef_search=measured,
        **graph,  # type: ignore[arg-type]  # validated by pydantic
    )  # fmt: skip
    remembered = None if memory is None else _write_memory(folder, encoder, texts, memory)
    write_golden(folder, Golden(weight=weight, answers=()))
    for queries in ((), GOLDEN_QUERIES):
        if queries:
            write_golden(folder, record_golden(open_bundle(folder, threads=1, paused=()), queries))
        seal(
            folder,
            created=created,
            source=Provenance(dataset="words", dataset_fingerprint="0" * 8, recipe="default", diptych_version="0.1.0"),
            labels=LabelFacts(count=len(texts), trained=len(texts), imputed=0, duplicates=0, zeros=0),
            precision="float32",
            vectors=vectors,
            classifier_weight=weight,
            model=model,
            index=index,
            memory=remembered,
            parity=Parity(queries=0, query_cosine=1.0, labels=0, label_cosine=1.0, longest_tokens=1),
            quality=None,
            golden=GoldenFacts(queries=len(queries), overlap_at_10=0.99, score_tolerance=1e-4),
        )
    return folder


def _write_vectors(folder: Path, vectors_LD: Vectors, dual_dim: int, precision: VectorPrecision) -> None:
    if precision == "float32":
        np.save(folder / VECTORS, vectors_LD)
        return
    codes_LD, scales_LH = quantize(vectors_LD, dual_dim)
    np.save(folder / VECTORS, codes_LD)
    np.save(folder / VECTOR_SCALES, scales_LH)


def memory_queries(label_texts: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Return MEMORY_SIZE distinct queries of three words, and for each the labels that share at least two of them."""
    draw = np.random.default_rng(7)
    queries: dict[str, list[int]] = {}
    while len(queries) < MEMORY_SIZE:
        words = draw.choice(WORDS, 3, replace=False).tolist()
        queries[" ".join(words)] = [
            row for row, text in enumerate(label_texts) if len({*words} & {*text.split()}) >= 2
        ][:20]  # fmt: skip
    return list(queries), list(queries.values())


def _write_memory(folder: Path, encoder: TextEncoder, texts: Sequence[str], settings: VoteSettings) -> MemoryFacts:
    queries, label_lists = memory_queries(texts)
    vectors_MH = np.ascontiguousarray(encoder.encode(queries).vectors_BD[:, 24:])
    directions_HW = np.ascontiguousarray(np.linalg.eigh(vectors_MH.T @ vectors_MH)[1][:, -MEMORY_WIDTH:])
    np.save(folder / MEMORY_VECTORS, vectors_MH)
    np.save(folder / MEMORY_PROJECTION, directions_HW)
    HnswIndex.build(vectors_MH @ directions_HW, threads=1).save(folder / MEMORY_INDEX)
    starts_M1 = np.concatenate([[0], np.cumsum([len(one) for one in label_lists])])
    label_V = np.concatenate(label_lists).astype(np.int32)
    weight_V = np.linspace(0.25, 1, len(label_V), dtype=np.float32)
    write_memory(folder / MEMORY_QUERIES, pa.array(queries), MemoryLabels(starts_M1, label_V, weight_V))
    return MemoryFacts(
        half="classifier", weight=settings.weight, temperature=settings.temperature, neighbours=settings.neighbours,
        queries=MEMORY_SIZE, width=MEMORY_WIDTH, energy=0.9, m=16, ef_construction=200, recall_target=0.99,
        recall_queries=0, ef_search=MemoryEfSearch(ef=64, recall=1.0), parity_queries=0, parity_cosine=1.0,
    )  # fmt: skip


def make_store(path: Path, *names: str, memory: VoteSettings | None = None) -> Store:
    """Make a store with one bundle per name; the first one is the oldest, and active.

    The label ids of a bundle begin with its name. The store verifies bundles in this process, which is faster.
    """
    store = Store(path, verify_in_process)
    for seed, name in enumerate(names):
        with store.incoming() as folder:
            created = f"2026-11-22T{seed:02}:00:00Z"
            store.publish(make_bundle(folder, seed=seed, prefix=name, created=created, memory=memory), name)
    store.activate(names[0])
    return store


def _write_tokenizer(path: Path) -> None:
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(16)
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def _write_encoder(path: Path, dims: list[int], seed: int) -> None:
    """Write an encoder: masked mean of token vectors, then one projection per half, each normalised to unit length."""
    draw = np.random.default_rng(seed)
    tables: dict[str, NDArray[np.float32]] = {"tokens": draw.standard_normal((len(WORDS) + 2, 32)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["tokens", "input_ids"], ["token_vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["token_vectors", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
    ]
    for half, dim in enumerate(dims):
        tables[f"w{half}"] = draw.standard_normal((32, dim)).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["mean", f"w{half}"], [f"half{half}"]),
            helper.make_node("LpNormalization", [f"half{half}"], [f"unit{half}"], axis=-1, p=2),
        ]
    nodes.append(helper.make_node("Concat", [f"unit{half}" for half in range(len(dims))], ["vectors"], axis=-1))
    initializers = [numpy_helper.from_array(table, name) for name, table in tables.items()]
    initializers += [numpy_helper.from_array(np.array([value]), name) for name, value in (("last", -1), ("one", 1))]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens_a_text"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", sum(dims)])
    graph = helper.make_graph(nodes, "encoder", inputs, [output], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
