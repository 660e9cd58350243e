"""Train on pairs with sentence-transformers, for pairs_per_second.py.

    python -m benchmarks.peers.sentence_transformers_trainer TASK OUT

MultipleNegativesRankingLoss over query and positive, mean pooling, float32. Other settings are defaults of the library,
including AdamW and batches. Nothing is logged, saved or evaluated.
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

from benchmarks.peers.watched_steps import StepRecorder, StepTask


class Steps(TrainerCallback):
    """Records every step."""

    def __init__(self, recorder: StepRecorder) -> None:
        self.recorder = recorder

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        """Record the end of a step."""
        self.recorder.step_ended()


def main() -> None:
    """Take the task's steps and write their cost to OUT."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    task, recorder = StepTask.read(folder), StepRecorder()
    torch.set_num_threads(task.threads)
    encoder = Transformer(task.model, max_seq_length=task.max_tokens, model_kwargs={"dtype": torch.float32})
    encoder.auto_model.get_input_embeddings().register_forward_pre_hook(recorder.on_forward)
    model = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), "mean")], device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        SentenceTransformerTrainer(
            model=model,
            args=arguments(task, temporary),
            train_dataset=Dataset.from_json(str(folder / "pairs.jsonl"), cache_dir=temporary),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[Steps(recorder)],
        ).train()
    recorder.write(out, task, ("sentence-transformers", "torch", "transformers", "tokenizers"))


def arguments(task: StepTask, folder: str) -> Any:
    """Return the arguments of a run with the task's number of steps, without logging, saving and evaluation."""
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
