"""Builds the module `dsn_simt`, the host that runs the CUDA kernels, and prints its path: `python csrc/simt/build.py`.

Needs g++ (12 or later), ninja, pybind11 and the headers of a CUDA toolkit; no GPU, no nvcc, no torch. Exit status: 0, 1
if a compiler failed, 3 if one of these is missing. The runner's own sources are compiled plainly, the kernels
(``bindings/*.cpp`` and what they include) with instrumentation:

- ``--sanitizer none`` (the default): every load and store calls the runner, which checks bounds, alignment and races
  itself and counts; the undefined-behaviour sanitizer watches the rest. Any Python imports it.
- ``--sanitizer address``: the address and undefined-behaviour sanitizers, no counting of plain accesses and no race
  detection. A sanitized module needs libasan ahead of Python: ``LD_PRELOAD=$(g++ -print-file-name=libasan.so)``.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1]
SIMT = CSRC / "simt"
# Kernels spend their time in the runner: optimised, they play an eighth faster and compile for three times as long. It
# would also take the load of a vector apart, whose alignment the runner could then not check.
KERNEL_OPTIMISATION = "-O0 -g1"
KERNEL_FLAGS = {
    # What the runner checks of every access itself (its address, so null too, and its alignment) is not checked twice:
    # that costs more than all the rest. The sanitizer's entry and exit of functions is of no use here.
    "none": "-fsanitize=thread,undefined -fno-sanitize=vptr,null,alignment,object-size,pointer-overflow"
    " --param tsan-instrument-func-entry-exit=0",
    "address": "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined",
}
RUNNER_FLAGS = {"none": "", "address": "-fsanitize=address"}
LINK_FLAGS = {"none": "", "address": "-fsanitize=address,undefined"}


class BuildError(RuntimeError):
    """What the compiler said."""


class MissingError(BuildError):
    """A tool or header that the build needs is not installed."""


def find_compiler() -> str:
    """The C++ compiler: CXX if set, else g++."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise MissingError("g++ not found")
    return compiler


def cuda_headers() -> Path:
    """The include folder of a CUDA toolkit: of CUDA_HOME, of the nvcc on PATH, or of /usr/local/cuda."""
    nvcc = shutil.which("nvcc")
    homes = (os.environ.get("CUDA_HOME"), str(Path(nvcc).resolve().parents[1]) if nvcc else None, "/usr/local/cuda")
    for home in filter(None, homes):
        if (Path(home) / "include" / "cuda_fp16.h").exists():
            return Path(home) / "include"
    raise MissingError("no CUDA headers (cuda_fp16.h): install a CUDA toolkit or set CUDA_HOME")


def module_path(sanitizer: str = "none", folder: str = "") -> Path:
    """Where :func:`build` leaves the module."""
    return CSRC.parent / "build" / "simt" / sanitizer / folder / f"dsn_simt{sysconfig.get_config_var('EXT_SUFFIX')}"


def build(sanitizer: str = "none", kernels: list[Path] | None = None, folder: str = "") -> Path:
    """Builds what changed and returns the module's path.

    ``kernels``: sources to bind instead of ``bindings/`` and ``python/``; the module then lies in ``folder``.
    """
    try:
        import pybind11
    except ImportError:
        raise MissingError("pybind11 not found") from None
    compiler = find_compiler()
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if not ninja:
        raise MissingError("ninja not found")
    pybind = [SIMT / "module.cpp"]
    if kernels is None:
        kernels = sorted((SIMT / "bindings").glob("*.cpp"))
        pybind += sorted((SIMT / "python").glob("*.cpp"))
    root = CSRC.parent / "build" / "simt"
    module = module_path(sanitizer, folder).relative_to(root)
    (root / module).parent.mkdir(parents=True, exist_ok=True)

    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(cuda_headers())]
    # Unique symbols would be shared by two modules in one process, such as the product's and one with kernels of tests.
    common = [compiler, "-std=c++20 -fPIC -fvisibility=hidden -fno-gnu-unique -march=native -DDSN_SIMT -Wall -Wextra"]
    common += ["-Wno-unknown-pragmas -fno-strict-aliasing"]  # kernels unroll, and read halves as wider words
    common.append(f"-I{CSRC}")
    headers = [f"-isystem {i}" for i in includes]
    # The runner's objects are shared: their commands, by which ninja knows what to build again, name no kernels.
    own = {"kernel": [f"-I{kernel.parents[1]}" for kernel in kernels[:1]]}
    flags = {
        "pybind": "-O1",
        "runner": f"-O2 -g1 {RUNNER_FLAGS[sanitizer]}",
        "kernel": f"{KERNEL_OPTIMISATION} {KERNEL_FLAGS[sanitizer]}",
    }
    folders = {"pybind": Path("pybind"), "runner": Path(sanitizer), "kernel": module.parent / "kernels"}
    sources = {"pybind": pybind, "runner": sorted({*SIMT.glob("*.cpp")} - {*pybind}), "kernel": kernels}
    plan, objects = [], []
    for rule, paths in sources.items():
        command = " ".join([*common, *own.get(rule, []), *headers, flags[rule]])
        plan.append(f"rule {rule}\n  command = {command} -MD -MF $out.d -c $in -o $out")
        plan.append("  depfile = $out.d\n  deps = gcc")
        objects += [f"{folders[rule]}/{path.stem}.o" for path in paths]
        plan += [f"build {folders[rule]}/{path.stem}.o: {rule} {path}" for path in paths]
    plan.append(f"rule link\n  command = {compiler} -shared -o $out $in {LINK_FLAGS[sanitizer]} -ldl -lpthread")
    plan.append(f"build {module}: link {' '.join(objects)}")
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time
        (root / "build.ninja").write_text("\n".join(plan) + "\n")
        done = subprocess.run([ninja, "-C", str(root)], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(done.stdout + done.stderr)
    return root / module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitizer", choices=list(KERNEL_FLAGS), default="none")
    parser.add_argument("--kernels", type=Path, metavar="FOLDER", help="whose sources to bind, not bindings/")
    given = parser.parse_args()
    try:
        kernels = given.kernels and sorted(given.kernels.resolve().glob("*.cpp"))
        print(build(given.sanitizer, kernels, "test" if kernels else ""))
    except BuildError as error:
        print(f"the host runner cannot be built: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, MissingError) else 1)
