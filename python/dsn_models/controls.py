"""What is it worth that gates look at the image? A gated network against the same network under other gates.

- ``own``: what its gates decide.
- ``another``: each image under the gates of another image, drawn at random. Patterns and cost are the same as a whole,
  so that what is lost is what the decision owes to the image.
- ``random``: each gate open at its own rate, for images at random.
- ``static``: one pattern for all images, of no more MACs than its own gates take on average; :func:`static_pattern`.
- ``open``: every gate open.

All are measured on the same images. MACs are those of :func:`dsn_models.computation.gate_macs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .computation import GateMacs, gate_macs
from .data import CoarseFineDataset
from .data.base import Clusters
from .dual_skipping import BRANCHES
from .errors import UserError
from .intervals import mean_interval, share_interval
from .statistics import mutual_information, rank_correlation

CONTROLS = {
    "own": "its own",
    "another": "another image's",
    "random": "random, at their rates",
    "static": "one pattern for all",
    "open": "all open",
}
LEAST_IMAGES = 8
_LOSS_BINS = 10
_FREQUENT = 10  # of its own patterns that a static one may begin with

Gates = dict[str, Tensor]


@dataclass(frozen=True)
class _Pass:
    """What a network did on N images: by task losses, labels, right answers, [N] each; gates uint8 [N, L] by name."""

    losses: dict[str, Tensor]
    labels: dict[str, Tensor]
    correct: dict[str, Tensor]
    gates: Gates

    @property
    def loss(self) -> float:
        """Mean cross-entropy, summed over the tasks."""
        return sum(loss.mean().item() for loss in self.losses.values())


@dataclass(frozen=True)
class _Bench:
    """A network, its tasks and images to run it on."""

    network: Any
    dataset: CoarseFineDataset
    tasks: tuple[str, ...]
    batch: int

    @torch.no_grad()
    def run(self, indices: Tensor, gates: Gates | None = None) -> _Pass:
        """Images by index under ``gates`` [N, L], or [1, L] for all alike; its own if not given."""
        parts: list[_Pass] = []
        for first in range(0, len(indices), self.batch):
            rows = indices[first : first + self.batch]
            images, *labels = self.dataset.batch(rows)
            options: dict[str, Any] = {}
            if gates is not None:
                chosen = {n: g.expand(len(indices), -1)[first : first + len(rows)] for n, g in gates.items()}
                options["forced_gates"] = {name: g.contiguous() for name, g in chosen.items()}
            outputs = self.network(images, **options)
            logits = dict(zip(self.tasks, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
            by_task = dict(zip(("coarse", "fine"), labels, strict=True))
            wanted = {task: by_task[task] for task in self.tasks}
            losses = {t: F.cross_entropy(logits[t].double(), wanted[t], reduction="none") for t in self.tasks}
            correct = {task: logits[task].argmax(1) == wanted[task] for task in self.tasks}
            parts.append(_Pass(losses, wanted, correct, {n: g.clone() for n, g in self.network.last_gates.items()}))
        return _Pass(*(_joined([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(_Pass)))


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def controls(
    model: Any,
    dataset: CoarseFineDataset,
    *,
    task: str = "both",
    network: Any = None,
    batch: int = 250,
    search_images: int = 500,
    search_steps: int = 30,
    seed: int = 0,
    on_step: Callable[[str, float], None] = lambda what, done: None,
) -> dict[str, Any]:
    """A gated network under its own gates and under those of :data:`CONTROLS`.

    Args:
        model: gated, in eval mode, on the CPU.
        dataset: labelled images. ``search_images`` of them, drawn at random and at most a quarter, serve the search for
            the static pattern; the others are what every control is measured on.
        task: "both" for networks of two branches, else the network's task.
        network: runs in the model's place, such as the same network, accelerated.
        batch: images at a time.
        search_steps: patterns that the search may try beyond those it begins with.
        seed: of all that is drawn.
        on_step: told what is going on and which part is done.

    Returns:
        - ``images``, ``search_images``: how many.
        - ``under``: by control, ``macs`` (mean, of the MACs of the network without gates) and by task ``accuracy``,
          ``low``, ``high``, and but for "own" what own gates gain: ``gain``, ``gain_low``, ``gain_high``. Fractions;
          intervals are of 95 % and know what images share (:attr:`CoarseFineDataset.clusters`).
        - ``difficulty``: by task, Spearman's ``correlation`` of an image's MACs in the task's gates with its loss, and
          ``low``, ``high``; all None if all images take as many.
        - ``gates``: by their name, for each gate ``open`` (rate) and, by task, its mutual information in bits with the
          ``class`` and with the ``loss``, cut into ten bins of as many images; biases taken off.
        - ``static_pattern``: by name of the gates, 0 or 1 for each.

    Raises:
        UserError: the model has no gates, or there are fewer than eight images.
    """
    if not getattr(model, "gate_counts", None):
        raise UserError(f"controls compare gates; the model is a {type(model).__name__}, which has none")
    if len(dataset) < LEAST_IMAGES:
        raise UserError(f"the data set has {len(dataset)} images; controls need {LEAST_IMAGES} or more")
    bench = _Bench(model if network is None else network, dataset, BRANCHES if task == "both" else (task,), batch)
    macs, generator = gate_macs(model), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator)
    search, measured = order.split([count := min(search_images, len(order) // 4), len(order) - count])
    on_step("own gates", 0.0)
    own = bench.run(measured)
    on_step("static pattern", 0.1)
    static = static_pattern(bench.run, search, macs, steps=search_steps, generator=generator)
    rates = {name: gates.double().mean(0) for name, gates in own.gates.items()}
    draws = {name: torch.rand(gates.shape, generator=generator) for name, gates in own.gates.items()}
    patterns: dict[str, Gates] = {
        "another": _shuffled(own.gates, generator),
        "random": {name: (draws[name] < rates[name]).byte() for name in rates},
        "static": static,
        "open": {name: torch.ones(1, n, dtype=torch.uint8) for name, n in model.gate_counts.items()},
    }
    passes = {"own": own}
    for i, (name, gates) in enumerate(patterns.items()):
        on_step(f"{name} gates", 0.6 + 0.1 * i)
        passes[name] = bench.run(measured, gates)
    shared = dataset.clusters
    clusters = None if shared is None else shared._replace(members=shared.members[measured])
    return {
        "images": len(measured),
        "search_images": len(search),
        "under": {name: _compare(done, own, macs, clusters) for name, done in passes.items()},
        "difficulty": {t: _difficulty(own, t, macs, clusters) for t in bench.tasks},
        "gates": {name: _information(own, name) for name in own.gates},
        "static_pattern": {name: pattern[0].tolist() for name, pattern in static.items()},
    }


def static_pattern(
    run: Callable[[Tensor, Gates | None], _Pass],
    search: Tensor,
    macs: GateMacs,
    *,
    steps: int,
    generator: torch.Generator,
) -> Gates:
    """The pattern of least loss that was found among those of no more MACs than the images' own gates take on average.

    The search begins with the best of: the gates in the order of their rates, as many as fit; the ten most frequent
    patterns of the images that fit. Then it opens a gate, or opens one and shuts another, both drawn at random, keeps
    what fits and lowers the loss, and tries ``steps`` such patterns.

    Args:
        run: images, by index, under gates.
        search: indices of the images.
        macs: of the network's gates.
        steps: see above.
        generator: of what is drawn.

    Returns:
        uint8 [1, L] by the gates' name.
    """
    own = run(search, None)
    budget = macs.executed(own.gates).mean().item() + 0.5  # MACs are whole numbers, their mean is rounded
    sizes = {name: gates.shape[1] for name, gates in own.gates.items()}
    joined = torch.cat([*own.gates.values()], 1)

    def split(pattern: Tensor) -> Gates:
        return dict(zip(sizes, pattern[None].split([*sizes.values()], 1), strict=True))

    def fits(pattern: Tensor) -> bool:
        return macs.executed(split(pattern)).item() <= budget

    begun = torch.zeros(joined.shape[1], dtype=torch.uint8)
    for gate in joined.double().mean(0).argsort(descending=True, stable=True):
        begun[gate] = 1
        if not fits(begun):
            begun[gate] = 0
    distinct, counts = joined.unique(dim=0, return_counts=True)
    frequent = [p for p in distinct[counts.argsort(descending=True, stable=True)] if fits(p)][:_FREQUENT]
    losses = [(run(search, split(pattern)).loss, i, pattern) for i, pattern in enumerate((begun, *frequent))]
    least, _, best = min(losses)
    for _ in range(steps):
        shut, opened = (best == 0).nonzero().squeeze(1), best.nonzero().squeeze(1)
        if not len(shut):
            break
        tried = best.clone()
        tried[shut[torch.randint(len(shut), (), generator=generator)]] = 1
        if not fits(tried) and len(opened):
            tried[opened[torch.randint(len(opened), (), generator=generator)]] = 0
        if fits(tried) and (loss := run(search, split(tried)).loss) < least:
            least, best = loss, tried
    return split(best)


def _shuffled(gates: Gates, generator: torch.Generator) -> Gates:
    """Every image with the gates of another: of the one before it in a random order."""
    order = torch.randperm(len(next(iter(gates.values()))), generator=generator)
    giver = torch.empty_like(order)
    giver[order] = order.roll(1)
    return {name: g[giver] for name, g in gates.items()}


def _compare(done: _Pass, own: _Pass, macs: GateMacs, clusters: Clusters | None) -> dict[str, Any]:
    result: dict[str, Any] = {"macs": macs.executed(done.gates).mean().item() / macs.dense}
    for task, correct in done.correct.items():
        accuracy = share_interval(correct, clusters)
        result[task] = {"accuracy": accuracy["mean"], "low": accuracy["low"], "high": accuracy["high"]}
        if done is not own:
            gains = own.correct[task].double() - correct.double()
            gain = mean_interval(gains, clusters)
            result[task] |= {"gain": gain["mean"], "gain_low": gain["low"], "gain_high": gain["high"]}
    return result


def _difficulty(own: _Pass, task: str, macs: GateMacs, clusters: Clusters | None) -> dict[str, float | None]:
    gates = {name: g for name, g in own.gates.items() if name == task or name not in BRANCHES}
    cost = macs.executed({n: gates.get(n, torch.zeros_like(g)) for n, g in own.gates.items()})
    return rank_correlation(cost.numpy(), own.losses[task].numpy(), clusters)._asdict()


def _information(own: _Pass, name: str) -> dict[str, Any]:
    gates = own.gates[name].numpy()
    result: dict[str, Any] = {"open": gates.mean(0, dtype=float).tolist()}
    for task, labels in own.labels.items():
        ranks = own.losses[task].numpy().argsort().argsort()
        about = {"class": labels.numpy(), "loss": ranks * _LOSS_BINS // len(ranks)}
        result[task] = {key: [mutual_information(g, x) for g in gates.T] for key, x in about.items()}
    return result


class ControlTable(NamedTuple):
    """Words of a table for people: its title, its columns and its rows, the first ``left`` columns being names."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int


