"""Compiles networks for a device that is not here up to their graphs, and prints how often each kernel is in them, as
JSON.

Run in a process of its own, without TRITON_INTERPRET.
"""

import collections
import json
import sys

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

import dsn_models
from dsn_kernels import Accelerated, Target


class Seen(Exception):
    """The graph is all that is wanted; nothing can run here."""


TINY = {"stage_units": (1, 1), "stage_widths": (8, 8), "stem_width": 8}
MODELS = {
    "lsn-concat-bc-100": {"block_layers": (1, 2)},
    "skipnet-38-rnn": TINY,
    "gaternet-resnet-20": {"backbone_options": TINY, "gater_options": {**TINY, "stem": "conv3x3"}},
}


def kernels_of(name):
    model = dsn_models.create(name, image_size=8, **MODELS[name]).eval()
    fast = Accelerated(model, Target("triton", torch.float16)).to("meta")
    kernels = collections.Counter()

    def look(graph, inputs):
        for node in graph.graph.nodes:
            if "triton_kernel_wrapper" in str(node.target):
                kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
                while hasattr(kernel, "fn"):  # of a tuner, of a kernel
                    kernel = kernel.fn
                kernels[kernel.__name__] += 1
            elif "dsn_triton" in str(node.target):
                kernels[str(node.target)] += 1
        raise Seen

    images = torch.empty(2, 3, 8, 8, device="meta")
    try:
        with torch.no_grad():
            torch.compile(fast, fullgraph=True, backend=aot_autograd(fw_compiler=look, inference_compiler=look))(images)
    except Exception as error:
        if not kernels:
            raise error
    return kernels


if __name__ == "__main__":
    json.dump({name: kernels_of(name) for name in MODELS}, sys.stdout)
