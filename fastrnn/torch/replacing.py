"""Replace `torch.nn`'s modules by fastrnn's in an existing model, and back."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastrnn.torch.modules import GRU, LSTM, RNN
from fastrnn.torch.recurrent import Base, cell_of, enter, leave, refusal
from fastrnn.torch.stack import TORCH_FUNCTIONS

COUNTERPARTS: dict[type[nn.RNNBase], type[Base]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}

#: The methods that `torch.nn`'s `forward` uses: a class that overrides one may compute something else.
_PARTS = (
    *("forward", "check_input", "check_forward_args", "check_hidden_size", "get_expected_hidden_size"),
    *("get_expected_cell_size", "permute_hidden", "_update_flat_weights", "_weights_have_changed"),
)


@dataclass(frozen=True)
class Report:
    """What `replace` or `restore` did, by the names of ``model.named_modules()``; "" is the model itself."""

    swapped: dict[str, str] = field(default_factory=dict)  #: name -> the new module
    kept: dict[str, str] = field(default_factory=dict)  #: name -> why the module was kept

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: {module}" for name, module in self.swapped.items()]
        lines += [f"{name or '(the model)'}: kept, {why}" for name, why in self.kept.items()]
        return "\n".join(lines) or "no recurrent modules"


def replace(model: nn.Module) -> Report:
    """Replace every `torch.nn` LSTM, GRU and RNN in a model by fastrnn's, in place.

    Only the class of the modules changes. Parameters, hooks, names and references to the modules stay, so optimizers,
    checkpoints and code that holds a module keep working. The new class inherits from the old one, also for a class
    that is derived from `torch.nn`'s and inherits its ``forward``; everything else in such a class is kept.

    Parameters
    ----------
    model : torch.nn.Module
        May be such a module itself.

    Returns
    -------
    Report
        ``swapped`` and ``kept``, by name; ``print(report)`` prints one line per module.

    Raises
    ------
    TypeError
        If `model` is not a module.

    See Also
    --------
    restore : The inverse.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4), "decoder": torch.nn.LSTMCell(4, 4)})
    >>> print(fastrnn.torch.replace(model))
    encoder: fastrnn.torch.GRU(3, 4)
    decoder: kept, a cell runs single steps, whose time is mostly PyTorch's overhead
    """
    report = Report()
    module: Any
    for name, module in _modules(model):
        if isinstance(module, Base) or not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        if why := obstacle(module):
            report.kept[name] = why
        else:
            module.__class__ = _computed(module)
            enter(module)
            own = type(module) in COUNTERPARTS.values()
            report.swapped[name] = f"fastrnn.torch.{module}" if own else f"{module}, by fastrnn.torch"
    return report


def restore(model: nn.Module) -> Report:
    """Turn every module of fastrnn in a model into `torch.nn`'s, in place, with the same parameters.

    Undoes `replace`, and converts models that were built from `fastrnn.torch`'s modules. Use it for tools that accept
    only `torch.nn`'s modules, such as ``torch.jit.script`` and PyTorch's quantizers.

    Parameters
    ----------
    model : torch.nn.Module
        May be such a module itself.

    Returns
    -------
    Report
        ``swapped`` and ``kept``, by name; modules that `torch.nn` lacks, such as peephole LSTMs, are kept.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> model = torch.nn.Sequential(fastrnn.torch.GRU(3, 4), fastrnn.torch.LSTM(3, 4, peephole=True))
    >>> print(fastrnn.torch.restore(model))
    0: torch.nn.GRU(3, 4)
    1: kept, torch.nn has no lstm_peephole
    """
    report = Report()
    for name, module in _modules(model):
        if not isinstance(module, Base):
            continue
        plain = _plain(module)
        if cell_of(module) not in TORCH_FUNCTIONS:
            report.kept[name] = f"torch.nn has no {cell_of(module)}"
        elif plain is None:
            report.kept[name] = f"{type(module).__name__} inherits from a class of fastrnn.torch"
        else:
            leave(module, plain)
            report.swapped[name] = f"torch.nn.{module}" if plain in COUNTERPARTS else str(module)
    return report


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    yield from model.named_modules()


def obstacle(module: nn.Module) -> str:
    """Why fastrnn cannot replace a module; "" if it can."""
    if isinstance(module, nn.RNNCellBase):
        return "a cell runs single steps, whose time is mostly PyTorch's overhead"
    kind, base = type(module), _base(type(module))
    if base is None or any(getattr(kind, part, None) is not getattr(base, part, None) for part in _PARTS):
        return f"{kind.__name__} is a custom class, which may compute something else"
    if replaced := [part for part in _PARTS if part in vars(module)]:
        return f"its method {replaced[0]} was replaced"
    if module.proj_size and base is not nn.LSTM:  # possible by positional arguments; PyTorch rejects the call
        return f"proj_size={module.proj_size} is only for an LSTM"
    there = [(name, parameter) for name, parameter in module.named_parameters() if not parameter.is_meta]
    return next(filter(None, (refusal(name, parameter) for name, parameter in there)), "")


# --- classes


def _base(kind: type) -> type[nn.RNNBase] | None:
    return next((base for base in COUNTERPARTS if issubclass(kind, base)), None)


def _computed(module: nn.Module) -> Any:
    """The fastrnn counterpart of a module's class, which is one of `torch.nn`'s or derived from one."""
    kind: Any = type(module)
    return _rebased(kind, _derived(kind.__bases__[0])) if is_parametrized(module) else _derived(kind)


def _plain(module: nn.Module) -> Any:
    """The inverse of `_computed`; None for a user's class that inherits from fastrnn's."""
    kind = type(module)
    if is_parametrized(module):
        base = _original(kind.__bases__[0])
        return base and _rebased(kind, base)
    return _original(kind)


@functools.cache
def _derived(kind: type) -> Any:
    if kind in COUNTERPARTS:
        return COUNTERPARTS[kind]
    namespace = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    bases = (kind, COUNTERPARTS[_base(kind)])  # type: ignore[index]  # obstacle says that there is one
    return type(kind)(kind.__name__, bases, namespace | {"_original": kind, "__reduce__": _reduced})


def _original(kind: type) -> Any:
    known = {computed: plain for plain, computed in COUNTERPARTS.items()}
    return known.get(kind) or vars(kind).get("_original")


def _rebased(kind: type, base: type) -> type:
    """Copy the class that `torch.nn.utils.parametrize` made for one module (and undoes by its base) on `base`."""
    members = {name: a for name, a in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, (base,), members)


def _reduced(self: Any) -> tuple[Any, ...]:
    """Pickle the original class, because pickle cannot import the one that `replace` made."""
    return _empty, (self._original,), self.__getstate__()


def _empty(plain: type) -> Any:
    kind = _derived(plain)
    return kind.__new__(kind)
