"""The backend interface that the onnx package defines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastrnn.convert.onnx_reader import is_recurrent, opened
from fastrnn.extras import needed
from fastrnn.frameworks import DATA, INPUTS, WEIGHTS
from fastrnn.onnx.node import Recurrent, Weights
from fastrnn.onnx.session import Session

_base: Any = needed("onnx.backend.base", "onnx")


class Prepared(_base.BackendRep):  # type: ignore[misc]  # Any: onnx need not be installed where types are checked
    """A model with packed weights, ready to run any number of times; made by `prepare`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model.

        Parameters
        ----------
        inputs : sequence of arrays, or dict of arrays
            In the order of the model's inputs, or by name.

        Returns
        -------
        tuple of arrays
            All outputs of the model, in its order.

        Raises
        ------
        TypeError, ValueError
            For a wrong number of inputs, an unknown name, or inputs that a node rejects.
        """
        refuse(kwargs)
        names = self._session.input_names
        if not isinstance(inputs, dict):
            inputs = named(names, inputs)
        return tuple(self._session.run(None, inputs))


class Backend(_base.Backend):  # type: ignore[misc]
    """An ``onnx.backend.base.Backend`` for models of RNN, GRU and LSTM nodes only; for others see `Session`."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether `prepare` supports a device.

        Parameters
        ----------
        device : str
            In the onnx package's notation: "CPU", "CUDA:1", ...

        Returns
        -------
        bool
            True for a CPU.
        """
        return device.partition(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Return whether `prepare` supports a model on a device.

        Parameters
        ----------
        model, device
            As for `prepare`.

        Returns
        -------
        bool

        Raises
        ------
        TypeError, ValueError, onnx.checker.ValidationError
            As `prepare`.
        """
        refuse(kwargs)
        try:
            cls.prepare(model, device)
        except NotImplementedError:
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Check a model and pack its weights.

        Parameters
        ----------
        model : path, bytes or onnx.ModelProto
            With RNN, GRU and LSTM nodes only.
        device : str
            "CPU".

        Returns
        -------
        Prepared
            Its ``run`` takes inputs and returns outputs.

        Raises
        ------
        NotImplementedError
            For another device, or nodes that are not RNN, GRU or LSTM in float32 or float64.
        TypeError, ValueError
            If `model` is not a model.
        onnx.checker.ValidationError
            If the model is not valid ONNX.
        """
        refuse(kwargs)
        model = opened("model", model)
        _expect_device(device)
        super().prepare(model, device)
        others = [node.op_type for node in model.graph.node if not is_recurrent(node)]
        if others:
            raise NotImplementedError(
                f"model: expected only RNN, GRU and LSTM nodes, got {others[0]}; fastrnn.onnx.Session runs such models"
            )
        session = Session(model, rest="reference")
        for node in session.nodes:
            if node.where == "reference":
                raise NotImplementedError(f"{node.op} {node.name}: {node.why}")
        return Prepared(session)

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Run a model once; use `prepare` to run it several times.

        Parameters
        ----------
        model, device
            As for `prepare`.
        inputs
            As for `Prepared.run`.

        Returns
        -------
        tuple of arrays
            As from `Prepared.run`.

        Raises
        ------
        NotImplementedError, onnx.checker.ValidationError
            As `prepare`.
        TypeError, ValueError
            As `prepare` and `Prepared.run`.

        Examples
        --------
        >>> import numpy as np, fastrnn, fastrnn.onnx
        >>> from onnx import TensorProto, helper
        >>> node = helper.make_node("GRU", ["X", "W", "R"], ["", "Y_h"])
        >>> inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in "XWR"]
        >>> output = helper.make_tensor_value_info("Y_h", TensorProto.FLOAT, [None] * 3)
        >>> opset = [helper.make_opsetid("", 14)]
        >>> model = helper.make_model(helper.make_graph([node], "one", inputs, [output]), opset_imports=opset)
        >>> X, W, R = (np.ones(shape, np.float32) for shape in ((5, 2, 3), (1, 12, 3), (1, 12, 4)))
        >>> (Y_h,) = fastrnn.onnx.run_model(model, [X, W, R])
        >>> Y_h.shape
        (1, 2, 4)
        """
        prepared: Prepared = cls.prepare(model, device, **kwargs)
        return prepared.run(inputs)

    @classmethod
    def run_node(
        cls, node: Any, inputs: Sequence[Any], device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run one node.

        Parameters
        ----------
        node : onnx.NodeProto
            RNN, GRU or LSTM.
        inputs : sequence of arrays
            In the operator's order; absent inputs are None or left out.
        device : str
            "CPU".
        outputs_info
            Not used; required by the interface.
        **kwargs
            ``opset_version``, against which onnx checks the node.

        Returns
        -------
        tuple of arrays
            The outputs that the node names.

        Raises
        ------
        NotImplementedError
            For another device.
        TypeError, ValueError
            For other nodes, invalid attributes, and inputs of wrong types or shapes.
        """
        version = {"opset_version": kwargs.pop("opset_version")} if "opset_version" in kwargs else {}
        refuse(kwargs)
        _expect_device(device)
        super().run_node(node, inputs, device, outputs_info, **version)
        read = Recurrent(node)
        values = dict.fromkeys(INPUTS) | named(read.inputs, [a for a in inputs if a is not None])
        weights = Weights(read, *(values[name] for name in WEIGHTS))
        results = read.run(*(values[name] for name in DATA), weights=weights)
        return tuple(a for name, a in zip(read.outputs, results, strict=False) if name)


def runs_in_kernels(node: Any) -> bool:
    """Return whether the compiled kernels run all directions of an RNN, GRU or LSTM node; else a NumPy loop does.

    Non-default activations (an RNN's may be Tanh, Relu, Sigmoid, or Affine with alpha 1 and beta 0), clip and
    input_forget make a cell that is compiled at its first use unless the wheel has it: ``pip install
    'fastrnn[cells]'``.

    Parameters
    ----------
    node : onnx.NodeProto

    Returns
    -------
    bool

    Raises
    ------
    TypeError, ValueError
        For a non-node, a node of another operator, and attributes that the operator does not have.

    Examples
    --------
    >>> import fastrnn.onnx
    >>> from onnx import helper
    >>> fastrnn.onnx.runs_in_kernels(helper.make_node("GRU", ["X", "W", "R"], ["Y"], linear_before_reset=1))
    True
    >>> fastrnn.onnx.runs_in_kernels(helper.make_node("GRU", ["X", "W", "R"], ["Y"], clip=3.0))
    True
    """
    if not hasattr(node, "op_type"):
        raise TypeError(f"node: expected an onnx.NodeProto, got {type(node).__name__}")
    return Recurrent(node).runs_in_kernels


def named(names: Collection[str], inputs: Sequence[Any]) -> dict[str, Any]:
    if len(inputs) != len(names):
        raise ValueError(f"inputs: expected {len(names)}, {', '.join(names)}, got {len(inputs)}")
    return dict(zip(names, inputs, strict=True))


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
