"""Compiles the kernels and reads the assembler's report; fails if one spills registers or has a stack frame.

    python benchmarks/check_resources.py [--archs "8.0;9.0a"] [--json FILE] [FILE.cu ...]

Prints registers, shared memory and occupancy of every kernel and architecture. Shared memory is dynamic: it is the most
that a launch of a zoo model takes, as the host runner (csrc/simt) is asked for it, and unknown without that.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
ARCHS = "7.5;8.0;8.6;8.9;9.0a;10.0;12.0"
REGISTERS = 65536  # of a multiprocessor
MODELS = (
    *("concat-bc-100", "concat-40", "add-166", "dsn-navon", "dsn-121", "lsn-concat-bc-100"),
    *("resnet-164", "skipnet-110-rnn", "skipnet-110-ff", "skipnet-101-rnn-imagenet"),
    *("gunn-15", "shake-shake-64d", "inception-v4"),
)
THREADS = 256  # of a block, where nothing else is said


@dataclass(frozen=True)
class Machine:
    """A multiprocessor of an architecture, and how many of them a usual device has."""

    threads: int
    shared_kib: int
    block_kib: int  # of shared memory that one block may take
    count: int


MACHINES = {
    "75": Machine(1024, 64, 64, 40),
    "80": Machine(2048, 164, 163, 108),
    "86": Machine(1536, 100, 99, 84),
    "89": Machine(1536, 100, 99, 128),
    "90": Machine(2048, 228, 227, 132),
    "100": Machine(2048, 228, 227, 148),
    "120": Machine(1536, 100, 99, 170),
}


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    stack: int
    spilled: int
    threads: int = THREADS
    shared: int | None = None

    @property
    def machine(self) -> Machine:
        return MACHINES[self.arch.rstrip("af")]

    @property
    def blocks(self) -> int:
        """Resident blocks of a multiprocessor. A warp's registers come in 256s; a block's shared memory costs 1 KiB."""
        registers = -(-self.registers * 32 // 256) * 256 * (self.threads // 32)
        limits = [REGISTERS // registers, self.machine.threads // self.threads]
        if self.shared:
            limits.append(self.machine.shared_kib * 1024 // (self.shared + 1024))
        return min(limits)

    @property
    def occupancy(self) -> float:
        return self.blocks * self.threads / self.machine.threads

    @property
    def flawed(self) -> bool:
        return bool(self.stack or self.spilled)

    def line(self, width: int) -> str:
        shared = "   ?" if self.shared is None else f"{self.shared / 1024:4.0f}"
        flaw = f"  STACK {self.stack} B, SPILLED {self.spilled} B" if self.flawed else ""
        return (
            f"{self.name:{width}}  sm_{self.arch:4}  {self.registers:3} registers  {shared} KiB shared  "
            f"{self.blocks} blocks, {100 * self.occupancy:3.0f} %{flaw}"
        )


def compile_report(source: Path, number: str) -> str:
    """What ptxas says of one file and architecture, "90a" for example."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++20", "-O3", f"-I{CUDA.parent}", "-Xptxas=-v", "-cubin", str(source)]
        command += [f"-arch=sm_{number}", "-o", f"{folder}/out.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"nvcc failed for {source.name}, sm_{number}:\n{done.stderr}")
    return done.stderr


def parse(report: str, launches: dict[str, dict[str, tuple[int, int]]]) -> list[Kernel]:
    """The kernels of a report; ``launches[arch][name]``: threads and shared bytes. Of a kernel that no model launches
    the threads are its only template argument, if it has one."""
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers"
    )
    kernels = []
    for mangled, arch, stack, spilled, registers in re.findall(pattern, report, re.DOTALL):
        name = readable(mangled)
        own = re.search(r"_kernelILi(\d+)EEv", mangled)
        threads, shared = launches.get(arch, {}).get(name, (int(own[1]) if own else THREADS, None))
        kernels.append(Kernel(name, arch, int(registers), int(stack), int(spilled), threads, shared))
    return kernels


