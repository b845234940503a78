"""Compiles the Triton kernels for GPUs that need not be here and prints what the machine code holds, as JSON.

Run in a process of its own, without TRITON_INTERPRET: ``python compile_ahead.py TARGET``, the target
cuda:80, cuda:90 or hip:gfx942, for example.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsn_kernels.triton import conv2d, decide, depthwise, gate, group_by_pattern, head, pointwise, routing

POINTERS = {
    "bias": "*fp32", "norm": "*fp32", "constants": "*fp32", "sums": "*fp32", "macs": "*i64", "words": "*i64",
    "taken": "*u8", "inputs": "*i32", "input_counts": "*i32", "filters": "*i32", "filter_counts": "*i32",
    "pooled": "*fp32", "threshold": "*fp32", "forced": "*u8", "before": "*u8", "scores": "*fp32", "enabled": "*i64",
    "live": "*i32", "live_counts": "*i32", "logits": "*fp32", "embed": "*fp32", "embed_bias": "*fp32",
    "input_weight": "*fp32", "hidden_weight": "*fp32", "cell_bias": "*fp32", "projection": "*fp32",
    "projection_bias": "*fp32", "state": "*fp32", "mask": "*u8", "segments": "*i32", "lists": "*i32",
    "counts": "*i32", "path": "*fp32", "path_bias": "*fp32", "features": "*fp32", "path_gates": "*u8",
    "masks": "*u8", "parts": "*i32", "first": "*i32", "order": "*i64", "group": "*i64", "offsets": "*i64",
    "affine": "*fp32", "factor": "*fp32", "holds": "*u8", "thresholds": "*fp32",
}  # fmt: skip
THREE = {"TAPS": 9, "ACROSS": 3, "TOP": 1, "LEFT": 1, "EDGES": True}
ONE = {"TAPS": 1, "ACROSS": 1, "TOP": 0, "LEFT": 0, "EDGES": False}
CONV = {
    **THREE, "HEIGHT": 32, "WIDTH": 32, "OUT_WIDTH": 32, "OUT_PIXELS": 1024, "UNIT_COUNT": 64, "STRIDE": 1,
    "DILATION": 1, "GROUPS": 1, "DEPTH": 64, "PLACES": 64, "FILTERS": 64, "COLUMNS": 64, "STORED": 64,
    "ACTIVATION": "relu", "ACTIVATED": 64, "SLICES": 0, "SLICE_BLOCK": 1, "FIRST_CHANNELS": 0, "FIRST_GROUPS": 0,
    "SLICE_CHANNELS": 0, "SLICE_GROUPS": 0, "PER_SAMPLE": False, "BY_PATTERN": False, "GROUPED": False,
    "MASKED": False, "FLAT": False, "POOL": False, "ACCUMULATE": False, "FINISH_OFF": False, "PRECISION": "ieee",
    "BLOCK_K": 32, "UNITS": 4, "BLOCK_N": 64,
}  # fmt: skip
NONE = dict.fromkeys(
    ("norm", "constants", "sums", "taken", "inputs", "input_counts", "filters", "filter_counts", "order", "offsets")
)
BLOCK = {
    **ONE, "inputs": 1, "input_counts": 1, "constants": 1, "taken": 1, "norm": 1, "DEPTH": 24, "PLACES": 96,
    "FILTERS": 48, "COLUMNS": 48, "STORED": 48, "ACTIVATED": 48, "SLICES": 4, "SLICE_BLOCK": 4,
    "FIRST_CHANNELS": 24, "FIRST_GROUPS": 2, "SLICE_CHANNELS": 12, "SLICE_GROUPS": 1, "PER_SAMPLE": True,
    "GROUPED": True, "BLOCK_K": 16,
}  # fmt: skip
MASKS = {
    "inputs": 1, "input_counts": 1, "filters": 1, "filter_counts": 1, "PER_SAMPLE": True, "MASKED": True,
    "ACCUMULATE": True, "FINISH_OFF": True,
}  # fmt: skip
# What stands where in the networks: a convolution's name says what it is.
CONVS = {
    "residual 3x3": {"sums": 1, "ACCUMULATE": True},
    "residual 1x1, stride 2": {**ONE, "STRIDE": 2, "OUT_WIDTH": 16, "OUT_PIXELS": 256, "UNIT_COUNT": 16},
    "dense 1x1": BLOCK,
    "dense 3x3": {"sums": 1, "DEPTH": 48, "PLACES": 48, "FILTERS": 12, "COLUMNS": 16, "STORED": 16,
                  "ACTIVATION": "none", "BLOCK_K": 16, "BLOCK_N": 16},
    "plain dense 3x3": {**BLOCK, **THREE, "sums": 1, "FILTERS": 12, "COLUMNS": 16, "STORED": 16, "ACTIVATION": "none",
                        "BLOCK_N": 16},
    "transition": {**BLOCK, "sums": 1, "POOL": True, "STRIDE": 2, "OUT_WIDTH": 16, "OUT_PIXELS": 256, "UNIT_COUNT": 16,
                   "ACTIVATION": "none"},
    "chosen filters": {**MASKS, "order": 1, "offsets": 1, "BY_PATTERN": True},
    "chosen filters of a concatenation": {**MASKS, **ONE, "norm": 1, "ACCUMULATE": False, "FINISH_OFF": False},
    "transition of a concatenation": {**ONE, "inputs": 1, "input_counts": 1, "norm": 1, "PER_SAMPLE": True,
                                      "MASKED": True, "POOL": True, "STRIDE": 2, "OUT_WIDTH": 16, "OUT_PIXELS": 256,
                                      "UNIT_COUNT": 16, "ACTIVATION": "none"},
    "1x7": {"TAPS": 7, "ACROSS": 7, "TOP": 0, "LEFT": 3},
    "5x5 of few channels": {"TAPS": 25, "ACROSS": 5, "TOP": 0, "LEFT": 0, "EDGES": False, "FLAT": True, "DEPTH": 6,
                            "PLACES": 6, "OUT_WIDTH": 28, "OUT_PIXELS": 784, "UNIT_COUNT": 49, "MASKED": True,
                            "BLOCK_K": 64},
    "every other pixel": {**ONE, "norm": 1, "TOP": -1, "LEFT": -1, "EDGES": True, "STRIDE": 2, "OUT_WIDTH": 16,
                          "OUT_PIXELS": 256, "UNIT_COUNT": 16},
    "dilated 3x3": {"DILATION": 2, "TOP": 2, "LEFT": 2, "ACTIVATION": "silu"},
    "3x3 in groups of few channels": {"GROUPS": 32, "FLAT": True, "DEPTH": 4, "PLACES": 4, "FILTERS": 4, "COLUMNS": 16,
                                      "STORED": 4, "ACTIVATED": 128, "MASKED": True, "BLOCK_K": 64, "BLOCK_N": 16},
    "1x1 in groups, after a BN-ReLU": {**ONE, "norm": 1, "GROUPS": 2, "ACTIVATION": "tanh", "ACTIVATED": 128},
    "stem": {"FLAT": True, "DEPTH": 3, "PLACES": 3, "ACTIVATION": "none", "MASKED": True},
}  # fmt: skip

HEAD = {
    "GROUPED": True, "DEPTH": 342, "PLACES": 352, "CLASSES": 100, "COLUMNS": 112, "ROWS": 64, "MEAN": 64, "SLICES": 16,
    "SLICE_BLOCK": 16, "SLICE_CHANNELS": 12, "SLICE_GROUPS": 1, "FIRST_CHANNELS": 150, "FIRST_GROUPS": 10,
    "ACTIVATION": "none", "BLOCK_K": 16, "BLOCK_N": 64, "BLOCK_P": 32, "enabled": None,
}  # fmt: skip
# Those that a gate's words may shut.
GATED = ("residual 3x3", "residual 1x1, stride 2", "dense 1x1", "dense 3x3", "plain dense 3x3")


def pointer_size(name, dtype):
    return {"src": f"*{dtype}", "weight": f"*{dtype}", "dst": f"*{dtype}"}.get(name) or POINTERS.get(name, "i32")


def compile_kernel(kernel, target, values, dtype, **options):
    """``values``: constants by name; 1 for a pointer that is there, None for one that is not."""
    kernel = kernel if hasattr(kernel, "params") else kernel.fn  # of a tuner
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name = parameter.name
        pointer = pointer_size(name, dtype)
        if parameter.is_constexpr or (name in values and values[name] is None):
            signature[name] = "constexpr"
            constants[name] = values[name]
        else:
            signature[name] = pointer
            # What torch allocates is aligned, and rows are padded.
            if pointer.startswith("*") or name.endswith("_row"):
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 2, **options})


def cuda_memory(compiled):
    """Bytes of local memory and of stack, from the assembler's own listing of the binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(re.search(rf"\b{name}:(\d+)", listing)[1]) for name in ("LOCAL", "STACK")}


