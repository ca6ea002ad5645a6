"""In a model that exists, fastrnn's modules in the place of `torch.nn`'s."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fastrnn.torch.modules import GRU, LSTM, RNN
from fastrnn.torch.recurrent import Base, refusal

COUNTERPARTS: dict[type[nn.Module], type[Base]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}


@dataclass(frozen=True)
class Report:
    """What `replace` did, by the names of ``model.named_modules()``; "" is the model itself."""

    swapped: dict[str, str] = field(default_factory=dict)  #: name -> the module as it is now
    kept: dict[str, str] = field(default_factory=dict)  #: name -> why it is what it was

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: {module}" for name, module in self.swapped.items()]
        lines += [f"{name or '(the model)'}: kept, {why}" for name, why in self.kept.items()]
        return "\n".join(lines) or "no recurrent modules"


def replace(model: nn.Module) -> Report:
    """Let every `torch.nn` LSTM, GRU and RNN of a model be computed by fastrnn, in place.

    The modules change their class and nothing else: parameters, hooks, names, and whatever refers to them stay, so that
    optimizers, checkpoints and code that holds a module go on working.

    Parameters
    ----------
    model : torch.nn.Module
        May be such a module itself.

    Returns
    -------
    Report
        ``swapped`` and ``kept``, by name; ``print(report)`` has a line for each.

    Raises
    ------
    TypeError
        For what is no module.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4), "decoder": torch.nn.LSTMCell(4, 4)})
    >>> print(fastrnn.torch.replace(model))
    encoder: fastrnn.torch.GRU(3, 4)
    decoder: kept, a cell takes one step, whose time is PyTorch's own
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    report = Report()
    for name, module in model.named_modules():
        if isinstance(module, Base) or not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        if why := obstacle(module):
            report.kept[name] = why
        else:
            module.__class__ = COUNTERPARTS[type(module)]
            report.swapped[name] = f"fastrnn.torch.{module}"
    return report


def obstacle(module: nn.Module) -> str:
    """Why fastrnn cannot stand in for a module; empty if it can."""
    if isinstance(module, nn.RNNCellBase):
        return "a cell takes one step, whose time is PyTorch's own"
    if type(module) not in COUNTERPARTS:
        return f"{type(module).__name__} is a class of its own, which may compute something else"
    if "forward" in vars(module):
        return "its forward was replaced by another"
    if module.proj_size and not isinstance(module, nn.LSTM):  # made by position, and refused by PyTorch when called
        return f"proj_size={module.proj_size} is for an LSTM alone"
    return next(filter(None, (refusal(name, parameter) for name, parameter in module.named_parameters())), "")
