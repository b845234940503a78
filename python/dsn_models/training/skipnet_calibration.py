"""Where a SkipNet's gates begin on a trained backbone: fitted to how much each image needs each unit.

The paper trains gates and network from the start and does not say how gates could join a trained network. This is our
option, the counterpart of ``dsn_models.training.calibration`` for gates with a state.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import CoarseFineDataset
from ..skipnet import UNITS, SkipNet
from .evaluation import all_open

_IMAGES = 256
_STEPS, _LR = 200, 2e-2


def _logit(probability: float) -> float:
    probability = min(max(probability, 1e-6), 1 - 1e-6)
    return log(probability / (1 - probability))


@torch.no_grad()
def unit_harm(model: SkipNet, images: Tensor, labels: Tensor) -> Tensor:
    """[B, L]: how much each image's cross-entropy rises when the unit of that gate alone is bypassed."""

    def losses(forced: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(images, forced_gates=forced), labels, reduction="none")

    dense = losses(all_open(model, len(images)))
    columns = []
    for gate in range(model.gate_counts[UNITS]):
        forced = all_open(model, len(images))
        forced[UNITS][:, gate] = 0
        columns.append(losses(forced) - dense)
    return torch.stack(columns, 1)


@torch.no_grad()
def gate_inputs(model: SkipNet, images: Tensor) -> list[Tensor]:
    """What each of the L gates reads when every unit runs: [B, C] (RNN, pooled) or [B, C, H, W]."""
    inputs: list[Tensor] = []
    gates = list(model.gates)[:-1]
    handles = [gate.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for gate in gates]
    model(images, forced_gates=all_open(model, len(images)))
    for handle in handles:
        handle.remove()
    return inputs


def calibrate_gates(model: SkipNet, dataset: CoarseFineDataset, target: float, task: str) -> None:
    """Fits the gates, in place, so that a fraction ``target`` of them is open.

    The scores are fitted by cross-entropy to ``harm > q``, with q the quantile that a fraction ``target`` of all pairs
    of image and unit exceeds: easy images and the least needed units go first. The bias of the last linear layer is
    then shifted until the fraction is met. The backbone is fixed, 256 images spread over the data set are looked at.
    """
    training = model.training
    model.eval()
    count = min(_IMAGES, len(dataset))
    images, coarse, fine = dataset.batch(torch.arange(count) * len(dataset) // count)
    device = next(model.parameters()).device
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    harm = unit_harm(model, images, {"coarse": coarse, "fine": fine}[task].to(device))
    inputs = gate_inputs(model, images)
    needed = (harm > harm.quantile(1 - target)).to(harm.dtype)
    learning: list[nn.Module] = [*list(model.gates)[:-1], *([model.control] if model.config.gate == "rnn" else [])]
    optimiser = torch.optim.Adam([p for module in learning for p in module.parameters()], lr=_LR)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        F.binary_cross_entropy(model.gate_scores(inputs), needed).backward()
        optimiser.step()
    with torch.no_grad():
        shift = model.gate_scores(inputs).logit(eps=1e-6).quantile(1 - target) - _logit(model.config.threshold)
        for linear in model.last_linears():
            linear.bias[-1] -= shift
    model.train(training)
