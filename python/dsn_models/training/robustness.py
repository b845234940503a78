"""Accuracy under adversarial attack, with skipping and without.

The Layer-Skippable Inference Network's abstract claims that skipping layers makes a network harder to attack; it does
not say which attack, at which strength. Attacks are those of the Adversarial Robustness Toolbox, white-box: they follow
the gradient of the loss through the layers that run for the image as it is then. What a gate would have decided
otherwise has no gradient.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..data import CoarseFineDataset
from ..dual_skipping import BRANCHES
from ..errors import UserError
from .evaluation import all_open

Attack = Literal["fgsm", "pgd"]
_INSTALL = "attacks need the package adversarial-robustness-toolbox; install it with pip install 'dsn-kernels[attack]'"


class _View(nn.Module):
    """Pixels in [0, 1] to the logits of one task: normalised as the data set does, gates as asked."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, output: int | None, gated: bool, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model, self.output, self.gated = model, output, gated
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        options = {} if self.gated else {"forced_gates": all_open(self.model, len(pixels))}
        outputs = self.model((pixels - self.mean) / self.std, **options)
        return outputs if self.output is None else outputs[self.output]


def _make_attack(kind: str, classifier: Any, epsilon: float, steps: int, batch: int) -> Any:
    from art.attacks.evasion.fast_gradient import FastGradientMethod
    from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
        ProjectedGradientDescentPyTorch,
    )

    if kind == "fgsm":
        return FastGradientMethod(classifier, eps=epsilon, batch_size=batch)
    step = 2.5 * epsilon / steps  # enough to reach any point of the ball from a random start (Madry et al., 2018)
    return ProjectedGradientDescentPyTorch(
        classifier, eps=epsilon, eps_step=step, max_iter=steps, num_random_init=1, batch_size=batch, verbose=False
    )


def attacked_accuracy(
    model: Any,
    dataset: CoarseFineDataset,
    attack: str,
    *,
    epsilon: float,
    steps: int = 10,
    images: int | None = None,
    task: str = "both",
    gated: bool = True,
    batch: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy on images that are changed to raise the loss of their own label.

    Each task is attacked by itself. FGSM (Goodfellow et al., 2015): ``x + epsilon sign(gradient)``. PGD (Madry et al.,
    2018): ``steps`` steps of 2.5 epsilon / steps, from a random start, projected to the ball of radius epsilon. Both in
    the maximum norm, clipped to [0, 1].

    Args:
        model: reference model in eval mode; accelerated networks have no gradient.
        dataset: its first images are attacked.
        attack: "fgsm" or "pgd".
        epsilon: largest change of a pixel, of 1.
        steps: of PGD.
        images: how many; all if not given.
        task: "both" for networks of two branches, else the network's task.
        gated: False forces every layer to run, in the attack and in the evaluation.
        batch: images at a time.
        seed: of PGD's random start.

    Returns:
        ``{"attack", "epsilon", "images", "gated", "coarse": {"clean", "accuracy", "skipped"}, "fine": {...}}``,
        fractions in [0, 1]; ``skipped`` is the fraction of layers skipped on the attacked images, of gated networks.

    Raises:
        UserError: the attack is unknown, a number does not fit, or the toolbox is not installed.
    """
    if attack not in get_args(Attack):
        raise UserError(f"attack is {attack!r}; expected one of {', '.join(get_args(Attack))}")
    if not 0 < epsilon <= 1 or steps < 1 or batch < 1:
        raise UserError(f"epsilon {epsilon}, steps {steps}, batch {batch}; expected 0 < epsilon <= 1, the others >= 1")
    if not any(True for _ in model.parameters()):
        raise UserError("an accelerated model has no gradients to attack by; attack the reference model")
    try:
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise UserError(_INSTALL) from error
    count = len(dataset) if images is None else min(images, len(dataset))
    if count == 0:
        raise UserError("the data set is empty; expected at least one image to attack")
    inputs, coarse, fine = dataset.batch(torch.arange(count))
    labels = {"coarse": coarse, "fine": fine}
    mean, std = dataset.mean, dataset.std
    pixels = (inputs * std + mean).clamp(0, 1).numpy()
    result: dict[str, Any] = {"attack": attack, "epsilon": epsilon, "images": count, "gated": gated}
    for name in BRANCHES if task == "both" else (task,):
        output = BRANCHES.index(name) if task == "both" else None
        view = _View(model, output, gated, mean, std).eval()
        classes = model.config.classes if output is None else model.config.classes[output]
        classifier = PyTorchClassifier(
            view, nn.CrossEntropyLoss(), pixels.shape[1:], classes, clip_values=(0.0, 1.0), device_type="cpu"
        )
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            changed = _make_attack(attack, classifier, epsilon, steps, batch).generate(pixels, labels[name].numpy())
        finally:
            np.random.set_state(state)
        result[name] = {"clean": _measure(view, pixels, labels[name], name, batch)["accuracy"]}
        result[name] |= _measure(view, changed, labels[name], name, batch)
    return result


@torch.no_grad()
def _measure(view: _View, pixels: np.ndarray, labels: Tensor, name: str, batch: int) -> dict[str, float]:
    correct, ran, layers = 0, 0.0, 0
    for rows in torch.arange(len(pixels)).split(batch):
        logits = view(torch.from_numpy(pixels[rows.numpy()]))
        correct += int((logits.argmax(1) == labels[rows]).sum())
        gates = getattr(view.model, "last_gates", {})
        taken = gates.get(name, next(iter(gates.values()), torch.empty(0)))
        ran, layers = ran + taken.double().sum().item(), layers + taken.numel()
    found = {"accuracy": correct / len(pixels)}
    return found | ({"skipped": 1 - ran / layers} if layers else {})