def facts(compiled, target):
    if target.backend == "cuda":
        text = compiled.asm["ptx"]
        products = [name for name in ("wgmma.mma_async", "mma.sync") if name in text]
        return {"products": products, **cuda_memory(compiled)}
    text = compiled.asm["amdgcn"]
    products = ["v_mfma"] if "v_mfma" in text else []
    scratch = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)[1])
    spilled = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])
    return {"products": products, "local": scratch, "stack": spilled}


def target_of(name):
    backend, architecture = name.split(":")
    if backend == "cuda":
        return GPUTarget("cuda", int(architecture), 32)
    return GPUTarget("hip", architecture, 64)


def others():
    """Kernels without a matrix product."""
    return {
        "gate": (gate.gate_kernel, {"OLD": 96, "NEW": 16, "PIXELS": 1024, "UNIT_COUNT": 64, "GROUP": 16,
                                    "KIND": "hard", "BLOCK": 64, "forced": None, "enabled": None}),
        "recurrent gate": (gate.recurrent_gate_kernel, {"CHANNELS": 64, "PIXELS": 256, "UNIT_COUNT": 16, "FIRST": False,
                                                        "TEN": 10, "WIDE": 16, "BLOCK": 64, "forced": None,
                                                        "enabled": None}),
        "head": (head.head_kernel, HEAD),
        "head of a concatenation": (head.head_kernel, {**HEAD, "taken": None, "constants": None, "GROUPED": False}),
        "path features": (head.path_features_kernel, {"LAYERS": 16, "PLACES": 416, "PIXELS": 64, "FIRST_GROUPS": 10,
                                                      "SLICE_GROUPS": 1, "GROUP": 16, "BLOCK_P": 32, "enabled": None}),
        "depthwise": (depthwise.depthwise_kernel, {"ROWS": 3, "COLUMNS": 3, "STRIDE": 2, "PAD_ROWS": 1,
                                                   "PAD_COLUMNS": 1, "DILATION": 1, "ACTIVATION": "relu6", "PIXELS": 16,
                                                   "CHANNELS": 64}),
        "pointwise": (pointwise.pointwise_kernel, {"TIMES": 1, "FACTOR_UNITS": 1, "ACCUMULATE": True,
                                                   "ACTIVATION": "hardswish", "PIXELS": 16, "CHANNELS": 64}),
        "enlarged": (pointwise.pointwise_kernel, {"TIMES": 2, "FACTOR_UNITS": 0, "ACCUMULATE": False, "affine": None,
                                                  "factor": None, "ACTIVATION": "none", "PIXELS": 16, "CHANNELS": 64}),
        "decide": (decide.decide_kernel, {"UNIT_COUNT": 1, "forced": None, "enabled": None}),
        "partition": (routing.partition_kernel, {"BLOCK": 128}),
        "first of a pattern": (group_by_pattern.first_kernel, {"ROWS": 64, "COLUMNS": 32}),
        "place in a group": (group_by_pattern.place_kernel, {"ROWS": 64}),
    }  # fmt: skip


