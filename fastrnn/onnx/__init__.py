"""Run ONNX's RNN, GRU and LSTM nodes on fastrnn: an ``onnx.backend``, and sessions for larger models.

All attributes and inputs are supported, in float and double: directions, peepholes, sequence_lens, layout,
linear_before_reset, clip, activations with their alpha and beta, input_forget, initial states. The compiled kernels run
all of them. Non-default activations (an RNN's may be Tanh, Relu, Sigmoid, or Affine with alpha 1 and beta 0), clip and
input_forget make a cell that is compiled at its first use (``pip install 'fastrnn[cells]'`` installs the compiler)
unless the wheel has it: Relu in place of every Tanh, HardSigmoid in place of Sigmoid, input_forget. Without a compiler
a NumPy loop runs such cells, many times slower; `runs_in_kernels` and ``Session.nodes`` report this.

Where the ONNX specification is ambiguous, fastrnn follows ONNX Runtime: each activation consumes the next alpha and
beta that it takes, clip bounds the gates' inputs but not the cell state, Y is 0 past a sequence's length, and Y_h and
Y_c of a sequence of length 0 are 0 whatever its initial state.
A missing alpha or beta defaults to that of ONNX's operator of the same name, or to 1 if there is none.

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
