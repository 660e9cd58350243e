"""Transformer encoders: Φ as the mean of a Hugging Face encoder's last hidden states, or as [CLS] of several layers.

Shapes: B texts, G texts of a group of similar length, T tokens of the longest text, S tokens of all groups, E width of
the encoder, H width of a layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retrieval.errors import RecipeError

# Minimum number of tokens per call of the transformer. Texts of the next length join a smaller group, because the fixed
# cost of a call is about that of so many tokens. Measured on a CPU, estimated for a GPU.
MIN_TOKENS = {"cpu": 256, "cuda": 4096}


class TransformerEncoder(nn.Module):
    """A Hugging Face encoder with mean pooling."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.width = int(transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Encode token ids and mask, int64 [B, T], as float [B, E]."""
        if self.training:
            return self._by_length(input_ids_BT, attention_mask_BT)
        return self._pooled(attention_mask_BT, input_ids=input_ids_BT)

    def _by_length(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Encode groups of similar length separately: more than half of a batch of short texts is padding."""
        lengths_B = attention_mask_BT.sum(dim=1)
        order_B = lengths_B.argsort(stable=True)
        sorted_B = lengths_B[order_B].tolist()
        groups = groups_by_length(sorted_B, MIN_TOKENS[input_ids_BT.device.type])
        cuts = [(order_B[start:stop], sorted_B[stop - 1]) for start, stop in groups]
        # One look-up for all groups, because the gradient of each look-up is as large as the whole table.
        embedded_SE = self.transformer.get_input_embeddings()(  # type: ignore[operator]
            torch.cat([input_ids_BT[rows_G, :longest].flatten() for rows_G, longest in cuts])
        )
        pooled = []
        for (rows_G, longest), group_SE in zip(
            cuts, embedded_SE.split([len(rows_G) * longest for rows_G, longest in cuts]), strict=True
        ):
            group_GTE = group_SE.view(len(rows_G), longest, -1)
            pooled.append(self._pooled(attention_mask_BT[rows_G, :longest], inputs_embeds=group_GTE))
        return torch.cat(pooled)[order_B.argsort()]

    def _pooled(self, attention_mask_BT: Tensor, **inputs: Tensor) -> Tensor:
        hidden_BTE = self.transformer(attention_mask=attention_mask_BT, **inputs).last_hidden_state
        mask_BT1 = attention_mask_BT.unsqueeze(-1).to(hidden_BTE.dtype)
        mean_BE: Tensor = (hidden_BTE * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
        return mean_BE


class LayerEncoder(TransformerEncoder):
    """[CLS], the first token, of several layers of one forward pass, concatenated (CascadeXML).

    `layers` are counted from 1, ascending. Raises RecipeError if the transformer has fewer.
    """

    def __init__(self, transformer: nn.Module, layers: Sequence[int]) -> None:
        super().__init__(transformer)
        depth = int(transformer.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        if layers[-1] > depth:
            raise RecipeError(f"cascade.layers has {layers[-1]}, but the encoder has {depth} layers: give at most that")
        self.layers = tuple(layers)
        self.width *= len(self.layers)

    def _pooled(self, attention_mask_BT: Tensor, **inputs: Tensor) -> Tensor:
        outputs = self.transformer(attention_mask=attention_mask_BT, output_hidden_states=True, **inputs)
        return torch.cat([outputs.hidden_states[layer][:, 0] for layer in self.layers], dim=1)  # 0: the embeddings


def groups_by_length(sorted_B: Sequence[int], min_tokens: int) -> list[tuple[int, int]]:
    """Group texts of ascending length: return (start, stop) of each group. Texts of equal length are in one group.

    Every group except the last has at least `min_tokens` tokens, including padding.
    """
    groups, start = [], 0
    for at in range(1, len(sorted_B)):
        if sorted_B[at] > sorted_B[at - 1] and (at - start) * sorted_B[at - 1] >= min_tokens:
            groups.append((start, at))
            start = at
    return [*groups, (start, len(sorted_B))]
