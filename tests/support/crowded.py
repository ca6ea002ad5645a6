"""Imported by tests: split work among as many threads as on a large, idle machine."""

from fastrnn.backends import available_isas

if available_isas():
    import _fastrnn

    _fastrnn.set_cpus(16)
    _fastrnn.set_backoff(0)
