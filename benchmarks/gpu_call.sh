#!/usr/bin/env bash
# Install the wheels from .whl and run `python -m benchmarks`. The machine needs no network connection.
# usage: benchmarks/gpu_call.sh FOLDER_FOR_RESULTS [arguments of python -m benchmarks]
set -o pipefail
cd "$(dirname "$0")/.." || exit
out=$1
shift
mkdir -p "$out" /tmp/site
export PYTHONUNBUFFERED=1
export PYTHONPATH=/tmp/site:$PWD
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl || exit
nvidia-smi
python3 -m benchmarks --out "$out" "$@" 2>&1 | tee "$out/benchmarks.log"
status=$?
cat "$out"/*.md
exit $status
