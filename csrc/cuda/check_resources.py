"""Compiles the kernels and reads the assembler's report; fails if one spills registers or has a stack frame.

    python csrc/cuda/check_resources.py [--archs "8.0;9.0a"] [FILE.cu ...]

Prints registers and occupancy of every kernel and architecture.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CUDA = Path(__file__).resolve().parent
ARCHS = "7.5;8.0;8.6;8.9;9.0a;10.0;12.0"
REGISTERS = 65536  # of a multiprocessor
# Threads that a multiprocessor holds, where it is not 2048.
RESIDENT = {"75": 1024, "86": 1536, "89": 1536, "120": 1536}


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    stack: int
    spilled: int

    @property
    def threads(self) -> int:
        return 128 if self.name.startswith(("transition", "stem")) else 256

    @property
    def blocks(self) -> int:
        """Resident blocks of a multiprocessor, as far as registers and threads go: a warp's registers come in 256s."""
        warps = self.threads // 32
        by_registers = REGISTERS // (-(-self.registers * 32 // 256) * 256 * warps)
        return min(by_registers, RESIDENT.get(self.arch.rstrip("a"), 2048) // self.threads)


def compile_report(source: Path, arch: str) -> str:
    """What ptxas says of one file and architecture."""
    number = arch.replace(".", "")
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++20", "-O3", f"-I{CUDA.parent}", "-Xptxas=-v", "-c", str(source)]
        command += [f"-gencode=arch=compute_{number},code=sm_{number}", "-o", f"{folder}/out.o"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"nvcc failed for {source.name}, sm_{number}:\n{done.stderr}")
    return done.stderr


def parse(report: str) -> list[Kernel]:
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers"
    )
    return [
        Kernel(readable(name), arch, int(registers), int(stack), int(spilled))
        for name, arch, stack, spilled, registers in re.findall(pattern, report, re.DOTALL)
    ]


def readable(mangled: str) -> str:
    """bottleneck_layer_kernel<half, 6, 2, 1> of a mangled name."""
    match = re.search(r"\d+([a-z_]+_kernel)(?:I(.*?)EEv)?", mangled)
    if not match:
        return mangled
    types = {"f": "float", "6__half": "half", "13__nv_bfloat16": "bfloat16"}
    arguments = re.findall(r"6__half|13__nv_bfloat16|^f|L[ib](\d+)E", match[2] or "")
    element = next((text for mark, text in types.items() if (match[2] or "").startswith(mark)), "")
    numbers = [n for n in arguments if n]
    return f"{match[1]}<{', '.join([element, *numbers])}>" if element else match[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default=ARCHS, help="as in TORCH_CUDA_ARCH_LIST")
    parser.add_argument("sources", nargs="*", type=Path)
    arguments = parser.parse_args()
    if not shutil.which("nvcc"):
        sys.exit("no nvcc on PATH; install a CUDA toolkit")
    sources = arguments.sources or sorted(CUDA.glob("*.cu"))
    jobs = [(source, arch.split("+")[0]) for source in sources for arch in arguments.archs.split(";")]
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda job: compile_report(*job), jobs)
        kernels = sorted({k for report in reports for k in parse(report)}, key=lambda k: (k.name, k.arch))
    width = max(len(k.name) for k in kernels)
    for k in kernels:
        occupancy = 100 * k.blocks * k.threads // RESIDENT.get(k.arch.rstrip("a"), 2048)
        flaw = f"  STACK {k.stack} B, SPILLED {k.spilled} B" if k.stack or k.spilled else ""
        print(f"{k.name:{width}}  sm_{k.arch:4}  {k.registers:3} registers  {k.blocks} blocks, {occupancy:3} %{flaw}")
    flawed = [k for k in kernels if k.stack or k.spilled]
    print(f"{len(kernels)} kernels, {len(flawed)} with a stack frame or spills")
    sys.exit(1 if flawed else 0)


if __name__ == "__main__":
    main()
