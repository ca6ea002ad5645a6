"""A model of which fastrnn runs the recurrent nodes, and something else the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from fastrnn.checks import among, checked_threads
from fastrnn.convert.onnx_graph import without_recurrent
from fastrnn.onnx.graph import loaded
from fastrnn.onnx.program import Program, Values, in_functions
from fastrnn.onnx.rest import Reference, Rest, Runtime, text_of

RESTS = ("onnxruntime", "reference")


class Argument(NamedTuple):
    """An input or an output of a model, as ``onnxruntime.NodeArg`` has it."""

    name: str
    shape: list[int | str | None]  #: sizes, their names, or None where there is neither
    type: str  #: "tensor(float)", say


class Metadata(NamedTuple):
    """What is written of a model, as ``onnxruntime.ModelMetadata`` has it."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class Session:
    """Run a model: RNN, GRU and LSTM nodes on fastrnn, the rest on ONNX Runtime or on ONNX's reference evaluator.

    The graph is cut, in the order of its nodes, where a recurrent node stands; what lies between two of them is a
    session of its own. Weights that are constant, or made of constants, are brought into fastrnn's order and packed
    once. The bodies of If and Loop that have recurrent nodes are cut in the same way. Recurrent nodes inside Scan or a
    function stay with the rest, and so do those of float16, and quantized ones.

    It is made and run as an ``onnxruntime.InferenceSession`` is, so that one line of a program changes.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        Up to ONNX's 2 GB, and with its weights inside or beside it.
    sess_options : onnxruntime.SessionOptions, optional
        Of ONNX Runtime's sessions: libraries of custom operators, say. ``intra_op_num_threads``, if set, is `threads`.
    providers : list, optional
        ONNX Runtime's, for the nodes that it runs; the CPU when absent. Recurrent nodes run on the CPU.
    rest : {"onnxruntime", "reference"}
        What runs the other nodes.
    threads : int, optional
        At most this many, here and in ONNX Runtime; each one's own choice when absent.

    Attributes
    ----------
    nodes : list of Placed
        Every recurrent node of the model: ``name``, ``op``, ``where`` it runs ("kernels", "numpy" for fastrnn's loop
        in NumPy, or the rest's name) and ``why``, if not in the kernels. Where there is none a RuntimeWarning says so.
    input_names, output_names : list of str
        The inputs that a run needs, and the outputs that it gives.

    Raises
    ------
    TypeError, ValueError
        For what is not a model, for another `rest`, and for arguments of ONNX Runtime's beside another rest.
    ImportError
        Where onnx or onnxruntime is not installed.

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
                raise ValueError(f'{name}: expected None beside rest="reference"; it is ONNX Runtime\'s')
        if threads is not None and sess_options is not None:
            raise ValueError("threads: expected None beside sess_options, whose intra_op_num_threads says it")
        threads = None if threads is None else checked_threads(threads)
        model = loaded(model)
        self._rest: Rest = Reference() if rest == "reference" else Runtime(sess_options, providers, threads)
        program = Program(model, self._rest, threads or getattr(sess_options, "intra_op_num_threads", 0) or None)
        self.nodes = program.nodes + in_functions(model, self._rest)
        if not self.nodes:
            why = without_recurrent(model.graph.node)
            warnings.warn(f"model: {self._rest.name} runs all of it, without a recurrent node{why}", RuntimeWarning, 2)
        self.input_names, self.output_names = program.inputs, program.outputs
        self._program, self._needed, self._optional = program, frozenset(program.inputs), program.optional
        self._inputs = [argument(value) for value in model.graph.input]
        self._outputs = [argument(value) for value in program.results]
        self._sizes = [(one.name, len(one.shape), *fixed_sizes(one.shape)) for one in self._inputs if one.shape]
        self._steps = program.steps
        self._metadata = Metadata(
            *(model.producer_name, model.graph.name, model.domain, model.doc_string, model.graph.doc_string),
            model.model_version,
            {one.key: one.value for one in model.metadata_props},
        )

    def get_inputs(self) -> list[Argument]:
        """The inputs that a run needs.

        Returns
        -------
        list of Argument
            ``name``, ``shape``, in which a size may be a name or None, and ``type``.
        """
        return [one for one in self._inputs if one.name in self._needed]

    def get_overridable_initializers(self) -> list[Argument]:
        """The inputs that a run may be given, and has else.

        Returns
        -------
        list of Argument
        """
        return [one for one in self._inputs if one.name in self._optional]

    def get_outputs(self) -> list[Argument]:
        """The outputs of a run.

        Returns
        -------
        list of Argument
        """
        return list(self._outputs)

    def get_modelmeta(self) -> Metadata:
        """What is written of the model.

        Returns
        -------
        Metadata
        """
        return self._metadata

    def get_providers(self) -> list[str]:
        """What ONNX Runtime runs the rest on; recurrent nodes run on the CPU.

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
            Which outputs, in which order; None, or an empty list, is all of them.
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
            For an output or an input that the model does not have, one that is missing or of another shape than the
            model says, and for what a node refuses.
        """
        if not isinstance(input_feed, dict):
            raise TypeError(f"input_feed: expected a dict of arrays by name, got {type(input_feed).__name__}")
        if output_names is not None and not isinstance(output_names, list | tuple):
            raise TypeError(f"output_names: expected a list of names, or None, got {output_names!r:.80}")
        if run_options is not None and isinstance(self._rest, Reference):
            raise ValueError('run_options: expected None beside rest="reference"; they are ONNX Runtime\'s')
        wanted = list(output_names) if output_names else self.output_names
        if strange := [name for name in wanted if name not in self.output_names]:
            raise ValueError(f"output_names: expected some of {self.output_names}, got {strange[0]!r}")
        if input_feed.keys() != self._needed:
            self._check_names(input_feed)
        for name, rank, fixed, sizes in self._sizes:
            shape = getattr(input_feed.get(name), "shape", None)
            if shape is not None and (len(shape) != rank or fixed(shape) != sizes):
                self._refuse_shape(name, shape)
        values = self._program.run(input_feed, run_options)
        return [values[name] for name in wanted]

    def _check_names(self, inputs: Values) -> None:
        if strange := sorted(inputs.keys() - self._optional - self._needed):
            raise ValueError(f"input_feed: expected {', '.join(self.input_names)}, got {strange[0]!r}")
        if missing := [name for name in self.input_names if name not in inputs]:
            raise ValueError(f"input_feed: expected {', '.join(self.input_names)}, without {missing[0]!r}")

    def _refuse_shape(self, name: str, shape: tuple[int, ...]) -> None:
        (own,) = [one for one in self._inputs if one.name == name]
        wanted = ", ".join(str(n) for n in own.shape)
        raise ValueError(f"input_feed: {name}: expected shape ({wanted}), as the model says, got {tuple(shape)}")


def argument(value: Any) -> Argument:
    """Of a ValueInfoProto."""
    of_axis = value.type.tensor_type.shape.dim
    sizes = [one.dim_value if one.HasField("dim_value") else one.dim_param or None for one in of_axis]
    return Argument(value.name, sizes, text_of(value.type, value.name))


def fixed_sizes(shape: Sequence[Any]) -> tuple[Callable[[Any], Any], Any]:
    """What takes of a shape the sizes that the model fixes, and these; in every run it takes its time."""
    axes = [axis for axis, n in enumerate(shape) if isinstance(n, int)]
    fixed = itemgetter(*axes) if axes else bool
    return fixed, fixed(shape)