def report(name):
    """What each kernel's machine code holds, by the kernel's name."""
    target, found = target_of(name), {}
    for what, changes in CONVS.items():
        values = {**CONV, **NONE, **changes}
        values |= {"words": None} if what not in GATED else {}
        values = {k: v for k, v in values.items() if k.isupper() or v is None}
        for dtype in ("fp16", "bf16"):
            compiled = compile_kernel(conv2d.conv2d_kernel, target, values, dtype)
            found[f"{what} {dtype}"] = {"convolution": True, **facts(compiled, target)}
    for what, (kernel, values) in others().items():
        dtype = "u8" if kernel is group_by_pattern.first_kernel else "fp32"
        found[what] = {"convolution": False, **facts(compile_kernel(kernel, target, values, dtype), target)}
    if target.backend == "cuda":  # that a spill would be seen
        values = {k: v for k, v in {**CONV, **NONE, "words": None, "UNITS": 8}.items() if k.isupper() or v is None}
        registers = 64 if target.arch >= 90 else 32  # as few as the assembler takes: wgmma needs more
        compiled = compile_kernel(conv2d.conv2d_kernel, target, values, "fp16", maxnreg=registers)
        found["starved"] = {"convolution": False, **facts(compiled, target)}
    return found


if __name__ == "__main__":
    json.dump(report(sys.argv[1]), sys.stdout)
