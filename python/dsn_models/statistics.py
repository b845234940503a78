"""What trained gates do, as arrays. GaterNet (https://arxiv.org/abs/1811.11205), section 4.2.1; for every gated family.

Gates are uint8 [N, L] of 0 and 1: N samples, L gates, as in ``model.last_gates[name]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data import CoarseFineDataset
from .data.base import Clusters
from .errors import UserError
from .intervals import Z95


class GateRecord(NamedTuple):
    """The gates that a model took on a data set.

    Attributes:
        gates: uint8 [N, L] by the name in ``last_gates``.
        scores: float32 [N, L] by the same names.
        labels: int64 [N] by task, "coarse" and "fine".
    """

    gates: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


@torch.no_grad()
def record_gates(model: Any, dataset: CoarseFineDataset, *, batch: int = 250) -> GateRecord:
    """Runs a gated model, in ``eval()``, over a data set in order and keeps what its gates did.

    Raises:
        UserError: the model has no gates, or the data set is empty.
    """
    if not hasattr(model, "last_gates"):
        raise UserError(f"model is a {type(model).__name__}; expected a gated network")
    if not len(dataset):
        raise UserError("the data set is empty; expected at least one image")
    device = next(model.parameters()).device
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []
    for indices in torch.arange(len(dataset)).split(batch):
        images, coarse, fine = dataset.batch(indices)
        model(images.to(device))
        parts.append((model.last_gates, model.last_scores, {"coarse": coarse, "fine": fine}))
    whole = [{name: torch.cat([p[i][name] for p in parts]).cpu().numpy() for name in parts[0][i]} for i in range(3)]
    return GateRecord(*whole)


class GateKinds(NamedTuple):
    """Per unit, the fraction of its gates that are on for all samples, off for all, or neither. float64 [U] each."""

    always_on: np.ndarray
    always_off: np.ndarray
    input_dependent: np.ndarray


def gate_kinds(gates: np.ndarray, unit_sizes: Sequence[int] | None = None) -> GateKinds:
    """How many of each unit's gates depend on the input. GaterNet, figure 2 (times the sizes: figure 6).

    Args:
        gates: [N, L] of 0 and 1.
        unit_sizes: number of gates of each unit in order, such as ``model.unit_sizes.values()``; 1 each if not given.

    Raises:
        UserError: ``gates`` is no such array, or the sizes do not add up to L.
    """
    gates = _check(gates)
    sizes = np.ones(gates.shape[1], int) if unit_sizes is None else np.asarray(unit_sizes, int)
    if sizes.sum() != gates.shape[1] or (sizes < 1).any():
        raise UserError(
            f"unit_sizes add up to {sizes.sum()}; expected positive numbers that add up to {gates.shape[1]}"
        )
    firsts = np.cumsum(sizes) - sizes
    on, off = gates.all(0), ~gates.any(0)
    return GateKinds(*(np.add.reduceat(kind, firsts, dtype=float) / sizes for kind in (on, off, ~(on | off))))


def samples_on(gates: np.ndarray) -> np.ndarray:
    """Of each input-dependent gate, the number of samples for which it is on: int64 [D]. GaterNet, figure 3.

    Raises:
        UserError: ``gates`` is not [N, L] of 0 and 1.
    """
    gates = _check(gates)
    return gates.sum(0, dtype=np.int64)[gates.any(0) & ~gates.all(0)]


def gates_on(gates: np.ndarray) -> np.ndarray:
    """Of each sample, the number of gates that are on: int64 [N]. GaterNet, figure 4.

    Raises:
        UserError: ``gates`` is not [N, L] of 0 and 1.
    """
    return _check(gates).sum(1, dtype=np.int64)


def principal_gates(gates: np.ndarray, components: int = 2, seed: int = 0) -> np.ndarray:
    """The first principal components of gate vectors: [N, L] of 0 and 1 to [N, components], zeros beyond min(N, L).

    Raises:
        UserError: ``gates`` is no such array.
    """
    from sklearn.decomposition import PCA  # scikit-learn takes seconds to import

    gates = _check(gates)
    kept = min(components, *gates.shape)
    places = PCA(kept, random_state=seed).fit_transform(gates.astype(np.float32))
    return np.pad(places, ((0, 0), (0, components - kept)))


def embed_gates(gates: np.ndarray, *, components: int = 400, seed: int = 0, **options: Any) -> np.ndarray:
    """Gate vectors in the plane: PCA to ``components`` dimensions, then t-SNE. GaterNet, figure 5.

    Args:
        gates: [N, L] of 0 and 1, N > 1.
        components: of the PCA; at most min(N, L) are kept.
        seed: of both.
        options: of ``sklearn.manifold.TSNE``, such as ``perplexity``: 30 if not given, less for fewer than 91 samples.

    Returns:
        float32 [N, 2].

    Raises:
        UserError: ``gates`` is no such array.
    """
    from sklearn.manifold import TSNE

    gates = _check(gates)
    if len(gates) < 2:
        raise UserError(f"gates have {len(gates)} samples; expected two or more to embed")
    reduced = principal_gates(gates, min(components, *gates.shape), seed)
    perplexity = min(30.0, (len(gates) - 1) / 3)
    return TSNE(random_state=seed, **{"perplexity": perplexity, "init": "pca", **options}).fit_transform(reduced)


class Correlation(NamedTuple):
    """A rank correlation and the ends of its 95 % confidence interval; None where one side is constant."""

    correlation: float | None
    low: float | None
    high: float | None


def rank_correlation(x: np.ndarray, y: np.ndarray, clusters: Clusters | None = None) -> Correlation:
    """Spearman's correlation of ``x`` [N] and ``y`` [N], equal values sharing their mean rank.

    The interval is Fisher's with Fieller's error, ``atanh(r) +- 1.96 sqrt(1.06 / (n - 3))``; n is the number of
    samples, or of their sources where ``clusters`` tells them.
    """
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(None, None, None)
    r = float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])
    n = len(x) if clusters is None else len(clusters.members.unique())
    if n < 4 or abs(r) >= 1 - 1e-12:
        return Correlation(r, -1.0 if n < 4 else r, 1.0 if n < 4 else r)
    half = Z95 * math.sqrt(1.06 / (n - 3))
    return Correlation(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def mutual_information(gate: np.ndarray, classes: np.ndarray) -> float:
    """What a gate, [N] of 0 and 1, and ``classes`` [N] tell of each other, in bits.

    ``sum p(g, c) log2 p(g, c) / (p(g) p(c))`` of the samples, less what independent ones would have on average,
    ``(K - 1) / (2 N ln 2)`` for K classes (Miller and Madow); 0 at least.
    """
    from sklearn.metrics import mutual_info_score  # it takes a second to import

    bias = (len(np.unique(classes)) - 1) * (len(np.unique(gate)) - 1) / (2 * len(gate))
    return max(float(mutual_info_score(gate, classes)) - bias, 0.0) / math.log(2)


def _check(gates: np.ndarray | Tensor) -> np.ndarray:
    array = gates.cpu().numpy() if isinstance(gates, Tensor) else np.asarray(gates)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(f"gates have shape {list(array.shape)}; expected [samples, gates], at least one of each")
    if not ((array == 0) | (array == 1)).all():
        raise UserError("gates hold other values than 0 and 1; expected what last_gates holds")
    return array
