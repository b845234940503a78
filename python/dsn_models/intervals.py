"""95 % confidence intervals of means, of independent images and of images that share their sources."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .data.base import Clusters

Z95 = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


def fraction_interval(count: float, total: float) -> dict[str, float]:
    """``count / total`` of independent trials and its 95 % confidence interval after Wilson."""
    share = count / total
    centre = (share + Z95**2 / (2 * total)) / (1 + Z95**2 / total)
    half = Z95 / (1 + Z95**2 / total) * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    return {"mean": share, "low": max(0.0, min(share, centre - half)), "high": min(1.0, max(share, centre + half))}


def share_interval(hits: Tensor, clusters: Clusters | None = None) -> dict[str, float]:
    """The fraction of ``hits``, bool [N], and its 95 % confidence interval: Wilson's.

    Of images that share sources it is that of N / d independent ones, d their :func:`design_effect`; where all or none
    are hits, of as many as there are sources, since the images do not tell how much each source decides.
    """
    count, total = int(hits.sum()), len(hits)
    if clusters is None:
        return fraction_interval(count, total)
    sources = len(clusters.members.unique())
    shrink = max(1.0, total / sources) if count in (0, total) else design_effect(hits.double(), clusters)
    return {**fraction_interval(count / shrink, total / shrink), "mean": count / total}


def mean_interval(values: Tensor, clusters: Clusters | None = None) -> dict[str, float]:
    """Mean of ``values`` [N] and its 95 % confidence interval, of the normal approximation.

    Of images that share sources its width grows by the square root of the :func:`design_effect`.
    """
    values = values.double()
    mean = values.mean().item()
    half = Z95 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    if clusters is not None:
        half *= math.sqrt(design_effect(values, clusters))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def design_effect(values: Tensor, clusters: Clusters) -> float:
    """How many times larger the variance of the mean of ``values`` [N] is than that of as many independent images.

    The sources are what was sampled: the variance is that of drawing the D sources of the N images anew, with
    replacement, in closed form. With e the deviations from the mean, S_d the sum of those of all images that source d
    is in, in whatever role, and T_g the sum of those of all images of the same two sources,
    ``V = D / (D - 1) sum_d S_d^2 - sum_g T_g^2`` beside ``sum_i e_i^2`` of independent images: the cluster-robust
    variance for dyads of Aronow, Samii and Assenova (2015), whose second term takes off what the first counts twice.
    The pigeonhole bootstrap (Owen, 2007), which multiplies how often an image's sources were drawn, gives sources the
    same share but counts the chance of single images three times, which a few hundred images would notice. At least 1.
    """
    e = values.double() - values.double().mean()
    independent = e.square().sum().item()
    if independent == 0 or len(values) < 2:
        return 1.0
    names, members = clusters.members.sort(1).values.unique(return_inverse=True)
    # An image that has one source in two roles belongs to it once.
    again = torch.zeros_like(members, dtype=torch.bool)
    again[:, 1:] = members[:, 1:] == members[:, :-1]
    per_source = _sums(torch.where(again, 0.0, e[:, None]).flatten(), members.flatten())
    pairs = members[:, 0]
    for column in members.T[1:]:
        pairs = pairs * len(names) + column
    pairs = pairs.unique(return_inverse=True)[1]
    roles = (~again).sum(1)
    twice = (_sums(roles * e, pairs) - _sums(e, pairs)) * _sums(e, pairs)
    small = len(names) / max(len(names) - 1, 1)
    variance = small * per_source.square().sum() - twice.sum()
    return max(1.0, variance.item() / independent)


def _sums(values: Tensor, groups: Tensor) -> Tensor:
    """Sums of ``values`` [N] by group, numbered from 0 without gaps."""
    return torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, values)
