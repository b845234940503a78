"""Counts multiply-adds without asking the kernels: python benchmarks/count_fma.py OUT.json [MODEL ...]

Runs each network for one image, gates random at one half. Valgrind's callgrind counts how often every instruction of
the library ran meanwhile, the disassembler tells the fused multiply-adds and their lanes. Valgrind knows no AVX-512, so
the kernels are those of AVX2 (DSN_ISA=avx2), and Winograd's method is off: every MAC is a multiply-add. That is held
against the MACs that the kernels counted themselves: a multiply-add per MAC, but for rows that pad the last block of
filters, and for the normalisation of a 1x1's input, which its first block of filters does on the way. Needs valgrind
with its headers, a C compiler and objdump.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import dsn_kernels
import dsn_models
from dsn_kernels import _C
from dsn_kernels.graph import Conv2d, DenseBlock, Graph, Work
from dsn_kernels.measure import machine
from dsn_kernels.measure.flops import graph_layers, planned_parts
from dsn_kernels.measure.gates import GateSetting

MODELS = ("dsn-navon", "lsn-navon", "skipnet-38-rnn", "gaternet-resnet-20", "gunn-15")
_CONVOLUTIONS = ("conv2d", "stem", "layer", "transition")
_SWITCH = """#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
"""
_LANES = {"ps ymm": 8, "ps xmm": 4, "ss xmm": 1}


def run_once(name: str, switch: ctypes.CDLL) -> dict[str, Any]:
    """One image through a network: MACs by the kernels' counters, and by the plan those of its convolutions.

    ``switch`` lets callgrind count between its ``start()`` and ``stop()``: importing torch would take minutes.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _C.winograd_pays = lambda *sizes: False  # type: ignore[assignment]  # asked as a network is lowered
    fast: Any = dsn_kernels.accelerate(dsn_models.create(name).eval())
    images = torch.randn(1, fast.config.in_channels, fast.config.image_size, fast.config.image_size)
    gates = None
    if fast.layers:
        gates = GateSetting("random:0.5").draw(fast.config, fast.layers, 1, torch.Generator().manual_seed(0))
    options = {"forced_gates": gates} if gates else {}
    with torch.inference_mode():
        switch.start()
        fast(images, **options)
        switch.stop()
    joined = torch.cat(list(gates.values()), 1) if gates else torch.empty(1, 0, dtype=torch.uint8)
    convolutions, padded = 0, 0.0
    for part, module in planned_parts(fast):
        for work, _ in graph_layers(part, module.graph, joined[:, : module.graph.gates], fast.layers):
            if work.op in _CONVOLUTIONS:
                convolutions += int(work.macs)
                padded += sum(macs * rows for macs, rows in padding(module.graph, work))
    return {"counters": int(fast.last_macs), "convolutions": convolutions, "with_padding": round(padded)}


def padding(graph: Graph, work: Work) -> Iterator[tuple[float, float]]:
    """Parts of a step's MACs, and by how much their blocks of filters are larger than the filters."""
    node: Any = graph.nodes[work.index]
    macs = int(work.macs)

    def factor(filters: int, odd: bool = False) -> float:
        block = _C.row_block(filters, odd)
        return -(-filters // block) * block / filters if filters else 1.0

    if not isinstance(node, DenseBlock) or not node.bottleneck:
        filters = node.out_channels if work.filters is None else int(work.filters)
        yield macs, factor(filters, isinstance(node, Conv2d) and node.out_mask >= 0)
        return
    add = node.merge == "add"
    spatial_filters = node.bottleneck if add else node.out_channels
    spatial = work.ran.item() * graph.maps[node.dst].pixels * 9 * node.bottleneck * spatial_filters
    yield spatial, factor(spatial_filters)
    rest = macs - spatial
    if add:
        yield rest / 2, factor(node.in_channels)
        rest /= 2
    yield rest, factor(node.bottleneck)


def multiply_adds(library: Path) -> dict[int, int]:
    """Lanes of each fused multiply-add, by address."""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(library)], check=True, capture_output=True)
    found = {}
    for line in listing.stdout.decode().splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+vfn?m(?:add|sub)\d+(ps|ss)\s.*%(ymm|xmm|zmm)", line)
        if match and match[3] != "zmm":
            found[int(match[1], 16)] = _LANES[f"{match[2]} {match[3]}"]
    return found


