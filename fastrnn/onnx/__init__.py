"""ONNX's RNN, GRU and LSTM nodes on fastrnn: an ``onnx.backend``, and sessions for larger models.

Every attribute and input is taken: directions, peepholes, sequence_lens, layout, linear_before_reset, clip,
activations with their alpha and beta, input_forget, initial states; of float and double. The compiled kernels run
them all. Other activations than the default ones (an RNN's may be Tanh, Relu, Sigmoid, or Affine with alpha 1 and beta
0), clip and input_forget make a cell that is compiled at its first use unless the wheel has it (Relu in the place of
every Tanh, HardSigmoid in that of Sigmoid, input_forget), for which ``pip install 'fastrnn[cells]'`` has the compiler;
without it a loop in NumPy runs them, many times slower. `runs_in_kernels` tells, and so does ``Session.nodes``.

Where ONNX's words leave a choice, it is ONNX Runtime's: each activation consumes the next alpha and beta that it
takes, clip bounds what goes into the gates and not the cell state on its way out, and Y is 0 past a sequence's length,
as Y_h and Y_c are of a sequence of length 0, whatever its initial state.
An alpha or beta that is not given is that of ONNX's operator of the same name, or 1 where there is none.

Examples
--------
>>> import numpy as np, fastrnn.onnx
>>> from onnx import helper
>>> node = helper.make_node("LSTM", ["X", "W", "R"], ["Y", "Y_h"], direction="bidirectional")
>>> rng = np.random.default_rng(0)
>>> W, R = rng.standard_normal((2, 16, 3)), rng.standard_normal((2, 16, 4))
>>> Y, Y_h = fastrnn.onnx.run_node(node, [rng.standard_normal((5, 2, 3)), W, R])
>>> Y.shape, Y_h.shape
((5, 2, 2, 4), (2, 2, 4))
"""

from fastrnn.onnx.backend import (
    Backend,
    Prepared,
    is_compatible,
    prepare,
    run_model,
    run_node,
    runs_in_kernels,
    supports_device,
)
from fastrnn.onnx.program import Placed
from fastrnn.onnx.session import Argument, Metadata, Session

__all__ = [
    "Argument",
    "Backend",
    "Metadata",
    "Placed",
    "Prepared",
    "Session",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "runs_in_kernels",
    "supports_device",
]
