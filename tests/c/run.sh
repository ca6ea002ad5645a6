#!/usr/bin/env bash
# Test the C core without Python: tests/c/run.sh [native|neon|asan|tsan|valgrind]
#
#   native   every instruction set that this machine supports
#   neon     cross-compiled for AArch64, under QEMU       (gcc-aarch64-linux-gnu, qemu-user)
#   asan     native, with -fsanitize=address,undefined; fewer problems, like the following; neon has fewer still
#   tsan     native, with -fsanitize=thread; tests with several threads
#   valgrind memcheck of the baseline, because it does not support all of AVX-512         (valgrind)
#
# Needs CMake, and a Python with NumPy: $PYTHON, or python3. Builds in $BUILD, or in a temporary directory.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
build=${BUILD:-$(mktemp -d)}
mkdir -p "$build"
[[ -v BUILD ]] || trap 'rm -rf "$build"' EXIT

options=() emulator=() selection=() part=()
case ${1:-native} in
    native) ;;
    neon)
        options=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc)
        emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
        selection=(--small 1) ;;
    asan) options=("-DCMAKE_C_FLAGS=-g -fsanitize=address,undefined -fno-sanitize-recover=all") selection=(--small 2) ;;
    tsan) options=("-DCMAKE_C_FLAGS=-g -fsanitize=thread") selection=(--small 2) part=(threads) ;;
    valgrind)
        options=(-DCMAKE_C_FLAGS=-g)
        leaks=(--leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite) # workers never end
        emulator=(valgrind --quiet --error-exitcode=9 "${leaks[@]}" --max-stackframe=4000000)
        selection=(--small 2) part=(memory) ;;
    *) echo "usage: $0 [native|neon|asan|tsan|valgrind]" >&2; exit 2 ;;
esac

cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release "${options[@]}" >"$build/log"
cmake --build "$build" --parallel 2 >>"$build/log"
PYTHONPATH=$root:$root/tests "${PYTHON:-python3}" make_vectors.py "${selection[@]}" "$build/vectors"
"${emulator[@]}" "$build/run_vectors" "$build/vectors" "${part[@]}"
