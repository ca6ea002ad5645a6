"""Helpers shared by tests, fuzzers, the C core's vectors and asv: problems, tolerances, layers, models, cells."""
