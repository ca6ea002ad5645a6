"""What asv runs. It imports every module of this package, so the comparisons with peers stand outside."""

import sys
from pathlib import Path

# For `grid` and `problems`. Not the repository's root: there the source of fastrnn would hide the build that asv times.
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