def readable(mangled: str) -> str:
    """bottleneck_layer_kernel<half, 6, 2, 1> of a mangled name."""
    for length in re.finditer(r"\d+", mangled):  # of the name behind it
        end = length.end() + int(length[0])
        name = mangled[length.end() : end]
        if name.endswith("_kernel"):
            break
    else:
        return mangled
    match = re.match(r"I(.*?)EEv", mangled[end:])
    arguments = match[1] if match else ""
    types = {"f": "float", "6__half": "half", "13__nv_bfloat16": "bfloat16"}
    numbers = re.findall(r"L[ib](\d+)E", arguments)
    element = next((text for mark, text in types.items() if arguments.startswith(mark)), "")
    return f"{name}<{', '.join([element, *numbers])}>" if element else name


def launches_of(archs: list[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """Threads and the most shared bytes of each kernel that a zoo model launches, by architecture."""
    sys.path[:0] = [str(ROOT), str(ROOT / "python")]
    try:
        import dsn_models
        from csrc.simt.host_runner import load_simt
        from dsn_kernels import capture
        from dsn_kernels.lower.cuda import ELEMENTS, lower

        simt = load_simt()
    except (ImportError, ValueError) as error:
        print(f"shared memory is unknown: {error}", file=sys.stderr)
        return {}
    found: dict[str, dict[str, tuple[int, int]]] = {arch: {} for arch in archs}
    for model in MODELS:
        graph = capture.capture(capture.canonical(dsn_models.create(model).eval())).graph
        for dtype, element in ELEMENTS.items():
            words = lower(graph, dtype).words().tolist()
            for arch in archs:
                machine = MACHINES[arch.rstrip("af")]
                for batch in (1, 64, 1024):
                    schedule = simt.Network(words, element, batch, machine.count, machine.block_kib * 1024)
                    for entry in (e for stream in schedule.timeline() for e in stream if e[1]):
                        name = entry[0].split("::")[-1].replace("__nv_", "").replace("__", "")
                        name = name.replace("true", "1").replace("false", "0")
                        most = found[arch].get(name, (0, 0))[1]
                        found[arch][name] = (entry[2], max(most, entry[3]))
    return found


def write(path: Path, arch: str, kernels: list[Kernel]) -> None:
    """Replaces an architecture's kernels in a report; those of the others stay."""
    rows = json.loads(path.read_text())["kernels"] if path.is_file() else []
    rows = [row for row in rows if row["arch"] != arch]
    rows += [asdict(k) | {"blocks": k.blocks, "occupancy": round(k.occupancy, 3)} for k in kernels]
    rows.sort(key=lambda row: (row["name"], int(row["arch"].rstrip("af"))))
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release ([\d.]+)", nvcc)
    document = {"schema": 1, "nvcc": version[1] if version else "?", "kernels": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default=ARCHS, help="as in TORCH_CUDA_ARCH_LIST")
    parser.add_argument("--json", type=Path, help="write the report there too, after each architecture")
    parser.add_argument("sources", nargs="*", type=Path)
    arguments = parser.parse_args()
    if not shutil.which("nvcc"):
        sys.exit("no nvcc on PATH; install a CUDA toolkit")
    archs = [arch.split("+")[0].replace(".", "") for arch in arguments.archs.split(";")]
    launches = {} if arguments.sources else launches_of(archs)
    sources = arguments.sources or sorted(CUDA.glob("*.cu"))
    kernels: list[Kernel] = []
    with ThreadPoolExecutor(2) as pool:
        for arch in archs:
            reports = pool.map(compile_report, sources, [arch] * len(sources))
            found = sorted({k for report in reports for k in parse(report, launches)}, key=lambda k: k.name)
            width = max((len(k.name) for k in found), default=0)
            for k in found:
                print(k.line(width), flush=True)
            if arguments.json:
                write(arguments.json, arch, found)
            kernels += found
    if not kernels:
        sys.exit("the assembler's report names no kernel: nothing was checked")
    flawed = [k for k in kernels if k.flawed]
    print(f"{len(kernels)} kernels, {len(flawed)} with a stack frame or spills")
    sys.exit(1 if flawed else 0)


if __name__ == "__main__":
    main()
