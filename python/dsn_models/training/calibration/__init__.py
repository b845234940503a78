"""Where gates begin on a trained network: the layers or filters that matter least begin to be skipped. Our option.

The papers say that gates join trained weights (DSN, GaterNet) or are trained with them from the start (SkipNet), not
how they begin. Gates that all begin open, under any pressure to shut, arrive at the threshold together and stay there,
neither open nor shut. :func:`calibrate` is one way for all families: measure the *harm* of skipping (``harm.py``),
choose the gates whose absence harms least, and fit these to be shut for as many images as make up the target
(``fits.py``). :func:`recentre` brings frozen gates back to their rates while the weights before them go on learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...data import CoarseFineDataset
from ...dual_skipping import DualSkippingNetwork
from ...gaternet import GaterNet
from ...skipnet import SkipNet
from .fits import fit_filter_gates, fit_pooled_gates, fit_unit_gates, recentre_pooled_gates, recentre_unit_gates
from .harm import filter_harm, layer_harm

__all__ = ["calibrate", "filter_harm", "layer_harm", "recentre"]


class _Kind(NamedTuple):
    """How a family's gates are calibrated.

    Attributes:
        images: how many are looked at.
        fit: (model, images, labels by gate name, open fraction by gate name), in place.
        recentre: (model, images, open fraction by gate name), in place; None where frozen gates cannot drift.
    """

    images: int
    fit: Callable[[Any, Tensor, Mapping[str, Tensor], Mapping[str, float]], None]
    recentre: Callable[[Any, Tensor, Mapping[str, float]], None] | None


_KINDS: dict[type[nn.Module], _Kind] = {
    DualSkippingNetwork: _Kind(512, fit_pooled_gates, recentre_pooled_gates),
    SkipNet: _Kind(256, fit_unit_gates, recentre_unit_gates),
    GaterNet: _Kind(2000, fit_filter_gates, None),
}


def _kind(model: nn.Module) -> _Kind:
    return next(kind for family, kind in _KINDS.items() if isinstance(model, family))


@contextmanager
def _looking_at(model: nn.Module, dataset: CoarseFineDataset, count: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The model in ``eval()``; ``count`` images spread over the data set, which may be sorted by class, and labels."""
    training, device = model.training, next(model.parameters()).device
    count = min(count, len(dataset))
    images, *labels = dataset.batch(torch.arange(count) * len(dataset) // count)
    model.eval()
    try:
        yield images.to(device).contiguous(memory_format=torch.channels_last), [x.to(device) for x in labels]
    finally:
        model.train(training)


def calibrate(model: Any, dataset: CoarseFineDataset, fractions: Mapping[str, float], task: str) -> None:
    """Sets the gates, in place, so that about a fraction of them is open, the least needed shut first.

    Args:
        model: a DSN, LSN, SkipNet or GaterNet with trained weights.
        dataset: 512 of its images (SkipNet: 256, GaterNet: 2,000) are looked at.
        fractions: open fraction by gate name, the keys of ``model.gate_counts``.
        task: "both" for networks of two branches, "coarse" or "fine" for the others.
    """
    kind = _kind(model)
    with _looking_at(model, dataset, kind.images) as (images, (coarse, fine)):
        by_task = {"coarse": coarse, "fine": fine}
        labels = {name: by_task[name if task == "both" else task] for name in model.gate_counts}
        kind.fit(model, images, labels, fractions)


@torch.no_grad()
def recentre(model: Any, dataset: CoarseFineDataset, fractions: Mapping[str, float]) -> None:
    """Shifts the biases of calibrated gates, in place, so that they are open as often as calibration had them.

    The weights before a frozen gate go on learning, and its logit drifts with them. Measured on the images that
    :func:`calibrate` looks at, the gates deciding as in inference. A GaterNet's gater sees the image alone and, frozen,
    cannot drift: it is left as it is.
    """
    kind = _kind(model)
    if kind.recentre is not None:
        with _looking_at(model, dataset, kind.images) as (images, _):
            kind.recentre(model, images, fractions)