def told(found: dict[str, Any]) -> tuple[list[ControlTable], list[str]]:
    """What :func:`controls` found, for people: accuracy under each control, what the gates depend on, and for each task
    a line on whether harder images run more."""
    tasks = [name for name in BRANCHES if name in found["under"]["own"]]
    two = len(tasks) > 1  # one task goes without its name
    columns = [f"{task}{what}" for task in tasks for what in ("", ": own gain")] if two else ["accuracy", "own gain"]
    rows = []
    for control, words in CONTROLS.items():
        under, cells = found["under"][control], []
        for task in tasks:
            cells.append(_range(under[task], "accuracy", "low", "high"))
            cells.append("-" if control == "own" else _range(under[task], "gain", "gain_low", "gain_high"))
        rows.append((words, f"{100 * under['macs']:.1f} %", *cells))
    accuracy = ControlTable(
        f"the same {found['images']} test images under other gates; in %, with 95 % intervals",
        ("gates", "MACs", *columns),
        rows,
        left=1,
    )
    rows = []
    for name, gates in found["gates"].items():
        between = sum(0.05 <= rate <= 0.95 for rate in gates["open"])
        for task in tasks if name not in tasks else (name,):
            bits = (f"{sum(gates[task][key]) / len(gates['open']):.3f}" for key in ("class", "loss"))
            named = (name, task) if two else (name,)
            rows.append((*named, f"{between} of {len(gates['open'])}", *bits))
    depends = ControlTable(
        "what the gates depend on: mutual information in bits, mean over the gates",
        ("gates", *(["task"] if two else []), "open for 5 to 95 % of the images", "with the class", "with the loss"),
        rows,
        left=2 if two else 1,
    )
    lines = []
    for task, hard in found["difficulty"].items():
        words = "all images take as many MACs"
        if hard["correlation"] is not None:
            words = "{correlation:+.2f} ({low:+.2f} to {high:+.2f})".format(**hard)
        whose = f"{task}: rank" if two else "Rank"
        lines.append(f"{whose} correlation of an image's MACs with its loss: {words}")
    return [accuracy, depends], lines


def _range(found: dict[str, Any], value: str, low: str, high: str) -> str:
    return f"{100 * found[value]:.1f} ({100 * found[low]:.1f} to {100 * found[high]:.1f})"
