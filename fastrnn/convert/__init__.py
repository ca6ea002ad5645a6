"""Weights in and out. Frameworks are imported only by the functions that need them."""

from fastrnn.convert.by_gate import from_gates
from fastrnn.convert.files import load, save
from fastrnn.convert.keras import from_keras, to_keras
from fastrnn.convert.onnx import from_onnx
from fastrnn.convert.onnx_writer import to_onnx
from fastrnn.convert.torch import from_torch, to_torch

__all__ = ["from_gates", "from_keras", "from_onnx", "from_torch", "load", "save", "to_keras", "to_onnx", "to_torch"]
