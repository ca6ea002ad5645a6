#!/usr/bin/env bash
# The tests under sanitizers: tests/sanitize.sh [c|python|threads|valgrind] ...; all of them without an argument.
#
#   c         tests/c/run.sh with ASan + UBSan, then with TSan: team, wavefronts, backward of several calls
#   python    pytest, a selection, on an extension built with ASan + UBSan, the runtimes preloaded
#   threads   pytest, tests with several threads, on an extension built with TSan
#   valgrind  memcheck of the C program, on the x86-64 baseline                            (apt install valgrind)
#
# Needs gcc with its sanitizers and $PYTHON, or python3, with numpy, pytest, hypothesis and the build requirements of the
# extension. The interpreter and NumPy are not built with TSan: it sees the core's accesses and their locks. Left out are
# tests that need much memory or time, tests that count threads (TSan starts one of its own), and backends not written in
# C. docs/develop/verification.md has the last results.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

c() { bash tests/c/run.sh asan && bash tests/c/run.sh tsan; }

# An extension in $work/$1 with these flags; and pytest on it, these runtimes preloaded.
build() {
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --target "$work/$1" -C install.strip=false \
        -C "cmake.define.CMAKE_C_FLAGS=-g $2" .
    rm -rf "$work/$1/fastrnn"
}

on() {
    local extension=$1 runtimes=$2
    shift 2
    LD_PRELOAD=$(for each in $runtimes; do gcc -print-file-name="lib$each.so"; done | paste -sd:) ASAN_OPTIONS=detect_leaks=0 \
        PYTHONPATH="$work/$extension:$PWD" "$PYTHON" -m pytest -q -p no:cacheprovider -m "not exhaustive and not long" "$@"
}

left="not numba and not numpy and not failure and not taken and not test_sizes_beyond"

python() {
    build asan "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    on asan "asan ubsan" tests/test_memory.py tests/test_hostile*.py tests/test_streams.py tests/test_bfloat16.py -k "$left"
}

threads() {
    build tsan -fsanitize=thread
    on tsan tsan tests/test_threads.py tests/test_bfloat16.py -k "$left and not fork and not queue and not use_threads and not no_more_threads"
}

valgrind() { bash tests/c/run.sh valgrind; }

for what in "${@:-c python threads valgrind}"; do for each in $what; do "$each"; done; done
