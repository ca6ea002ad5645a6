"""Import and export of models and weights. Frameworks are imported only by the functions that need them."""

from fastrnn.convert.audio import from_nam, from_rtneural
from fastrnn.convert.by_gate import from_gates
from fastrnn.convert.c import to_c
from fastrnn.convert.files import load, save
from fastrnn.convert.jax import from_equinox, from_flax, from_haiku
from fastrnn.convert.keras import from_keras
from fastrnn.convert.keras_writer import to_keras
from fastrnn.convert.onnx import from_onnx
from fastrnn.convert.onnx_writer import to_onnx
from fastrnn.convert.quantization import quantize
from fastrnn.convert.torch import from_torch, to_torch

__all__ = [
    "from_equinox",
    "from_flax",
    "from_gates",
    "from_haiku",
    "from_keras",
    "from_nam",
    "from_onnx",
    "from_rtneural",
    "from_torch",
    "load",
    "quantize",
    "save",
    "to_c",
    "to_keras",
    "to_onnx",
    "to_torch",
]
