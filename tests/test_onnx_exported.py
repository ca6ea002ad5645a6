"""`from_onnx` on models from PyTorch's torch.export exporter: computed shapes, and stated sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.conversions import settings
from support.tolerance import assert_same_bits

import fastrnn


class Exported:
    """A model of ours that computes the shape for reshaping two directions."""

    def __init__(self, onnx: Any, layer: Any) -> None:
        self._onnx, self.model = onnx, fastrnn.to_onnx(layer)

    def constant(self, name: str, value: Any) -> str:
        graph = self.model.graph
        kept = [one for one in graph.initializer if one.name != name]
        del graph.initializer[:]
        graph.initializer.extend([*kept, self._onnx.numpy_helper.from_array(np.asarray(value), name)])
        return name

    def index(self, output: str) -> int:
        """Return the position of the node that computes this value."""
        return next(i for i, node in enumerate(self.model.graph.node) if output in node.output)

    def insert(self, before: str, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = self._onnx.helper.make_node(kind, inputs, [output], **attributes)
        self.model.graph.node.insert(self.index(before), node)
        return output

    def compute_shape(self, output: str, order: tuple[int, int] = (0, 1), time: int | None = None) -> None:
        """Compute the shape of this Reshape from that of its input, (T, B, D, H); the model knows `time`."""
        reshape = self.model.graph.node[self.index(output)]
        bounds = [self.constant(f"at{i}", np.array([i])) for i in range(5)]
        shape = self.insert(output, "Shape", [reshape.input[0]], f"{output}_shape", start=0)
        sizes = [self.insert(output, "Slice", [shape, bounds[i], bounds[i + 1]], f"{output}_size{i}") for i in range(4)]
        if time is not None:
            sizes[0] = self.constant(f"{output}_time", np.array([time]))
        product = self.insert(output, "Mul", sizes[2:], f"{output}_product")
        flat = self.insert(output, "Reshape", [product, self.constant("all", np.array([-1]))], f"{output}_flat")
        parts = [sizes[order[0]], sizes[order[1]], flat]
        reshape.input[1] = self.insert(output, "Concat", parts, f"{output}_sizes", axis=0)

    def cut_weights(self, name: str, H: int) -> None:
        """Cut the weights into halves, at a size that the model states for another value."""
        (tensor,) = (one for one in self.model.graph.initializer if one.name == name)
        whole = self._onnx.numpy_helper.to_array(tensor)
        user = next(node for node in self.model.graph.node if name in node.input)
        first = user.output[0] or user.output[1]
        kind = self._onnx.TensorProto.FLOAT
        self.model.graph.value_info.append(self._onnx.helper.make_tensor_value_info("zeros", kind, [2, "B", H]))
        shape = self.insert(first, "Shape", ["x"], f"{name}_shape_of_x")
        self.insert(first, "ConstantOfShape", [shape], "zeros")
        size = self.insert(first, "Shape", ["zeros"], f"{name}_size", start=2, end=3)
        twice = self.insert(first, "Mul", [size, self.constant("two", np.array([2]))], f"{name}_twice")
        axis, begin = self.constant("axis", np.array([1])), self.constant("begin", np.array([0]))
        self.constant(f"{name}_whole", whole)
        end = self.constant("end", np.array([10**6]))
        parts = [
            self.insert(first, "Slice", [f"{name}_whole", *cut, axis], f"{name}_part{i}")
            for i, cut in enumerate([(begin, twice), (twice, end)])
        ]
        kept = [one for one in self.model.graph.initializer if one.name != name]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        self.insert(first, "Concat", parts, name, axis=1)


def expect_same(model: Any, layer: Any) -> None:
    back = fastrnn.from_onnx(model)
    assert settings(back) == settings(layer)
    assert_same_bits(back.parameters(), layer.parameters())


@pytest.mark.parametrize("time", [None, 7])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("kind", "L", "H"), [(fastrnn.LSTM, 2, 4), (fastrnn.GRU, 3, 1), (fastrnn.RNN, 2, 3)])
def test_computed_shapes(kind: Any, L: int, H: int, batch_first: bool, time: int | None, onnx: Any) -> None:
    options = {"reset_after": True} if kind is fastrnn.GRU else {}
    layer = kind(3, H, L, bidirectional=True, batch_first=batch_first, rng=1, **options)
    exported = Exported(onnx, layer)
    for i in range(L - 1):
        exported.compute_shape(f"y{i}", time=time)
    expect_same(exported.model, layer)


def test_another_order_is_another_model(onnx: Any) -> None:
    """A shape (B, T, D*H) has as many elements."""
    exported = Exported(onnx, fastrnn.LSTM(3, 4, 2, bidirectional=True, rng=0))
    exported.compute_shape("y0", order=(1, 0))
    with pytest.raises(ValueError, match="do not form a stack"):
        fastrnn.from_onnx(exported.model)


@pytest.mark.parametrize("name", ["W0", "R1", "B1"])
def test_weights_cut_at_a_stated_size(name: str, onnx: Any) -> None:
    layer = fastrnn.GRU(3, 4, 2, reset_after=True, rng=0)
    exported = Exported(onnx, layer)
    exported.cut_weights(name, 4)
    expect_same(exported.model, layer)
    exported.model.graph.value_info[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(ValueError, match=f"{name[0]}: expected a constant"):
        fastrnn.from_onnx(exported.model)


def test_products_of_constants_are_bounded(onnx: Any) -> None:
    exported = Exported(onnx, fastrnn.LSTM(3, 4, rng=0))
    exported.constant("row", np.ones((1, 3000), np.float32))
    exported.constant("column", np.ones((3000, 1), np.float32))
    lstm = exported.model.graph.node[exported.index("h_of0")]
    lstm.input[1] = exported.insert("h_of0", "Mul", ["row", "column"], "W")
    with pytest.raises(ValueError, match=r"Mul node 'W': .*9000000 numbers, but the model has"):
        fastrnn.from_onnx(exported.model)


def without_nodes(onnx: Any, *nodes: Any) -> Any:
    kind = onnx.TensorProto.FLOAT
    values = [onnx.helper.make_tensor_value_info(name, kind, None) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "none", values[:1], values[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def test_error_explains_the_missing_node(onnx: Any) -> None:
    node = onnx.helper.make_node
    steps = [
        one
        for i in range(5)
        for one in (node("MatMul", [f"h{i}", "U"], [f"a{i}"]), node("Tanh", [f"a{i}"], [f"h{i + 1}"]))
    ]
    loop = onnx.helper.make_node("Scan", ["x"], ["y"], "over_time", num_scan_inputs=1)
    quantized = node("DynamicQuantizeLSTM", ["x", "W", "R"], ["y"], domain="com.microsoft")
    for nodes, why in (
        (steps, r"; the exporter unrolled the loop over time: 'U' is multiplied 5 times\. PyTorch's does that"),
        ([loop], "; Scan node 'over_time' has the cell as separate operators"),
        ([quantized], "; DynamicQuantizeLSTM is an operator of com.microsoft, not of ONNX, so use the model before"),
        ([node("MatMul", ["x", "U"], ["y"])], "$"),
    ):
        with pytest.raises(ValueError, match=f"expected a model with an RNN, GRU or LSTM node, found none{why}"):
            fastrnn.from_onnx(without_nodes(onnx, *nodes))
