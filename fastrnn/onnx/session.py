"""Sessions that run a model's recurrent nodes on fastrnn and the rest on another engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from fastrnn.checks import among, checked_threads, describe
from fastrnn.convert.onnx_reader import opened, without_recurrent
from fastrnn.onnx.bodies import Values
from fastrnn.onnx.program import Program, in_functions
from fastrnn.onnx.rest import Reference, Rest, Runtime, text_of

RESTS = ("onnxruntime", "reference")


class Argument(NamedTuple):
    """An input or output of a model, like ``onnxruntime.NodeArg``."""

    name: str
    shape: list[int | str | None]  #: sizes, names of sizes, or None for unknown ones
    type: str  #: such as "tensor(float)"


class Metadata(NamedTuple):
    """The metadata of a model, like ``onnxruntime.ModelMetadata``."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class Session:
    """Run a model: RNN, GRU and LSTM nodes on fastrnn, the rest on ONNX Runtime or on ONNX's reference evaluator.

    The graph is cut at the recurrent nodes, in the order of its nodes; each part between two of them becomes a session
    of its own. Weights that are constant or computed from constants are converted to fastrnn's order and packed once.
    Bodies of If, Loop and Scan that contain recurrent nodes are cut in the same way. Recurrent nodes inside a function
    or a Scan of opset 8, of float16, or quantized, stay with the rest.

    The interface is that of ``onnxruntime.InferenceSession``, so you change one line of a program.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        Up to ONNX's 2 GB, with embedded or external weights.
    sess_options : onnxruntime.SessionOptions, optional
        For ONNX Runtime: libraries of custom operators, say. Its ``intra_op_num_threads``, if set, acts as `threads`.
    providers : list, optional
        ONNX Runtime's providers, for the nodes that it runs; the CPU by default. Recurrent nodes run on the CPU.
    rest : {"onnxruntime", "reference"}
        The engine for the other nodes.
    threads : int, optional
        Maximum number of threads, here and in ONNX Runtime; by default each library chooses.

    Attributes
    ----------
    nodes : list of Placed
        Every recurrent node of the model: ``name``, ``op``, ``where`` it runs ("kernels", "numpy" for fastrnn's NumPy
        loop, or the rest's name) and ``why``, if not in the kernels. A model without any gives a RuntimeWarning.
    input_names, output_names : list of str
        The required inputs and the outputs of a run.

    Raises
    ------
    TypeError, ValueError
        If `model` is not a valid model or `rest` is unknown, or for ONNX Runtime's arguments with another `rest`.
    ImportError
        If onnx or onnxruntime is not installed.

    Examples
    --------
    >>> import numpy as np, fastrnn.onnx
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> nodes = [
    ...     helper.make_node("Relu", ["x"], ["r"]),
    ...     helper.make_node("LSTM", ["r", "W", "R"], ["", "h"], name="memory"),
    ... ]
    >>> rng = np.random.default_rng(0)
    >>> weights = {"W": rng.standard_normal((1, 16, 3)), "R": rng.standard_normal((1, 16, 4))}
    >>> weights = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()]
    >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("T", "B", 3))
    >>> h = helper.make_tensor_value_info("h", TensorProto.FLOAT, (1, "B", 4))
    >>> graph = helper.make_graph(nodes, "example", [x], [h], weights)
    >>> opset = [helper.make_opsetid("", 14)]
    >>> session = fastrnn.onnx.Session(helper.make_model(graph, opset_imports=opset), rest="reference")
    >>> session.nodes
    [Placed(name='memory', op='LSTM', where='kernels', why='')]
    >>> (h,) = session.run(None, {"x": np.ones((5, 2, 3), np.float32)})
    >>> h.shape
    (1, 2, 4)
    """

    def __init__(
        self,
        model: Any,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        *,
        rest: str = "onnxruntime",
        threads: int | None = None,
    ) -> None:
        if not among(rest, RESTS):
            raise ValueError(f"rest: expected one of {', '.join(RESTS)}, got {rest!r}")
        if isinstance(sess_options, str):
            raise TypeError(
                f"sess_options: expected onnxruntime.SessionOptions, got {sess_options!r}; give rest= by name"
            )
        if providers is not None and (isinstance(providers, str) or not isinstance(providers, Sequence)):
            raise TypeError(f"providers: expected a list of names, got {providers!r:.80}")
        for name, value in (("sess_options", sess_options), ("providers", providers)):
            if value is not None and rest == "reference":
                raise ValueError(f'{name}: expected None with rest="reference"; it is for ONNX Runtime only')
        if threads is not None and sess_options is not None:
            raise ValueError("threads: expected None with sess_options; set its intra_op_num_threads instead")
        threads = None if threads is None else checked_threads(threads)
        model = opened("model", model)
        self._rest: Rest = Reference() if rest == "reference" else Runtime(sess_options, providers, threads)
        program = Program(model, self._rest, threads or getattr(sess_options, "intra_op_num_threads", 0) or None)
        self.nodes = program.nodes + in_functions(model, self._rest)
        if not self.nodes:
            why = without_recurrent(model.graph.node)
            warnings.warn(f"model: no recurrent node; {self._rest.name} runs all of it{why}", RuntimeWarning, 2)
        self.input_names, self.output_names = program.inputs, program.outputs
        self._program, self._needed, self._optional = program, frozenset(program.inputs), program.optional
        self._inputs = [argument(value) for value in model.graph.input]
        self._outputs = [argument(value) for value in program.results]
        self._sizes = [
            (one.name, REALS.get(one.type), len(one.shape), *fixed_sizes(one.shape))
            for one in self._inputs
            if one.shape
        ]
        self._steps = program.steps
        self._metadata = Metadata(
            *(model.producer_name, model.graph.name, model.domain, model.doc_string, model.graph.doc_string),
            model.model_version,
            {one.key: one.value for one in model.metadata_props},
        )

    def get_inputs(self) -> list[Argument]:
        """Return the required inputs.

        Returns
        -------
        list of Argument
            Each with ``name``, ``shape`` (a size may be a name or None) and ``type``.
        """
        return [one for one in self._inputs if one.name in self._needed]

    def get_overridable_initializers(self) -> list[Argument]:
        """Return the optional inputs, which have default values.

        Returns
        -------
        list of Argument
        """
        return [one for one in self._inputs if one.name in self._optional]

    def get_outputs(self) -> list[Argument]:
        """Return the outputs.

        Returns
        -------
        list of Argument
        """
        return list(self._outputs)

    def get_modelmeta(self) -> Metadata:
        """Return the model's metadata.

        Returns
        -------
        Metadata
        """
        return self._metadata

    def get_providers(self) -> list[str]:
        """Return ONNX Runtime's providers for the rest; recurrent nodes run on the CPU.

        Returns
        -------
        list of str
        """
        return list(self._rest.providers)

    def run(self, output_names: Sequence[str] | None, input_feed: Values, run_options: Any = None) -> list[Any]:
        """Run the model.

        Parameters
        ----------
        output_names : list of str, or None
            The outputs to return, in this order; None or an empty list returns all of them.
        input_feed : dict of arrays
            By name.
        run_options : onnxruntime.RunOptions, optional
            For the nodes that ONNX Runtime runs.

        Returns
        -------
        list of arrays

        Raises
        ------
        TypeError, ValueError
            For an unknown output or input, a missing input, an input of another shape or dtype than the model states,
            and inputs that a node rejects.
        """
        if not isinstance(input_feed, dict):
            raise TypeError(f"input_feed: expected a dict of arrays by name, got {type(input_feed).__name__}")
        if output_names is not None and not isinstance(output_names, list | tuple):
            raise TypeError(f"output_names: expected a list of names, or None, got {output_names!r:.80}")
        if run_options is not None and isinstance(self._rest, Reference):
            raise ValueError('run_options: expected None with rest="reference"; they are for ONNX Runtime only')
        wanted = list(output_names) if output_names else self.output_names
        if strange := [name for name in wanted if name not in self.output_names]:
            raise ValueError(f"output_names: expected some of {self.output_names}, got {strange[0]!r}")
        if input_feed.keys() != self._needed:
            self._check_names(input_feed)
        for name, dtype, rank, fixed, sizes in self._sizes:
            given = input_feed.get(name)
            shape = getattr(given, "shape", None)
            if shape is not None and (len(shape) != rank or fixed(shape) != sizes):
                self._refuse_shape(name, shape)
            if dtype is not None and isinstance(given, np.ndarray) and given.dtype != dtype:
                got = describe(given.dtype)
                raise TypeError(f"input_feed: {name}: expected dtype {dtype}, as the model says, got {got}")
        values = self._program.run(input_feed, run_options)
        return [values[name] for name in wanted]

    def _check_names(self, inputs: Values) -> None:
        if strange := sorted(inputs.keys() - self._optional - self._needed):
            raise ValueError(f"input_feed: expected {', '.join(self.input_names)}, got {strange[0]!r}")
        if missing := [name for name in self.input_names if name not in inputs]:
            raise ValueError(f"input_feed: expected {', '.join(self.input_names)}, missing {missing[0]!r}")

    def _refuse_shape(self, name: str, shape: tuple[int, ...]) -> None:
        (own,) = [one for one in self._inputs if one.name == name]
        wanted = ", ".join(str(n) for n in own.shape)
        raise ValueError(f"input_feed: {name}: expected shape ({wanted}), as the model says, got {tuple(shape)}")


#: the dtypes of floating-point inputs, which the nodes read that fastrnn runs
REALS = {"tensor(float)": np.dtype(np.float32), "tensor(double)": np.dtype(np.float64)}


def argument(value: Any) -> Argument:
    """Convert a ValueInfoProto."""
    of_axis = value.type.tensor_type.shape.dim
    sizes = [one.dim_value if one.HasField("dim_value") else one.dim_param or None for one in of_axis]
    return Argument(value.name, sizes, text_of(value.type, value.name))


def fixed_sizes(shape: Sequence[Any]) -> tuple[Callable[[Any], Any], Any]:
    """Return a fast function that picks the axes of a shape that the model fixes, and the fixed sizes."""
    axes = [axis for axis, n in enumerate(shape) if isinstance(n, int)]
    fixed = itemgetter(*axes) if axes else bool
    return fixed, fixed(shape)
