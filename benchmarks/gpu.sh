#!/usr/bin/env bash
# Builds, tests and measures the GPU kernels on a machine with a GPU and torch (2.11 or later) installed; needs no network
# and ends inside 9 minutes:
#     bash benchmarks/gpu.sh OUT_DIR
# OUT_DIR receives gpu.json (the schema of `dsn bench --json` and the environment), written as it goes, and the logs of the
# build, the tests and compute-sanitizer. PYTHON chooses the interpreter that has torch, GPU_SECONDS another time.
set -uo pipefail

if [ $# -ne 1 ]; then
  echo "usage: bash benchmarks/gpu.sh OUT_DIR" >&2
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
start=$SECONDS
budget=${GPU_SECONDS:-525}
if ! [[ $budget =~ ^[0-9]+$ ]]; then
  echo "GPU_SECONDS is '$budget'; expected whole seconds, such as 525" >&2
  exit 2
fi
left() { echo $((budget - SECONDS + start)); }
# within SECONDS COMMAND...: the command, ended when that or the script's own time is over
within() {
  local limit=$1 rest
  rest=$(left)
  shift
  [ "$rest" -lt "$limit" ] && limit=$rest
  [ "$limit" -lt 5 ] && return 124
  timeout -k 5 "$limit" "$@"
}

arch=$("$python" - <<'PY'
import sys
try:
    import torch
except ImportError:
    sys.exit(f"no torch for {sys.executable}; install one with CUDA or set PYTHON")
if not torch.cuda.is_available():
    sys.exit(f"no GPU that torch {torch.__version__} can use; run this on a machine with one")
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + ("a" if major == 9 else ""))
PY
) || exit 2

echo "build for sm_$arch"
if ! MAX_JOBS=$(nproc) FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$arch \
  within 240 "$python" setup.py build_ext --inplace >"$out/build.log" 2>&1; then
  echo "the build failed or took too long; the end of $out/build.log:" >&2
  tail -n 20 "$out/build.log" >&2
  exit 1
fi
export PYTHONPATH=$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
echo "built, $(left) s left"

measure() { "$python" benchmarks/gpu.py --out "$out/gpu.json" "$@"; }

within 20 "$python" benchmarks/gpu.py --out "$out/gpu.json" environment || exit 1
if DSN_GPU_TESTS_ONLY=1 within 90 "$python" -m pytest -q -x tests/cuda >"$out/tests.log" 2>&1; then
  measure note tests "$(tail -n 1 "$out/tests.log")"
else
  measure note tests "failed or cut short, see tests.log: $(tail -n 1 "$out/tests.log")"
fi
tail -n 1 "$out/tests.log"
echo "tested, $(left) s left"

# What is left when everything is measured goes to compute-sanitizer; it has at least this long.
reserve=80
within $(($(left) - reserve)) "$python" benchmarks/gpu.py --out "$out/gpu.json" measure --seconds $(($(left) - reserve - 15))
status=$?
[ $status -eq 124 ] && measure note measure "cut short" && status=0
echo "measured, $(left) s left"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck; do
    if within 40 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" benchmarks/gpu.py --out /dev/null once \
      >"$out/sanitizer-$tool.log" 2>&1; then
      measure note "sanitizer_$tool" "no errors"
    else
      measure note "sanitizer_$tool" "$(grep -m 1 -E 'ERROR SUMMARY|Device not supported|Error|hazard' "$out/sanitizer-$tool.log" || echo 'cut short')"
    fi
  done
else
  measure note sanitizer "not installed"
fi
echo "$out/gpu.json after $((SECONDS - start)) s"
exit $status
