#!/usr/bin/env bash
# The tests under sanitizers: tests/sanitize.sh [c|python|valgrind] ...; all of them without an argument.
#
#   c         tests/c/run.sh with ASan + UBSan, then with TSan: team, wavefronts, backward of several calls
#   python    pytest, a short selection, on an extension built with ASan + UBSan, the runtimes preloaded
#   valgrind  memcheck of the C program, on the x86-64 baseline                            (apt install valgrind)
#
# Needs gcc with its sanitizers and $PYTHON, or python3, with numpy, pytest, hypothesis and what builds the extension.
# docs/promises.md has the last result.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

c() { bash tests/c/run.sh asan && bash tests/c/run.sh tsan; }

python() {
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --target "$work/lib" -C install.strip=false \
        -C "cmake.define.CMAKE_C_FLAGS=-g -fsanitize=address,undefined -fno-sanitize-recover=undefined" .
    rm -rf "$work/lib/fastrnn"
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
        PYTHONPATH="$work/lib:$PWD" "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_memory.py \
        tests/test_hostile.py tests/test_streams.py -k "not numba and not had and not taken and not test_sizes_beyond"
}

valgrind() { bash tests/c/run.sh valgrind; }

for what in "${@:-c python valgrind}"; do for each in $what; do "$each"; done; done
