"""Compare fastrnn with its peers and the machine's limits, on the grid of `grid.py`: `python -m benchmarks.compare`.

`grid` and `problem` define the measurements; `peers`, `jax_peer`, `onnx_peers` and `limits` are timed, each in its own
process (`worker`, started by `process`); `rounds` alternates them; `figures`, `machine`, `report` and `chart` show the
results.
"""
