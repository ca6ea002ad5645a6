"""A `Sequential` in PyTorch: modules of torch.nn, and the post-processing of their outputs."""

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
ACTIVATION_MODULES: dict[str, nn.Module] = {
    "identity": nn.Identity(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "softmax": nn.Softmax(-1),
}


class OverTime(nn.Module):
    """Reduce each sequence's steps, or those in a mask (N, T), to one vector; zeros for an empty sequence."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        valid = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        return torch.where(valid.any(1)[:, None], self.of_steps(x, valid), 0)

    def of_steps(self, x: Tensor, valid: Tensor) -> Tensor:
        raise NotImplementedError


class LastStep(OverTime):
    def of_steps(self, x: Tensor, valid: Tensor) -> Tensor:
        last = valid.sum(1).clamp(min=1) - 1
        return x[torch.arange(len(x), device=x.device), last]


class GlobalAveragePooling1D(OverTime):
    def of_steps(self, x: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid[..., None], x, 0).sum(1) / valid.sum(1).clamp(min=1)[:, None]


class GlobalMaxPooling1D(OverTime):
    def of_steps(self, x: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid[..., None], x, -torch.inf).max(1).values


class RepeatVector(nn.Module):
    """Repeat a vector for n steps."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None].expand(-1, self.n, -1)

    def extra_repr(self) -> str:
        return str(self.n)


class Then(NamedTuple):
    """Post-processing of a module's output."""

    activation: str = "identity"  #: of a Linear
    merge: str | None = "concat"  #: of a recurrent module, as in `fastrnn.LSTM`
    return_sequences: bool = True  #: likewise

    def unusual(self) -> str:
        default = Then()._asdict()
        return ", ".join(f"{name}={value!r}" for name, value in self._asdict().items() if value != default[name])


class Sequential(nn.Sequential):
    """The result of `fastrnn.to_torch` for a `fastrnn.Sequential`: modules of torch.nn, one per layer.

    Parameters have the model's names, so state_dicts can be exchanged both ways.

    Parameters
    ----------
    modules : list of torch.nn.Module
        Recurrent ones must be ``batch_first``.
    then : list of Then
        One per module.
    """

    def __init__(self, modules: Sequence[nn.Module], then: Sequence[Then]) -> None:
        super().__init__(*modules)
        self.then = list(then)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the model's prediction.

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
            if x.ndim == 2 and x.is_floating_point():
                raise ValueError(f"lengths: expected None, because x of shape {tuple(x.shape)} has no time axis")
            mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            x = torch.where(mask if x.ndim == 2 else mask[..., None], x, 0)
        y, mask = self.run(x, mask)
        return y if mask is None else torch.where(mask[..., None], y, 0)

    def run(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the output within the lengths, and the mask if the steps are still those of x."""
        for module, then in zip(self, self.then, strict=True):
            if isinstance(module, Sequential):
                x, mask = module.run(x, mask)
            elif isinstance(module, nn.RNNBase):
                x = recurrent(module, x, mask, then)
            elif isinstance(module, OverTime):
                x = module(x, mask)
            else:
                x = ACTIVATION_MODULES[then.activation](module(x))
            mask = mask if x.ndim == 3 else None
        return x, mask

    def extra_repr(self) -> str:
        return "; ".join(f"{i}: {then.unusual()}" for i, then in enumerate(self.then) if then != Then())


def recurrent(module: nn.RNNBase, x: Tensor, mask: Tensor | None, then: Then) -> Tensor:
    """Return every step, or the last one of each direction."""
    if mask is None:
        y, state = module(x)
    else:  # PyTorch cannot pack an empty sequence
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
    """Return the name of the function that a module computes, or None if it is not one of ours."""
    found = next((name for name, own in ACTIVATION_MODULES.items() if type(own) is type(module)), None)
    return None if isinstance(module, nn.Softmax) and module.dim != -1 else found
