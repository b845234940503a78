"""Layers of well-known networks, one by one: ``python benchmarks/layers.py [NAME ...]``.

NAME chooses the layers whose name contains it, such as ``resnet50`` or ``depthwise`` (default: all). ``--batch 1,8``,
``--threads 1`` and ``--seconds 2`` (a layer and batch) are the other options.

Of each layer the table has milliseconds an image of the kernels here, of torch and of ONNX Runtime, GFLOP/s here (two
a MAC) and the better of the others' time over that here: above 1 the kernels here win. Times are the least of calls in
turns. Here and in ONNX Runtime they are of the layer alone, by each one's own clock (a timed plan; its profiler),
without what brings an image into the layout of its kernels and back; torch's are of the call.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dsn_kernels import graph as g
from dsn_kernels import ops
from dsn_kernels.runtime import make_runner

ACTIVATE = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "silu": F.silu}


class Layer(NamedTuple):
    """One layer: ``kind`` is conv, max, average, silu or squeeze (squeeze and excitation by ``outputs`` channels)."""

    name: str
    kind: str
    inputs: int
    outputs: int
    size: int
    side: int = 1
    stride: int = 1
    groups: int = 1
    activation: str = "relu"
    accumulate: bool = False

    @property
    def pad(self) -> int:
        return self.side // 2 if self.kind != "average" else 0

    @property
    def window(self) -> g.Window:
        return g.Window(self.side, self.side, self.stride, self.pad, self.pad)

    @property
    def out_size(self) -> int:
        return self.window.output_size(self.size, self.size)[0]


def conv(network: str, inputs: int, outputs: int, size: int, side: int, stride: int = 1, **more: Any) -> Layer:
    kind = "depthwise" if more.get("groups") == inputs else "grouped" if "groups" in more else "conv"
    add = " accumulate" if more.get("accumulate") else ""
    name = f"{network} {kind} {side}x{side} s{stride} {inputs}-{outputs} @{size}{add}"
    return Layer(name, "conv", inputs, outputs, size, side, stride, **more)


def layers() -> list[Layer]:
    """The shapes of ResNet-50, DenseNet-121, ResNeXt-50, RegNetX-400MF, MobileNetV2 and EfficientNet-B0 that weigh."""
    found = [conv("resnet50", 3, 64, 224, 7, 2), Layer("resnet50 max 3x3 s2 64 @112", "max", 64, 64, 112, 3, 2)]
    for width, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        found += [
            conv("resnet50", width, width, size, 3),
            conv("resnet50", 4 * width, width, size, 1),
            conv("resnet50", width, 4 * width, size, 1, accumulate=True),
        ]
        if size > 7:
            found += [
                conv("resnet50", 2 * width, 2 * width, size, 3, 2),
                conv("resnet50", 4 * width, 8 * width, size, 1, 2, activation="none"),
                conv("resnext50", 4 * width, 4 * width, size, 3, 2, groups=32),
            ]
        found.append(conv("resnext50", 2 * width, 2 * width, size, 3, groups=32))
        found.append(conv("densenet121", 128, 32, size, 3, activation="none"))
    found.append(Layer("densenet121 average 2x2 s2 128 @56", "average", 128, 128, 56, 2, 2))
    for width, size in ((64, 28), (160, 14), (400, 7)):
        found.append(conv("regnet_x_400mf", width, width, size, 3, groups=width // 16))
        found.append(conv("regnet_x_400mf", width, width, 2 * size, 3, 2, groups=width // 16))
    for width, size, stride in ((32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (384, 14, 1)):
        found.append(conv("mobilenet_v2", width, width, size, 3, stride, groups=width, activation="relu6"))
    found.append(conv("mobilenet_v2", 96, 576, 14, 1, activation="relu6"))
    for width, size, side, stride in (
        (144, 56, 5, 2),
        (240, 28, 5, 1),
        (240, 28, 3, 2),
        (672, 14, 5, 1),
        (1152, 7, 5, 1),
    ):
        found.append(conv("efficientnet_b0", width, width, size, side, stride, groups=width, activation="silu"))
    found.append(conv("efficientnet_b0", 16, 96, 112, 1, activation="silu"))
    found.append(Layer("efficientnet_b0 silu 96 @56", "silu", 96, 96, 56))
    found.append(Layer("efficientnet_b0 squeeze 672 by 28 @14", "squeeze", 672, 28, 14))
    return found


class Weights:
    """Random ones of a layer, float64."""

    def __init__(self, layer: Layer) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.1

        inputs, outputs = layer.inputs, layer.outputs
        self.weight = normal(outputs, inputs // layer.groups, layer.side, layer.side)
        self.bias = normal(outputs)
        self.back, self.back_bias = normal(inputs, outputs), normal(inputs)


def graph_of(layer: Layer, w: Weights) -> tuple[g.Graph, range]:
    """The layer between the map that enters and the one that leaves, and its nodes."""
    graph, channels = g.Graph(), layer.inputs
    x = graph.map(channels, layer.size)
    y = graph.map(layer.outputs if layer.kind == "conv" else channels, layer.out_size)
    graph.add(g.Load(dst=x, in_channels=channels))
    common = {"src": x, "dst": y, "in_channels": channels}
    if layer.accumulate:  # onto a map of something
        graph.add(g.Conv2d(**common, window=g.Window(1, 1), weight=w.weight, bias=w.bias))
    first = len(graph.nodes)
    if layer.kind == "conv" and layer.groups == channels:
        node: g.Node = g.Depthwise(
            **common, window=layer.window, weight=w.weight, bias=w.bias, activation=layer.activation
        )
    elif layer.kind == "conv":
        options = {"groups": layer.groups, "activation": layer.activation, "accumulate": layer.accumulate}
        node = g.Conv2d(**common, window=layer.window, weight=w.weight, bias=w.bias, **options)
    elif layer.kind == "squeeze":
        small, factor = graph.map(layer.outputs, 1), graph.map(channels, 1)
        graph.add(g.PoolSums(src=x, in_channels=channels))
        weight = w.weight.flatten(1)
        graph.add(
            g.FullyConnected(src=x, dst=small, in_channels=channels, weight=weight, bias=w.bias, activation="silu")
        )
        back = {"weight": w.back, "bias": w.back_bias, "activation": "sigmoid"}
        graph.add(g.FullyConnected(src=small, dst=factor, in_channels=layer.outputs, **back))
        node = g.Pointwise(**common, factor=factor)
    elif layer.kind == "silu":
        node = g.Pointwise(**common, activation="silu")
    else:
        node = (g.MaxPool if layer.kind == "max" else g.AvgPool)(**common, window=layer.window)
    graph.add(node)
    last = len(graph.nodes)
    graph.add(g.Store(src=y, in_channels=graph.maps[y].channels))
    return graph, range(first, last)


def torch_layer(layer: Layer, w: Weights) -> Callable[..., Tensor]:
    """The same in torch, of x and, where it adds, of what it is added to."""
    weight, bias, back, back_bias = (t.float() for t in (w.weight, w.bias, w.back, w.back_bias))

    def run(x: Tensor, before: Tensor | None = None) -> Tensor:
        if layer.kind == "conv":
            y = F.conv2d(x, weight, bias, layer.stride, layer.pad, groups=layer.groups)
            return ACTIVATE[layer.activation](y if before is None else y + before)
        if layer.kind == "squeeze":
            small = F.silu(F.conv2d(x.mean((2, 3), keepdim=True), weight, bias))
            return x * F.conv2d(small, back[:, :, None, None], back_bias).sigmoid()
        if layer.kind == "silu":
            return F.silu(x)
        if layer.kind == "max":
            return F.max_pool2d(x, layer.side, layer.stride, layer.pad)
        return F.avg_pool2d(x, layer.side, layer.stride)

    return run


class OnnxLayer:
    """The same in ONNX Runtime, timed by its profiler."""

    def __init__(self, run: Callable[..., Tensor], inputs: tuple[Tensor, ...], threads: int) -> None:
        import onnxruntime

        class Module(torch.nn.Module):
            def forward(self, *x: Tensor) -> Tensor:
                return run(*x)

        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "layer.onnx"
        torch.onnx.export(Module(), inputs, path, dynamo=False, input_names=[f"x{i}" for i in range(len(inputs))])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.enable_profiling, options.profile_file_prefix = True, str(path)
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.feed: dict[str, np.ndarray[Any, Any]] = {f"x{i}": x.numpy() for i, x in enumerate(inputs)}

    def __call__(self) -> None:
        self.session.run(None, self.feed)

    def ms(self) -> float:
        """The least of each node's milliseconds, summed; reorderings of the layout are not the layer's."""
        events = json.loads(Path(self.session.end_profiling()).read_text())
        least: dict[str, float] = {}
        for event in events:
            name, op = event["name"], event["args"].get("op_name", "")
            if event.get("cat") == "Node" and name.endswith("_kernel_time") and not op.startswith("Reorder"):
                least[name] = min(least.get(name, float("inf")), event["dur"])
        return sum(least.values()) / 1e3


def measure(layer: Layer, batch: int, threads: int, seconds: float) -> dict[str, float]:
    """Milliseconds an image: ``here``, ``torch`` and ``onnx``; ``macs`` an image."""
    weights = Weights(layer)
    graph, nodes = graph_of(layer, weights)
    runner, limits = make_runner(graph, torch.float32, "cpu"), torch.zeros(0)
    x = torch.randn(batch, layer.inputs, layer.size, layer.size)
    out = torch.randn(batch, layer.outputs, layer.out_size, layer.out_size)
    inputs = (x, out) if layer.accumulate else (x,)
    run = torch_layer(layer, weights)
    onnx = OnnxLayer(run, inputs, threads)
    here, reference, macs = float("inf"), float("inf"), 0.0
    end = time.monotonic() + seconds
    with torch.inference_mode():
        while time.monotonic() < end:
            spans = ops.run_plan(x, runner.weights, limits, None, runner.own.words, **runner.own.sizes, timed=True)[-1][
                :, :, nodes.start : nodes.stop
            ]  # [B, threads, nodes, 3]
            here = min(here, (spans[..., 1] - spans[..., 0]).sum().item() / 1e6 / threads)
            macs = spans[..., 2].sum().item() / batch
            start = time.perf_counter()
            run(*inputs)
            reference = min(reference, (time.perf_counter() - start) * 1e3)
            onnx()
    return {"here": here / batch, "torch": reference / batch, "onnx": onnx.ms() / batch, "macs": macs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'layer':52} batch     here    torch     onnx  GFLOP/s  ratio")
    for layer in layers():
        if args.names and not any(name in layer.name for name in args.names):
            continue
        for batch in map(int, args.batch.split(",")):
            row = measure(layer, batch, args.threads, args.seconds)
            speed, ratio = 2 * row["macs"] / row["here"] / 1e6, min(row["torch"], row["onnx"]) / row["here"]
            times = " ".join(f"{row[key]:8.3f}" for key in ("here", "torch", "onnx"))
            print(f"{layer.name:52} {batch:5} {times} {speed:8.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
