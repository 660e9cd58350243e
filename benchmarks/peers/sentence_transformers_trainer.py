"""Pairs learned by sentence-transformers' own trainer, for pairs_per_second.py.

    python -m benchmarks.peers.sentence_transformers_trainer TASK OUT

MultipleNegativesRankingLoss over query and positive, mean pooling, float32; everything that is not said here is as
the library has it, its AdamW and its batches among it. Nothing is logged, saved or evaluated.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from sentence_transformers import (  # type: ignore[import-not-found]
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (  # type: ignore[import-not-found]
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer  # type: ignore[import-not-found]
from transformers import TrainerCallback

from benchmarks.peers.watched_steps import StepTask, StepWatch


class Steps(TrainerCallback):
    """Tells the watch of every step."""

    def __init__(self, watch: StepWatch) -> None:
        self.watch = watch

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        """The optimizer has moved the weights."""
        self.watch.step_ended()


def main() -> None:
    """Learn the task's steps and write what they took to OUT."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    task, watch = StepTask.read(folder), StepWatch()
    torch.set_num_threads(task.threads)
    encoder = Transformer(task.model, max_seq_length=task.max_tokens, model_kwargs={"dtype": torch.float32})
    encoder.auto_model.get_input_embeddings().register_forward_pre_hook(watch.reads)
    model = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), "mean")], device="cpu")
    with tempfile.TemporaryDirectory() as nothing:
        SentenceTransformerTrainer(
            model=model,
            args=arguments(task, nothing),
            train_dataset=Dataset.from_json(str(folder / "pairs.jsonl"), cache_dir=nothing),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[Steps(watch)],
        ).train()
    watch.write(out, task, ("sentence-transformers", "torch", "transformers", "tokenizers"))


def arguments(task: StepTask, folder: str) -> Any:
    """A run of the task's length that does nothing but learn."""
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=task.batch,
        max_steps=task.warm + task.steps,
        seed=task.seed,
        use_cpu=True,
        fp16=False,
        bf16=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
