"""Encode texts to vectors with a tokenizer and an ONNX Runtime session.

ONNX Runtime is imported when a session is opened, because the import starts a thread, and a process with threads
cannot be forked safely.

Suffixes: B texts of a batch, R of a run, T tokens, D output width.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retrieval.bundle.facts import ModelFacts
from retrieval.bundle.index_file import Buffer
from retrieval.bundle.model_file import external_files, large_weights
from retrieval.errors import BadInput, BundleError, one_line
from retrieval.query_text import encoder_texts
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.low_priority import at_low_priority, directly
from retrieval.system.safe_open import read_file

if TYPE_CHECKING:
    import onnxruntime

TEXTS_PER_RUN = 64
TEXTS_PER_THREAD = 4  # for a transformer on a CPU: more do not fit into a core's cache, see docs/decisions/0048
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of texts in order, with seconds per stage, the number of tokens and the number of padding tokens."""

    vectors_BD: NDArray[np.float32]
    tokenize_seconds: float
    encode_seconds: float
    tokens: int
    padding: int


class _Session(NamedTuple):
    """A session, and the memory outside of it that it uses."""

    session: "onnxruntime.InferenceSession"
    memory: list[object]


class TextEncoder:
    """One ONNX encoder of a bundle with its tokenizer; safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        open_session: Callable[[], _Session],
        facts: ModelFacts,
        dim: int,
        files: tuple[Path, Path],
        pool: ThreadPool,
        texts_per_run: int,
    ) -> None:
        """Combine parts that `load` has checked; `files` are those of the tokenizer and the model.

        `start` calls `open_session`. The threads of `pool` encode runs of at most `texts_per_run` texts.
        """
        self._tokenizer = tokenizer
        self._open_session: Callable[[], _Session] | None = open_session
        self._session: onnxruntime.InferenceSession | None = None
        self._memory: list[object] = []  # used by the session
        self._files = files
        self._facts = facts
        self._pool = pool
        self._texts_per_run = texts_per_run
        self.dim = dim

    @classmethod
    def open(
        cls,
        tokenizer: Path,
        model: Path,
        facts: ModelFacts,
        dim: int,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        low_priority: bool = False,
    ) -> Self:
        """Read both files and call `load`. Raises BundleError, and BadInput for an unavailable provider."""
        try:
            contents: dict[str, Buffer] = {tokenizer.name: read_file(tokenizer), model.name: read_file(model)}
            for name in external_files(model, contents[model.name]):
                contents[name] = read_file(model.parent / name)
        except OSError as error:
            raise BundleError(
                f"{error.filename} cannot be read ({error.strerror}). Export the bundle again."
            ) from error
        return cls.load(
            contents, tokenizer, model, facts, dim, threads=threads, provider=provider, low_priority=low_priority
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        contents: Mapping[str, Buffer],
        tokenizer: Path,
        model: Path,
        facts: ModelFacts,
        dim: int,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        low_priority: bool = False,
        deferred: bool = False,
    ) -> Self:
        """Load both files from their `contents`, by name; `dim` is the required width of the model's output.

        `threads` (default: one per core) each encode a few texts of a transformer; other models use one. With
        `low_priority`, files are loaded at low priority. `deferred`: `start` opens the session and starts the threads,
        in each process that is forked; these processes share the memory of large weights. Raises BundleError, and
        BadInput for an unavailable provider.
        """
        is_parallel = facts.encoder == "transformer" and provider == "cpu"
        pool = ThreadPool(threads if is_parallel else 1, started=False)
        texts = TEXTS_PER_THREAD if is_parallel else TEXTS_PER_RUN
        # The threads of a CUDA session exist as long as the session, and would keep the low priority.
        run = at_low_priority if low_priority and provider == "cpu" else directly
        loaded = run(lambda: _open_tokenizer(tokenizer, contents[tokenizer.name]))
        weights = large_weights(bytes(contents[model.name])) if deferred and provider == "cpu" else {}

        def open_session() -> _Session:
            return run(lambda: _open_session(model, contents, dim, provider, weights))

        encoder = cls(loaded, open_session, facts, dim, (tokenizer, model), pool, texts)
        if not deferred:
            encoder.start()
        return encoder

    def start(self) -> None:
        """Open the session and start the threads, once. Raises BundleError and BadInput."""
        if self._open_session is not None:
            self._session, self._memory = self._open_session()
            self._open_session = None  # frees the bytes of the model
            self._pool.start()

    def close(self) -> None:
        """Stop its threads after the calls in progress."""
        self._pool.close()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode texts in runs of similar length, so that few texts are padded to the length of a long one."""
        started = time.perf_counter()
        ids = self.tokenize(texts)
        tokenized = time.perf_counter()
        size = max(1, min(self._texts_per_run, math.ceil(len(ids) / self._pool.threads)))
        vectors_BD = self._run(ids) if len(ids) == size else self._in_runs(ids, size)
        seconds = (tokenized - started, time.perf_counter() - tokenized)
        return Encoded(vectors_BD, *seconds, *_tokens_and_padding([len(one) for one in ids], size))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, at least one per text."""
        # encode_batch releases the GIL, encode does not. The limit of characters bounds the work for one text.
        limit, read = self._facts.max_characters, encoder_texts(texts, self._facts.query_identity)
        try:
            encodings = self._tokenizer.encode_batch_fast([text[:limit] for text in read])
        except Exception as error:  # tokenizers raises Exception itself
            raise BundleError(
                f"{self._files[0]} fails on a text ({one_line(error)}). Export the bundle again."
            ) from error
        return [encoding.ids or [self._facts.unknown_id] for encoding in encodings]

    def _in_runs(self, ids: list[list[int]], size: int) -> NDArray[np.float32]:
        vectors_BD = np.empty((len(ids), self.dim), np.float32)
        order_B = np.argsort([-len(one) for one in ids], kind="stable")  # longest first, since they take the most time
        runs = [order_B[start : start + size].tolist() for start in range(0, len(ids), size)]
        results = self._pool.map(lambda run: self._run([ids[place] for place in run]), runs)
        for run, vectors_RD in zip(runs, results, strict=True):
            vectors_BD[run] = vectors_RD
        return vectors_BD

    def _run(self, ids: list[list[int]]) -> NDArray[np.float32]:
        length_B = [len(one) for one in ids]
        if self._session is None:
            raise BundleError(f"{self._files[1]} is not open in this process. Call `start` first.")
        longest, pad = max(length_B), [self._facts.pad_id]
        ids_BT = np.array([one + pad * (longest - len(one)) for one in ids], np.int64)
        mask_BT = (np.arange(longest) < np.array(length_B)[:, None]).astype(np.int64)
        try:
            vectors_BD = self._session.run(None, {"input_ids": ids_BT, "attention_mask": mask_BT})[0]
        except Exception as error:  # ONNX Runtime's errors share no narrower class
            raise BundleError(
                f"{self._files[1]} fails on a text ({one_line(error)}). Export the bundle again."
            ) from error
        if vectors_BD.shape != (len(ids), self.dim):
            raise BundleError(
                f"{self._files[1]} returned the shape {vectors_BD.shape}, not {len(ids), self.dim}. Export it again."
            )
        return cast(NDArray[np.float32], vectors_BD)


def _tokens_and_padding(length_B: list[int], size: int) -> tuple[int, int]:
    ordered, tokens = sorted(length_B, reverse=True), sum(length_B)
    runs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return tokens, sum(len(run) * run[0] for run in runs) - tokens


def _open_tokenizer(path: Path, content: Buffer) -> Tokenizer:
    try:
        loaded = Tokenizer.from_str(str(content, "utf-8"))
    except Exception as error:  # tokenizers raises Exception itself for every kind of bad file
        raise BundleError(f"{path} is not a tokenizer ({one_line(error)}). Export the bundle again.") from error
    loaded.no_padding()  # `_run` pads to the longest text of a run
    return loaded


def _open_session(
    model: Path, contents: Mapping[str, Buffer], dim: int, provider: str, weights: Mapping[str, NDArray[np.generic]]
) -> _Session:
    """Open a session on the bytes of a model; it uses the memory of `weights` instead of copies of them."""
    import onnxruntime

    provider_name = _provider_name(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # `ThreadPool` runs several texts in parallel
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if provider == "cpu":  # these fused kernels are slower than the kernels they replace, see docs/decisions/0026
        fusions = "SkipLayerNormFusion;BiasGeluFusion"
        options.add_session_config_entry("optimization.disable_specified_optimizers", fusions)
    else:
        onnxruntime.preload_dlls()  # finds CUDA libraries that were installed as Python packages
    external = external_files(model, contents[model.name])
    _add_external_weights(options, model, contents, external)
    shared = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    for name, value in zip(weights, shared, strict=True):
        options.add_initializer(name, value)
    try:
        session = onnxruntime.InferenceSession(contents[model.name], options, providers=[provider_name])
    except Exception as error:  # ONNX Runtime's errors share no narrower class
        raise BundleError(
            f"{model} is not a model that ONNX Runtime can read ({one_line(error)}). Export it again."
        ) from error
    if session.get_providers()[0] != provider_name:
        raise BadInput(f"ONNX Runtime could not start {provider!r} and fell back to {session.get_providers()[0]}.")
    inputs = {one.name: one.type for one in session.get_inputs()}
    outputs = [(one.type, one.shape[-1]) for one in session.get_outputs()]
    if inputs != dict.fromkeys(("input_ids", "attention_mask"), "tensor(int64)") or outputs != [("tensor(float)", dim)]:
        raise BundleError(
            f"{model} has the inputs {inputs} and outputs {outputs}; it needs input_ids and attention_mask, and an "
            f"output of {dim} floats. Export the bundle again."
        )
    return _Session(session, [*weights.values(), *shared])


def _add_external_weights(
    options: "onnxruntime.SessionOptions", model: Path, contents: Mapping[str, Buffer], names: Sequence[str]
) -> None:
    """Pass the weights that a model keeps in other files of its bundle: the verified bytes, not the paths."""
    if missing := [name for name in names if name not in contents]:
        raise BundleError(f"{model} refers to {missing[0]}, which is not a file of weights. Export the bundle again.")
    if not names:
        return
    import onnxruntime

    if not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise BundleError(
            f"{model} keeps its weights in {names[0]}, which onnxruntime {onnxruntime.__version__} cannot take from "
            "memory. Install a newer onnxruntime."
        )
    written = [contents[name] for name in names]
    options.add_external_initializers_from_files_in_memory(list(names), written, [len(one) for one in written])


def _provider_name(name: str) -> str:
    import onnxruntime

    if name not in PROVIDERS:
        raise BadInput(f"provider {name!r} is unknown. Choose one of: {', '.join(PROVIDERS)}.")
    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        raise BadInput(f"provider {name!r} is not in the installed ONNX Runtime. Install 'diptych[gpu]', or use 'cpu'.")
    return PROVIDERS[name]
