"""Builds the one native module `dsn_kernels._C`: a pybind11 module and operators on LibTorch's stable ABI.

Environment (a switch is 1, on, yes or true; or unset, empty, 0, off, no or false; anything else is refused):
    TORCH_CUDA_ARCH_LIST  compile CUDA for these architectures, as in "8.0;9.0a;12.0+PTX", or "all": those of ALL_ARCHS
                          that nvcc knows (default: that of each GPU here; without a GPU no CUDA is compiled)
    FORCE_CUDA=1          compile CUDA without a GPU too, for "all" if nothing else is given; fail where nvcc is missing
    BUILD_NO_CUDA=1       leave the CUDA sources out, even where nvcc and a GPU are found
    CUDA_HOME             the CUDA toolkit to use (default: the nvcc on PATH, then /usr/local/cuda)
    MAX_JOBS              compilers that run at a time (default: one per core)
    DEBUG=1               no optimisation, debug symbols
    CHECK_SPILLS=1        fail where a GPU kernel spills registers or has a stack frame
    CXX                   C++ compiler (default: c++ or g++)
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.errors import PlatformError

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    hint = "run 'pip install torch==2.13.0 ninja pybind11' first, or build without --no-build-isolation"
    raise SystemExit(f"error: the build needs {error.name}: {hint}") from None

CSRC = Path(__file__).resolve().parent / "csrc"
TORCH_FLOOR = (2, 11)
ALL_ARCHS = "7.5;8.0;8.6;8.9;9.0a;10.0;12.0+PTX"

SWITCHES = ("BUILD_NO_CUDA", "FORCE_CUDA", "DEBUG", "CHECK_SPILLS")
ON, OFF = ("1", "on", "yes", "true"), ("", "0", "off", "no", "false")


def switch(name: str) -> bool:
    given = os.environ.get(name, "").lower()
    if given not in ON + OFF:
        raise PlatformError(f"{name} is {os.environ[name]!r}; expected 1 or 0")
    return given in ON


def check_environment() -> None:
    """Refuses an unknown value of any variable before anything is built."""
    for name in SWITCHES:
        switch(name)
    jobs = os.environ.get("MAX_JOBS", "1")
    if not jobs.isdecimal() or int(jobs) < 1:
        raise PlatformError(f"MAX_JOBS is {jobs!r}; expected a number of compilers, 1 or more, or none")


def find_compiler() -> str:
    """The C++ compiler: CXX if set, else the first usual name on PATH."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]
    found = [command for command in candidates if shutil.which(shlex.split(command)[-1])]
    if found:
        return found[0]
    tried = ", ".join(candidates)
    raise PlatformError(f"no C++ compiler: {tried} not found; install one (Debian: apt-get install g++) or set CXX")


def find_nvcc() -> str | None:
    """Path of nvcc, or None for a build without CUDA."""
    forced, home = switch("FORCE_CUDA"), os.environ.get("CUDA_HOME")
    if forced and switch("BUILD_NO_CUDA"):
        raise PlatformError("FORCE_CUDA and BUILD_NO_CUDA contradict each other: unset one of them")
    places = f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    nvcc = None if switch("BUILD_NO_CUDA") else shutil.which("nvcc", path=places)
    if forced and not nvcc:
        raise PlatformError(f"FORCE_CUDA is set, but no nvcc in {places}: install the CUDA toolkit or set CUDA_HOME")
    return nvcc


def parse_archs(text: str) -> list[tuple[str, bool]]:
    """[("9.0a", True)] for "9.0a+PTX"; the flag says whether PTX is embedded beside the machine code."""
    archs = [re.fullmatch(r"(\d+\.\d[af]?)(\+PTX)?", entry) for entry in text.replace(";", " ").split()]
    if not archs or None in archs:
        raise PlatformError(f"TORCH_CUDA_ARCH_LIST={text!r}: expected all, or entries such as 9.0, 9.0a, split by ;")
    return [(match[1], bool(match[2])) for match in archs]


