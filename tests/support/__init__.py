"""What tests, the fuzzers, the vectors of the C core and asv share: problems, tolerances, layers, models, cells."""
