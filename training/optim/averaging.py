"""An exponential moving average of a model's weights over epochs.

Validation measures the average, and the checkpoint has it. At a high learning rate, the average is better than the
weights of any one epoch, so an early epoch can be the best one without a schedule that ends there.

    average ← average + (1 − d) / (1 − dⁿ) · (weights − average)        after epoch n; d: decay

So the average is that of all epochs so far, weighted with powers of the decay.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from training.model.cascade import Model

EPOCHS = "epochs"  # in the state: number of epochs in the average
NOT_AVERAGED = (".second_moment", ".steps")  # optimizer state of row tables


class AveragedWeights:
    """The average of the weights of `model`. With decay 0 the weights themselves are used, and nothing is stored."""

    def __init__(self, model: Model, decay: float) -> None:
        self.model, self.decay = model, decay
        self.epochs = 0
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Add the weights after `epoch`, counted from 1; does nothing if the average has that epoch."""
        if not self.decay or epoch <= self.epochs:
            return
        self.epochs = epoch
        weights = self._weights()
        if not self._average:
            self._average = {name: weight.clone() for name, weight in weights.items()}
            return
        share = (1 - self.decay) / (1 - self.decay**epoch)
        for name, weight in weights.items():
            self._average[name].lerp_(weight, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average as the model's weights within the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by weight, and the number of its epochs; empty before the first epoch."""
        if not self._average:
            return {}
        average = {name: weight.cpu().contiguous() for name, weight in self._average.items()}
        return average | {EPOCHS: torch.tensor(self.epochs)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned. Raises ValueError if it has other weights than the model."""
        weights = self._weights() if self.decay and state else {}
        expected = {name: weight.shape for name, weight in weights.items()}
        shapes = {name: tensor.shape for name, tensor in state.items() if name != EPOCHS}
        if shapes != expected:
            raise ValueError("the averaged weights are those of another model")
        self._average = {name: state[name].to(weight.device) for name, weight in weights.items()}
        self.epochs = int(state[EPOCHS]) if weights else 0

    def _weights(self) -> dict[str, Tensor]:
        return {
            name: tensor.detach()
            for name, tensor in self.model.state_dict().items()
            if tensor.is_floating_point() and not name.endswith(NOT_AVERAGED)
        }

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange weights and average, one tensor at a time, so that no second copy of all weights exists."""
        for name, weight in self._weights().items() if self._average else ():
            average = self._average[name].clone()
            self._average[name].copy_(weight)
            weight.copy_(average)
