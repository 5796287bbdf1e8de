#!/usr/bin/env bash
# Every GPU question in one call of at most eight minutes, one JSON line per part as it ends:
#     bash bench/gpu.sh [--quick] [--parts laws_float32 speed …] [--output bench/results/gpu.jsonl]
# --quick: toy sizes on the CPU.  --pack: copy what a bare machine lacks (jieba, tqdm) to .gpu_packages/, where there is
# a network; that folder is ignored by git and is found here by itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUTF8=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:$PWD/.gpu_packages"
# as tools/process/first.py has it: threads that wait do not spin, which beside other processes costs minutes
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}" KMP_BLOCKTIME="${KMP_BLOCKTIME:-1}"
exec "${PYTHON:-python3}" bench/gpu/drive.py "$@"
