"""Builds the module `dsn_simt`, the host that runs the CUDA kernels, and prints its path: `python csrc/simt/build.py`.

Needs g++ (12 or later), ninja, pybind11 and the headers of a CUDA toolkit; no GPU, no nvcc, no torch. The runner's own
sources are compiled plainly, the kernels (``bindings/*.cpp`` and what they include) with instrumentation:

- ``--sanitizer none`` (the default): every load and store calls the runner, which checks bounds, alignment and races
  itself and counts; the undefined-behaviour sanitizer watches the rest. Any Python imports it.
- ``--sanitizer address``: the address and undefined-behaviour sanitizers, no counting of plain accesses and no race
  detection. A sanitized module needs libasan ahead of Python: run it as ``LD_PRELOAD=$(g++ -print-file-name=libasan.so)``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1]
SIMT = CSRC / "simt"
KERNEL_FLAGS = {
    # the sanitizer's entry and exit of functions is of no use here, and half its cost
    "none": "-fsanitize=thread,undefined --param tsan-instrument-func-entry-exit=0",
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
}
RUNNER_FLAGS = {"none": "", "address": "-fsanitize=address"}
LINK_FLAGS = {"none": "-lubsan", "address": "-fsanitize=address,undefined"}


class BuildError(RuntimeError):
    """What is missing, or what the compiler said."""


def cuda_headers() -> Path:
    """The include folder of a CUDA toolkit: of CUDA_HOME, of the nvcc on PATH, or of /usr/local/cuda."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    for home in filter(None, homes):
        if (Path(home) / "include" / "cuda_fp16.h").exists():
            return Path(home) / "include"
    raise BuildError("no CUDA headers (cuda_fp16.h): install a CUDA toolkit or set CUDA_HOME")


def build(sanitizer: str = "none", sources: list[Path] | None = None, name: str = "dsn_simt") -> Path:
    """Builds what changed and returns the module's path. ``sources``: kernels to bind, all of bindings/ if not given."""
    import pybind11

    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not ninja or not compiler:
        raise BuildError(f"{'ninja' if compiler else 'g++'} not found")
    kernels = sorted((SIMT / "bindings").glob("*.cpp")) if sources is None else sources
    folder = CSRC.parent / "build" / "simt" / f"{name}-{sanitizer}"
    folder.mkdir(parents=True, exist_ok=True)
    module = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(cuda_headers())]
    common = " ".join(
        ["-std=c++20 -g1 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -march=native -DDSN_SIMT -Wall -Wextra -Wno-unknown-pragmas"]
        + ["-fno-strict-aliasing", f"-DDSN_SIMT_MODULE={name}", f"-I{CSRC}", f"-I{CSRC.parent}/tests/simt"]  # kernels read halves as wider words
        + [f"-isystem {path}" for path in includes]
    )
    rules = [
        f"rule runner\n  command = {compiler} {common} -O2 {RUNNER_FLAGS[sanitizer]} -MD -MF $out.d -c $in -o $out",
        f"rule kernel\n  command = {compiler} {common} -O1 {KERNEL_FLAGS[sanitizer]} -MD -MF $out.d -c $in -o $out",
        f"rule link\n  command = {compiler} -shared -o $out $in {LINK_FLAGS[sanitizer]} -ldl -lpthread",
    ]
    rules = [rule if "rule link" in rule else rule + "\n  depfile = $out.d\n  deps = gcc" for rule in rules]
    objects = []
    python = sorted((SIMT / "python").glob("*.cpp")) if sources is None else []
    for rule, paths in (("runner", [*sorted(SIMT.glob("*.cpp")), *python]), ("kernel", kernels)):
        for path in paths:
            objects.append(f"{rule}_{path.stem}.o")
            rules.append(f"build {objects[-1]}: {rule} {path}")
    rules.append(f"build {module.name}: link {' '.join(objects)}")
    text = "\n".join(rules) + "\n"
    plan = folder / "build.ninja"
    if not plan.exists() or plan.read_text() != text:
        plan.write_text(text)
    done = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(done.stdout + done.stderr)
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitizer", choices=list(KERNEL_FLAGS), default="none")
    print(build(parser.parse_args().sanitizer))
