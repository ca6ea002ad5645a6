"""Imported by tests: work is split among as many threads as on a large and idle machine, whatever this one is."""

from fastrnn.backends import available_isas

if available_isas():
    import _fastrnn

    _fastrnn.set_cpus(16)
    _fastrnn.set_backoff(0)
