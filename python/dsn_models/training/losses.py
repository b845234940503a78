"""What training adds to the cross-entropies, and the gates' state during training."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dual_skipping import BRANCHES, DualSkippingNetwork
from ..gates import PooledGate


class GateRecorder:
    """Collects, while it is open, each gate's logit and multiplier of the last training forward pass, differentiable.

    ``logits[branch]`` and ``multipliers[branch]`` are lists of [B], one per layer.
    """

    def __init__(self, model: DualSkippingNetwork) -> None:
        self.model = model
        self.logits: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
        self.multipliers: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}

    def __enter__(self) -> GateRecorder:
        self.handles = [
            gate.register_forward_hook(self._hook(name))
            for name in BRANCHES
            for gate in getattr(self.model, name).modules()
            if isinstance(gate, PooledGate)
        ]
        return self

    def _hook(self, name: str):
        def record(gate: nn.Module, args: tuple[Tensor], multiplier: Tensor) -> None:
            assert isinstance(gate, PooledGate)
            self.logits[name].append(gate.logit(args[0]))
            self.multipliers[name].append(multiplier)

        return record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()


def auxiliary_loss(logits: Tensor, multipliers: Tensor) -> Tensor:  # [B, L], [B, L] -> []
    """Binary cross-entropy that keeps gates alive. Dual Skipping Networks, implementation details.

    Over the gates whose multipliers are all 0 or all 1 in the batch: the mean of BCE(sigmoid(z), t) with t = 1 for a
    gate that is always shut and t = 0 for one that is always open, divided by the number of all gates. The paper gives
    neither target nor weight; the opposite of the stuck value is our reading.
    """
    m = multipliers.detach()
    shut, opened = (m == 0).all(0), (m == 1).all(0)
    wanted = shut.expand_as(logits).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(0)
    return (loss * (shut | opened)).mean()


def sparsity_loss(multipliers: Tensor, target: float) -> Tensor:  # [B, L] -> []
    """``max(0, mean multiplier - target)^2`` over a branch's layers and the batch. Our option, not the paper's."""
    return (multipliers.mean() - target).clamp(min=0) ** 2


def ranking_loss(losses: Tensor, multipliers: Tensor, margin: float) -> Tensor:  # [B], [B, L] -> []
    """A harder image should not use fewer layers. Layer-Skippable Inference Network, our reading of its abstract.

    With n_i the fraction of layers that image i runs (the mean of its multipliers) and l_i its detached task loss: the
    mean over all pairs with l_i > l_j of ``max(0, n_j - n_i + margin)``; 0 if all losses are equal.
    """
    fraction = multipliers.mean(1)
    losses = losses.detach()
    harder, easier = torch.nonzero(losses[:, None] > losses[None, :], as_tuple=True)
    if not len(harder):
        return fraction.sum() * 0
    return F.margin_ranking_loss(fraction[harder], fraction[easier], torch.ones_like(fraction[harder]), margin)


def information(scores: Tensor) -> Tensor:  # [B, L] -> []
    """``H(mean p) - mean H(p)``: what a gate drawn with probability p tells of the image, in nats, the mean over gates.

    0 where p is the same for all images, log 2 where it is 0 for half of them and 1 for the others. Bridle et al.,
    Unsupervised classifiers, mutual information and phantom targets (NIPS 1991), of each gate.
    """
    return (_entropy(scores.mean(0)) - _entropy(scores).mean(0)).mean()


def class_information(scores: Tensor, labels: Tensor) -> Tensor:  # [B, L], int64 [B] -> []
    """``H(mean p) - sum_c n_c/B H(mean p over class c)``: what a gate tells of the class, in nats, the mean over gates.

    n_c of the B images are of class c. :func:`information`, of the class in place of the image: 0 where p differs
    within classes alone, at most that of the image.
    """
    member = F.one_hot(labels).to(scores.dtype)  # [B, C]
    sizes = member.sum(0)
    means = member.T @ scores / sizes.clamp(min=1)[:, None]
    return (_entropy(scores.mean(0)) - (sizes[:, None] / len(scores) * _entropy(means)).sum(0)).mean()


def _entropy(p: Tensor) -> Tensor:
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def batch_shaping_loss(scores: Tensor) -> Tensor:  # [B, L] -> []
    """The Cramer-von Mises distance of a gate's scores over the batch from a prior with both ends, mean over gates.

    With p_(i) the i-th smallest of a gate's B scores: ``mean_i (i / (B + 1) - F(p_(i)))^2``. Bejnordi et al.,
    https://arxiv.org/abs/1907.06627, section 3.2, whose F is the distribution function of Beta(0.6, 0.4). Ours is
    Kumaraswamy's, ``1 - (1 - p^0.6)^0.4``, which is within 0.04 of it and has a closed form.
    """
    ordered = scores.clamp(1e-6, 1 - 1e-6).sort(0).values
    prior = 1 - (1 - ordered**0.6) ** 0.4
    ranks = torch.arange(1, len(scores) + 1, device=scores.device, dtype=scores.dtype) / (len(scores) + 1)
    return ((ranks[:, None] - prior) ** 2).mean()


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:  # [B, K], [B, K] -> []
    """``T^2 KL(softmax(taught / T) || softmax(logits / T))``, mean over images. Hinton et al., arXiv:1503.02531."""
    ours, theirs = (logits / temperature).log_softmax(1), (taught / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def freeze_gates(model: DualSkippingNetwork, frozen: bool) -> None:
    """Stops, or lets go on, the learning of every gate."""
    for gate in model.modules():
        if isinstance(gate, PooledGate):
            gate.requires_grad_(not frozen)


def open_gates(model: DualSkippingNetwork) -> None:
    """Sets every gate to score 1 whatever its input: weight 0, bias 1/2. The network then equals the ungated one."""
    for gate in model.modules():
        if isinstance(gate, PooledGate):
            nn.init.zeros_(gate.linear.weight)
            nn.init.constant_(gate.linear.bias, 0.5)