def executions(profile: Path, library: Path) -> Iterator[tuple[str, int, int]]:
    """(function, address, how often) of every instruction of the library, from callgrind's profile."""
    names: dict[str, str] = {}
    files: dict[str, str] = {}
    inside, function, address, skip = False, "", 0, False

    def resolve(table: dict[str, str], text: str) -> str:
        number, _, name = text.partition(" ")
        if name:
            table[number] = name
        return table[number]

    with profile.open() as lines:
        for line in lines:
            if line.startswith("ob="):
                inside = resolve(files, line[3:].strip()) == str(library)
            elif line.startswith("fn="):
                function = resolve(names, line[3:].strip())
            elif line.startswith("cfn="):
                resolve(names, line[4:].strip())
            elif line.startswith(("cob=", "cfi=", "fi=", "fe=", "fl=")):
                if line.startswith("cob="):
                    resolve(files, line[4:].strip())
            elif line.startswith("calls="):
                skip = True  # the next line is what the call took
            elif line[:1] in "0+-*" and line.strip():
                place, *rest = line.split()
                if place.startswith("0x"):
                    address = int(place, 16)
                elif place != "*":
                    address += int(place, 0)
                if inside and not skip:
                    yield function, address, int(rest[-1])
                skip = False


def count(name: str) -> dict[str, Any]:
    """One network, in a process of its own under valgrind."""
    library = Path(_C.__file__).resolve()
    lanes = multiply_adds(library)
    environment = {**os.environ, "DSN_ISA": "avx2", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "callgrind.out"
        switch = Path(folder) / "switch.so"
        compile_ = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-x", "c", "-", "-o", str(switch)]
        subprocess.run(compile_, check=True, input=_SWITCH, text=True)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--dump-instr=yes", "--quiet"]
        command += [f"--callgrind-out-file={profile}", sys.executable, __file__, "--once", name, str(switch)]
        child = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        counted = json.loads(child.stdout.strip().splitlines()[-1])
        by_function: Counter[str] = Counter()
        for function, address, times in executions(profile, library):
            if address in lanes:
                by_function[re.sub(r"'\d+$|\(.*", "", function)] += times * lanes[address]
    convolutions = 0
    for function, done in by_function.items():
        match = re.search(r"conv_block<(\d+), (\d+), \d+, (true|false)", function)
        if match:  # with normalisation, one multiply-add more per block of rows
            rows = int(match[1])
            convolutions += done * rows // (rows + 1) if match[3] == "true" else done
    return {
        "model": name,
        **counted,
        "multiply_adds": dict(by_function.most_common()),
        "multiply_adds_of_convolutions": convolutions,
        "ratio": convolutions / counted["with_padding"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--once", nargs=2, metavar=("MODEL", "SWITCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        name, switch = options.once
        print(json.dumps(run_once(name, ctypes.CDLL(switch))))
        return 0
    if options.out is None:
        parser.error("expected the file to write")
    facts = {"machine": machine.describe(), "torch": torch.__version__}
    document: dict[str, Any] = {"schema": 1, "isa": "avx2", "gates": "random:0.5", "batch": 1, **facts, "rows": []}
    for name in options.models or MODELS:
        row = {**count(name), "commit": machine.source_commit()}
        document["rows"].append(row)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
        print(f"{name}: {row['multiply_adds_of_convolutions']:,} multiply-adds in convolutions,", end=" ")
        print(f"{row['with_padding']:,} by the counters with padding; ratio {row['ratio']:.6f}")
    return 0 if all(row["ratio"] == 1 for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
