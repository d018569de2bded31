#!/usr/bin/env bash
# bash bench/gpu_run.sh OUTDIR
#
# Builds the kernels for the GPU of this machine, proves them (tests marked gpu, compute-sanitizer
# memcheck and racecheck on small cases) and measures them (copy and FMA rate, layers against their
# peers). One command, under 9 minutes, no network: it uses the python3, torch and nvcc that are
# there. Writes OUTDIR/<gpu>.json as it goes, logs beside it, and a table at the end.
#
# Ends with 0 where all was right, 1 where a step failed, 2 on bad arguments, 3 without a GPU.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu/run.py" "$@"
