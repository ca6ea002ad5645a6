#!/usr/bin/env bash
# Check that tests and examples pass on any machine: tests/matrix.sh [--sample] [tests|learning]
#
#   tests     pytest (its arguments in $PYTEST) with each instruction set, OpenBLAS kernel and number of threads, and
#             with other seeds; stops at the first failure. Hours; --sample takes minutes
#   learning  examples that must learn, from ten seeds on each instruction set; --sample: one seed, the quick settings
#
# It sets FASTRNN_ISA, OPENBLAS_CORETYPE, FASTRNN_NUM_THREADS and FASTRNN_TEST_SEED, which suffice to repeat a failing
# combination. Kernels that the processor does not support are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
sample=
[[ ${1:-} == --sample ]] && sample=yes && shift

mapfile -t isas < <("$python" -c 'from fastrnn.backends import available_isas; print(*available_isas(), sep="\n")' |
    grep -v -e -bf16)  # it differs in bfloat16 weights only

tests() {
    local kernels=(Prescott) given=()
    grep -qw avx2 /proc/cpuinfo && kernels+=(Haswell Zen)
    grep -qw avx512f /proc/cpuinfo && kernels+=(SkylakeX)
    read -ra given <<<"${PYTEST:-}"
    run() { # instruction set, kernel, threads, seed
        printf '\n=== FASTRNN_ISA=%s OPENBLAS_CORETYPE=%s FASTRNN_NUM_THREADS=%s FASTRNN_TEST_SEED=%s\n' "$@"
        FASTRNN_ISA=$1 OPENBLAS_CORETYPE=$2 FASTRNN_NUM_THREADS=$3 FASTRNN_TEST_SEED=$4 \
            "$python" -m pytest -q "${given[@]}"
    }
    if [[ $sample ]]; then # each value of each axis once or more, on the tests whose bars are about rounding
        given+=(--sample 3 -k "not numba" tests/test_backends.py tests/test_reference.py tests/test_layers.py
            tests/test_streams.py tests/test_bfloat16.py tests/test_training_layers.py tests/test_training_layers_backends.py tests/test_inspect.py
            tests/test_optimizers.py tests/test_optimizers_rows.py tests/test_sequential.py)
        for n in "${!kernels[@]}"; do
            run "${isas[n % ${#isas[@]}]}" "${kernels[n]}" $((n % 2 + 1)) "$n"
        done
        return
    fi
    given+=(-m "not exhaustive and not long")
    for isa in "${isas[@]}"; do
        for kernel in "${kernels[@]}"; do
            for threads in 1 2; do run "$isa" "$kernel" "$threads" 0; done
        done
        for seed in 1 2 3 4 5; do run "$isa" "${kernels[-1]}" 2 "$seed"; done
    done
}

learning() {
    local seeds=({0..9}) quick=() speech=yes folder n=0
    [[ $sample ]] && quick=(--quick)
    if ! "$python" -c 'import importlib.metadata as m; m.version("aeon")' 2>/dev/null; then
        local missing='aeon, which japanese_vowels.py reads, is missing: pip install --no-deps aeon'
        [[ $sample ]] || { echo "$missing" >&2; exit 1; }
        echo "left out: $missing"
        speech=
    fi
    folder=$(mktemp -d)
    trap "rm -rf '$folder'" EXIT
    learn() {
        "$python" -W error "$@" --seed "$seed" >"$folder/log" || { cat "$folder/log"; echo "FAILED: $*"; exit 1; }
        printf '%s, %s, seed %s: %s\n' "$(basename "$1")" "$FASTRNN_ISA" "$seed" "$(tail -n 1 "$folder/log")"
    }
    for FASTRNN_ISA in "${isas[@]}"; do
        export FASTRNN_ISA
        [[ ! $sample ]] || seeds=($((++n)))  # each has a seed of its own
        for seed in "${seeds[@]}"; do
            learn docs/examples/seeing.py "$folder"
            for program in docs/examples/seed_*.py; do learn "$program" "${quick[@]}"; done
            learn docs/examples/character_model.py --quick
            [[ ! $speech ]] || learn docs/examples/japanese_vowels.py
            "$python" -c "import sys; from fastrnn import demo; sys.exit(demo.main($seed))" >"$folder/log" ||
                { cat "$folder/log"; exit 1; }
        done
    done
}

"${1:-tests}"
