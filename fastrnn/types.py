"""Types in the signatures of every module."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]
