"""One user's road: a published network, defined by somebody else, made to skip and measured.

``python benchmarks/gate_resnet56.py --data DIR`` takes the CIFAR-10 ResNet-56 of akamaster/pytorch_resnet_cifar10
(``resnet56-cifar10.th``) into pytorchcv's definition by a table of names, checks that it answers as the published
network does, and then runs what a user would: ``dsn gate``, ``dsn eval --controls``, ``dsn bench`` and ``dsn report``.
DIR holds the weights and the JPEG archives of CIFAR-10. An interrupted run goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsn_kernels.measure import machine
from dsn_models.constructors import construct, put_weights
from dsn_models.convert import convert, read_released
from dsn_models.data import CoarseFineDataset, open_dataset
from dsn_models.training.evaluation import evaluate

ARCH = "pytorchcv.models.resnet_cifar:resnet56_cifar10"
UNITS = 9  # of each of the three stages
_NORM = ("weight", "bias", "running_mean", "running_var")
_CALIBRATED = 2_000  # training images that the shortcuts' statistics come from


def names() -> dict[str, str]:
    """The published name of each tensor to pytorchcv's."""
    table = {"conv1.weight": "features.init_block.conv.weight"}
    table |= {f"bn1.{leaf}": f"features.init_block.bn.{leaf}" for leaf in _NORM}
    for stage in (1, 2, 3):
        for unit in range(UNITS):
            theirs, ours = f"layer{stage}.{unit}", f"features.stage{stage}.unit{unit + 1}.body"
            for n in (1, 2):
                table[f"{theirs}.conv{n}.weight"] = f"{ours}.conv{n}.conv.weight"
                table |= {f"{theirs}.bn{n}.{leaf}": f"{ours}.conv{n}.bn.{leaf}" for leaf in _NORM}
    return table | {"linear.weight": "output.weight", "linear.bias": "output.bias"}


def shortcut(channels: int) -> dict[str, Tensor]:
    """A published shortcut, every other pixel between channels of zeros, as pytorchcv's convolution and batch norm.

    Its batch norm has the statistics 0 and 1, so that it passes on what it reads; :func:`calibrate` gives it those of
    the data, and passes on the same.
    """
    weight = torch.zeros(2 * channels, channels, 1, 1)
    weight[channels // 2 + torch.arange(channels), torch.arange(channels)] = 1
    statistics = dict(zip(_NORM, (torch.ones, torch.zeros, torch.zeros, torch.ones), strict=True))
    return {"conv.weight": weight, **{f"bn.{leaf}": made(2 * channels) for leaf, made in statistics.items()}}


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Sets the statistics of the shortcuts' batch norms to those of ``images``, and scale and shift to their inverse:
    training begins with what inference computes."""
    for stage in (2, 3):
        norm: Any = network.get_submodule(f"features.stage{stage}.unit1.identity_conv.bn")
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].double()))
        for part in images.split(250):
            network(part)
        handle.remove()
        variance, mean = torch.var_mean(torch.cat(seen), (0, 2, 3), correction=0)
        used = variance > 0  # the others are the channels of zeros
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(torch.where(used, variance, 1.0))
        norm.weight.copy_(torch.where(used, (variance + norm.eps).sqrt(), 1.0))
        norm.bias.copy_(mean)


def converted(weights: Path, train_set: CoarseFineDataset) -> nn.Module:
    """pytorchcv's ResNet-56 with the published weights."""
    network = construct(ARCH, {})
    state = {names()[key]: tensor for key, tensor in read_released(weights)[0].items() if key in names()}
    for stage, channels in ((2, 16), (3, 32)):
        made = shortcut(channels)
        state |= {f"features.stage{stage}.unit1.identity_conv.{key}": tensor for key, tensor in made.items()}
    put_weights(network, state, ARCH, str(weights))
    count = min(_CALIBRATED, len(train_set))
    calibrate(network, train_set.batch(torch.arange(count) * len(train_set) // count)[0])
    return network


@torch.no_grad()
def check(network: nn.Module, weights: Path, test_set: CoarseFineDataset) -> dict[str, float]:
    """Accuracy of the published network, by our own definition of it, and of pytorchcv's.

    Raises:
        SystemExit: they answer differently.
    """
    published = convert(weights).model.eval()
    images = test_set.batch(torch.arange(0, len(test_set), max(len(test_set) // 100, 1)))[0]
    expected, given = published(images), network(images)
    difference = ((given - expected).abs().max() / expected.abs().max()).item()
    found = {
        key: evaluate(model, test_set, task="fine")["fine"]["accuracy"]
        for key, model in (("published", published), ("pytorchcv", network))
    }
    print(f"accuracy {found}, largest difference of logits {difference:.1e}", flush=True)
    if difference > 1e-3:
        sys.exit("pytorchcv's network does not answer as the published one; the table of names is wrong")
    return {**found, "logits_difference": difference}


def dsn(*arguments: object) -> None:
    """Runs a command of ours.

    Raises:
        SystemExit: with its status, if it fails.
    """
    command = [sys.executable, "-m", "dsn_kernels", *map(str, arguments)]
    print("dsn", *arguments, flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of resnet56-cifar10.th and the JPEG archives")
    parser.add_argument("--work", type=Path, default=Path("runs/gate-resnet56"), help="weights, state and report")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gate-resnet56.json"))
    parser.add_argument("--target", default="macs=0.6")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing per contestant")
    arguments = parser.parse_args()
    work, weights = arguments.work, arguments.data / "resnet56-cifar10.th"
    work.mkdir(parents=True, exist_ok=True)
    test_set = open_dataset("cifar-10-jpeg", arguments.data, False)
    network = converted(weights, open_dataset("cifar-10-jpeg", arguments.data, True))
    accuracy = check(network, weights, test_set)
    torch.save(network.state_dict(), work / "resnet56.pth")
    gated, common = work / "gated.safetensors", ("--arch", ARCH, "--data", arguments.data)
    training = ("--target", arguments.target, "--epochs", arguments.epochs, "--batch", arguments.batch)
    dsn("gate", work / "resnet56.pth", *common, *training, "--out", gated, "--json", work / "gate.json")
    dsn("eval", gated, *common, "--controls", "--json", work / "eval.json")
    timing = ("--batch", "1,8,64", "--gates", "open,trained,random:0.5", "--seconds", arguments.seconds)
    dsn("bench", gated, *common, *timing, "--json", work / "bench.json")
    dsn("report", gated, *common, "--seconds", arguments.seconds, "--out", work / "report.html")
    read = {name: json.loads((work / f"{name}.json").read_text()) for name in ("gate", "eval", "bench")}
    options = f"--target {arguments.target} --epochs {arguments.epochs} --batch {arguments.batch}"
    document = {
        "schema": 1,
        "command": f"python benchmarks/gate_resnet56.py --data DIR {options}",
        **machine.facts(),
        "threads": torch.get_num_threads(),
        "accuracy": accuracy,
        **read,
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
