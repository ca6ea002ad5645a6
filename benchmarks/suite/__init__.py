"""What asv runs, on the grid of `python -m fastrnn bench`."""

import sys
from pathlib import Path

# For `support.problems` and `grid`, which imports nothing of fastrnn. Not the repository's root: there the source of
# fastrnn would hide the build that asv times.
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks" / "compare")]
