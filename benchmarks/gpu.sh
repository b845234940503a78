#!/usr/bin/env bash
# Builds, tests and measures the GPU kernels on a machine with a GPU and torch (2.11 or later) installed; needs no network,
# no kornia and no pydantic, and ends inside 9 minutes:
#     bash benchmarks/gpu.sh OUT_DIR
#     bash benchmarks/gpu.sh OUT_DIR --rehearse [--inject hang,wrong,fault,missing]     without a GPU, on stand-ins
# OUT_DIR receives gpu.json, written as it goes, and steps.log. Every step is a process with a time limit of its own: one
# that fails, hangs or dies is an entry that says so, and the others are there. Exit status: 0, 1 if a step failed, 2 if
# nothing could be started. PYTHON chooses the interpreter that has torch, GPU_SECONDS another time than 525.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "no interpreter $python; set PYTHON to one that has torch" >&2
  exit 2
fi
export PYTHONPATH=$root:$root/python:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export PYTORCH_NVML_BASED_CUDA_CHECK=1  # to ask whether there is a device must not open it: steps are forked
exec "$python" -m gpu.run "$@"
