"""fastrnn against its peers and against the machine, on the grid of `grid.py`: `python -m benchmarks.compare`.

`grid` and `problem` say what is measured; `peers`, `jax_peer`, `onnx_peers` and `limits` are what is timed, each in a
process of its own (`worker`, started by `process`); `rounds` times them by turns; `figures`, `machine`, `report` and
`chart` say what came of it.
"""
