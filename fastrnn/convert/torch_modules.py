"""A `Sequential` in PyTorch: modules of torch.nn, and what is done with what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

#: a layer's `merge` of two directions
MERGES: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda f, b: torch.cat((f, b), -1),
    "sum": torch.add,
    "mul": torch.mul,
    "average": lambda f, b: (f + b) / 2,
}

#: a function of `Dense` and `Activation`
FUNCTIONS: dict[str, nn.Module] = {
    "identity": nn.Identity(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "softmax": nn.Softmax(-1),
}


class Then(NamedTuple):
    """What becomes of what a module gives."""

    activation: str = "identity"  #: of a Linear
    merge: str | None = "concat"  #: of a recurrent module, as `fastrnn.LSTM` has it
    return_sequences: bool = True  #: likewise

    def unusual(self) -> str:
        default = Then()._asdict()
        return ", ".join(f"{name}={value!r}" for name, value in self._asdict().items() if value != default[name])


class Sequential(nn.Sequential):
    """What `fastrnn.to_torch` makes of a `fastrnn.Sequential`: modules of torch.nn, one for each layer.

    Parameters have the names of the model's, so that state_dicts go both ways.

    Parameters
    ----------
    modules : list of torch.nn.Module
        Recurrent ones are ``batch_first``.
    then : list of Then
        One for each.
    """

    def __init__(self, modules: Sequence[nn.Module], then: Sequence[Then]) -> None:
        super().__init__(*modules)
        self.then = list(then)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the model predicts.

        Parameters
        ----------
        x : (N, T, I) tensor, (N, T) integers, or (N, F)
        lengths : (N,) integers, optional
            Valid steps of each sequence; y is 0 past them.

        Returns
        -------
        (N, T, K) tensor, or (N, K)
        """
        mask = None
        if lengths is not None:
            mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            x = torch.where(mask if x.ndim == 2 else mask[..., None], x, 0)
        y = self.run(x, mask)
        return y if mask is None or y.ndim < 3 else torch.where(mask[..., None], y, 0)

    def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`forward`, within the lengths alone."""
        for module, then in zip(self, self.then, strict=True):
            if isinstance(module, Sequential):
                x = module.run(x, mask)
            elif isinstance(module, nn.RNNBase):
                x = recurrent(module, x, mask, then)
            else:
                x = FUNCTIONS[then.activation](module(x))
        return x

    def extra_repr(self) -> str:
        return "; ".join(f"{i}: {then.unusual()}" for i, then in enumerate(self.then) if then != Then())


def recurrent(module: nn.RNNBase, x: Tensor, mask: Tensor | None, then: Then) -> Tensor:
    """Every step, or the last one of each direction."""
    if mask is None:
        y, state = module(x)
    else:  # PyTorch packs no sequence without steps
        packed = pack_padded_sequence(x, mask.sum(1).clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        y, state = module(packed)
        y = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]
        y = torch.where(mask[..., None], y, 0)
    h = state[0] if isinstance(state, tuple) else state
    if not module.bidirectional:
        found = y if then.return_sequences else h[-1]
    else:
        both = y.chunk(2, -1) if then.return_sequences else (h[-2], h[-1])
        found = MERGES[then.merge](*both)
    return found if mask is None or then.return_sequences else torch.where(mask.any(1)[:, None], found, 0)


def activation_of(module: nn.Module) -> str | None:
    """The function that a module is, if it is one of ours."""
    found = next((name for name, own in FUNCTIONS.items() if type(own) is type(module)), None)
    return None if isinstance(module, nn.Softmax) and module.dim != -1 else found