def gpu_archs() -> str:
    """The architectures of the GPUs here, as in TORCH_CUDA_ARCH_LIST; empty without one."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = sorted(set(re.findall(r"^\d+\.\d$", told, re.MULTILINE)))
    return ";".join(arch + "a" * (arch == "9.0") for arch in found)  # Hopper's kernels need sm_90a


def choose_archs(known: list[str]) -> list[tuple[str, bool]]:
    """What to compile CUDA for, as :func:`parse_archs` gives it; nothing without a GPU, unless it is asked for.

    ``known``: what nvcc compiles for, as it lists them, "compute_90". What was named is not held against it.
    """
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "") or gpu_archs() or ("all" if switch("FORCE_CUDA") else "")
    if given != "all":
        return parse_archs(given) if given else []
    return [arch for arch in parse_archs(ALL_ARCHS) if f"compute_{re.sub('[.a]', '', arch[0])}" in known]


class BuildNative(BuildExtension):
    """BuildExtension that first checks and prints the configuration and, given an nvcc, compiles csrc/cuda with it."""

    def finalize_options(self):
        super().finalize_options()
        if self.editable_mode:  # pip's own folder is temporary; in this one the next build finds its objects
            self.build_temp = str(CSRC.parent / "build" / f"editable-{sysconfig.get_platform()}-{sys.version_info[1]}")

    def run(self):
        os.environ["CXX"] = find_compiler()
        os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
        if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH_FLOOR:
            raise PlatformError(f"torch {torch.__version__} is too old: expected 2.{TORCH_FLOOR[1]} or later")
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            raise PlatformError("Python.h not found: install Python's headers (Debian: apt-get install python3-dev)")
        if not shutil.which("ninja"):
            raise PlatformError("ninja not found: run 'pip install ninja'")
        print(f"dsn-kernels: torch {torch.__version__}, {os.environ['CXX']}, {os.environ['MAX_JOBS']} jobs", flush=True)
        reason, archs = "BUILD_NO_CUDA is set" if switch("BUILD_NO_CUDA") else "nvcc not found", []
        if nvcc := find_nvcc():
            known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
            reason, archs = "no GPU here (TORCH_CUDA_ARCH_LIST=all compiles CUDA all the same)", choose_archs(known)
        if archs:
            self.add_cuda(self.extensions[0], nvcc, archs)
        else:
            print(f"dsn-kernels: {reason}: building the CPU kernels only", flush=True)
        super().run()

    def add_cuda(self, extension, nvcc: str, archs: list[tuple[str, bool]]):
        """Compiles csrc/cuda/*.cu and links them with the static CUDA runtime: no torch header, no CUDA at import."""
        names = " ".join(arch + "+PTX" * ptx for arch, ptx in archs)
        print(f"dsn-kernels: CUDA kernels for {names} with {nvcc}", flush=True)

        options = [f"-ccbin={os.environ['CXX']}", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{CSRC}"]
        options += ["-O0", "-g"] if switch("DEBUG") else ["-O3"]
        if switch("CHECK_SPILLS"):
            options.append("-Xptxas=--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error")
        for number, ptx in ((arch.replace(".", ""), ptx) for arch, ptx in archs):
            options += [f"-gencode=arch=compute_{number},code={k}_{number}" for k in ["sm"] + ["compute"] * ptx]
        command = shlex.join([nvcc, *options]).replace("$", "$$")
        folder = Path(self.build_temp).resolve() / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        rules = [f"rule nvcc\n  command = {command} -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc"]
        for source in sorted((CSRC / "cuda").glob("*.cu")):
            extension.extra_objects.append(str(folder / f"{source.stem}.o"))
            rules.append(f"build {source.stem}.o: nvcc " + re.sub("([$ :])", r"$\1", str(source)))
        (folder / "build.ninja").write_text("\n".join(rules) + "\n")
        if subprocess.run(["ninja", "-C", str(folder), "-j", os.environ["MAX_JOBS"]]).returncode:
            raise PlatformError("nvcc failed, see above; BUILD_NO_CUDA=1 builds without CUDA")

        dryrun = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True)
        extension.sources += sorted(str(source.relative_to(CSRC.parent)) for source in (CSRC / "cuda").glob("*.cpp"))
        extension.library_dirs += re.findall(r'"-L([^"]+)"', dryrun.stderr)
        extension.libraries += ["cudart_static", "rt", "dl", "pthread"]
        extension.define_macros += [("DSN_WITH_CUDA", None), ("DSN_CUDA_ARCHS", f'"{names}"')]


def native_extension():
    floor = f"0x{TORCH_FLOOR[0]:02x}{TORCH_FLOOR[1]:02x}000000000000"
    optimise = ["-O0", "-g", "-UNDEBUG"] if switch("DEBUG") else ["-O3", "-g0"]
    sources = sorted(source for folder in ("plan", "cpu") for source in (CSRC / folder).glob("*.cpp"))
    extension = CppExtension(
        "dsn_kernels._C",
        ["csrc/library.cpp", *(str(source.relative_to(CSRC.parent)) for source in sources)],
        include_dirs=[pybind11.get_include(), str(CSRC)],
        define_macros=[("TORCH_TARGET_VERSION", floor), ("DSN_BUILD_TORCH", f'"{torch.__version__}"')],
        # -Wpsabi is about vectors wider than the instruction set's; they cross only calls within one file.
        extra_compile_args=["-std=c++20", "-fvisibility=hidden", "-Wno-psabi", *optimise],
        extra_link_args=["-Wl,--exclude-libs,ALL"],
    )
    extension.libraries = ["torch_cpu"]  # the stable ABI is all there
    return extension


if __name__ == "__main__":
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        check_environment()
    except PlatformError as error:
        raise SystemExit(f"error: {error}") from None
    setup(
        packages=find_packages(include=["dsn_kernels*"]) + find_packages("python"),
        package_dir={"dsn_command": "python/dsn_command", "dsn_models": "python/dsn_models"},
        ext_modules=[native_extension()],
        cmdclass={"build_ext": BuildNative},
    )
