"""The interface that the onnx package asks of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrnn.extras import needed
from fastrnn.onnx.graph import is_recurrent, loaded
from fastrnn.onnx.node import DATA, INPUTS, WEIGHTS, Recurrent, Weights
from fastrnn.onnx.session import Session

_base = needed("onnx.backend.base", "onnx")
_BackendRep: Any = _base.BackendRep
_Backend: Any = _base.Backend


class Prepared(_BackendRep):  # type: ignore[misc]  # Any: onnx need not be installed where types are checked
    """A model that is ready to run, as often as you like: its weights are packed."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Every output of the model, from its inputs in their order, or by name."""
        refuse(kwargs)
        names = self._session.input_names
        if not isinstance(inputs, dict):
            if len(inputs) != len(names):
                raise ValueError(f"inputs: expected {len(names)}, {', '.join(names)}, got {len(inputs)}")
            inputs = dict(zip(names, inputs, strict=True))
        return tuple(self._session.run(None, inputs))


class Backend(_Backend):  # type: ignore[misc]
    """An ``onnx.backend.base.Backend`` for models of RNN, GRU and LSTM nodes, and of nothing else; see `Session`."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether it is a CPU."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `prepare` takes this model on this device."""
        refuse(kwargs)
        try:
            cls.prepare(model, device)
        except NotImplementedError:
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Check a model and pack its weights.

        Raises
        ------
        NotImplementedError
            For another device, or nodes that are not RNN, GRU or LSTM, or not of float32 or float64.
        onnx.checker.ValidationError
            For what is not valid ONNX.
        """
        refuse(kwargs)
        model = loaded(model)
        _expect_device(device)
        super().prepare(model, device)
        others = [node.op_type for node in model.graph.node if not is_recurrent(node)]
        if others:
            raise NotImplementedError(f"{others[0]} is no recurrent node; fastrnn.onnx.Session runs larger models")
        session = Session(model, rest="reference")
        for node in session.nodes:
            if node.where == "reference":
                raise NotImplementedError(f"{node.op} {node.name}: {node.why}")
        return Prepared(session)

    @classmethod
    def run_node(
        cls, node: Any, inputs: Sequence[Any], device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run one node: every output that it has a name for, from its inputs in their order.

        Absent inputs are None, or left out. ``opset_version`` may be given, for onnx to check the node by.
        """
        version = {"opset_version": kwargs.pop("opset_version")} if "opset_version" in kwargs else {}
        refuse(kwargs)
        _expect_device(device)
        super().run_node(node, inputs, device, outputs_info, **version)
        read = Recurrent(node)
        given = [a for a in inputs if a is not None]
        if len(given) != len(read.inputs):
            raise ValueError(f"inputs: expected {len(read.inputs)}, {', '.join(read.inputs)}, got {len(given)}")
        values = dict.fromkeys(INPUTS) | dict(zip(read.inputs, given, strict=True))
        weights = Weights(read, *(values[name] for name in WEIGHTS))
        results = read.run(*(values[name] for name in DATA), weights=weights)
        return tuple(a for name, a in zip(read.outputs, results, strict=False) if name)


def runs_in_kernels(node: Any) -> bool:
    """Whether the compiled kernels run an RNN, GRU or LSTM node, all of its directions; else a NumPy loop does.

    They do with the default activations (an RNN's may be Tanh, Relu, Sigmoid, or Affine with alpha 1 and beta 0) and
    without clip and input_forget, whatever else the node has.

    Raises
    ------
    ValueError
        For another node, and for attributes that the operator does not have.

    Examples
    --------
    >>> import fastrnn.onnx
    >>> from onnx import helper
    >>> fastrnn.onnx.runs_in_kernels(helper.make_node("GRU", ["X", "W", "R"], ["Y"], linear_before_reset=1))
    True
    >>> fastrnn.onnx.runs_in_kernels(helper.make_node("GRU", ["X", "W", "R"], ["Y"], clip=3.0))
    False
    """
    return Recurrent(node).runs_in_kernels


def refuse(kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"got an unexpected keyword argument {min(kwargs)!r}")


def _expect_device(device: str) -> None:
    if not Backend.supports_device(device):
        raise NotImplementedError(f"device: expected CPU, got {device}")


is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
