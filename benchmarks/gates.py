"""Gates that learn for whom to open: arms and seeds of one table, trained one after another, each with its controls.

    python benchmarks/gates.py --runs DIR [--data DIR] [--arms digits-] [--seeds 0,1,2] [--latency]

Whatever has a result under ``benchmarks/results`` is skipped, and an interrupted training goes on from its last epoch:
the same command works through the queue in as many sittings as it takes. ``--data`` is the folder of the JPEG CIFAR-10
and of the published ResNet-32 (``resnet32-cifar10.th``), which the arms on it begin with. The arms on digits begin with
the shipped network and are trained for as long as ``digits-dense`` or ``digits-long-dense``, whose layers all run.

A result of gates that learned says under "latency" what they save of the time: batches of test images under own gates
and with every gate open, timed in turns on the same kernels. ``--latency`` measures that again for the results that are
there and whose checkpoints are in ``--runs``, and trains nothing; it wants an idle machine.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dsn_kernels
import dsn_models
from dsn_kernels.cli.demo import CHECKPOINT
from dsn_kernels.measure import machine
from dsn_kernels.measure.latency import InterleavedTimer
from dsn_kernels.measure.networks import executed_macs, open_gates
from dsn_kernels.measure.networks import run as call
from dsn_kernels.measure.noise import Noise
from dsn_models import checkpoints, convert
from dsn_models.controls import controls
from dsn_models.data import CoarseFineDataset, open_dataset
from dsn_models.training import Recipe, evaluate, train

RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = {1: 64, 8: 16, 64: 4}  # and how many of each are timed, of images that take unequal time
THREADS = 2
SECONDS = 2.0  # of timing per batch size, with own gates and with all open

# Half of the MACs; decisions are drawn at first and are those of inference for the last fifth.
_POLICY = {"noise": 0.3, "noise_end": 0.8, "cost": 80.0, "target": 0.5, "target_end": 0.4}
_DIGITS: dict[str, Any] = {
    "model": "dsn-navon",
    "data": {"kind": "navon-sklearn", "train_images": 512, "test_images": 4000, "options": {"distortions": 2}},
    "train": {"epochs": 16, "batch": 32, "lr": 0.03, "compute": "selected"},
    "gates": {"begin": "open", "auxiliary": 0.0},
}
_CIFAR: dict[str, Any] = {
    "model": "skipnet-32-rnn",
    "task": "fine",
    "data": {"kind": "cifar-10-jpeg"},
    "train": {"epochs": 4, "batch": 128, "lr": 0.05, "clip": 2.0, "compute": "selected"},
    "skipping": {"begin": "open"},
}
_DENSE = {"ungated_epochs": 16, "compute": "masked"}
_LONG = {"epochs": 40, "lr": 0.05}
_DEEP = {"epochs": 120, "lr": 0.05}
_FITTED = {**_POLICY, "target": 0.58, "noise": 0.1, "information": 0.1, "binary": True}
# As soft as the target is, most of a gate's freedom goes to telling classes apart.
_BY_CLASS = {"noise": 0.3, "noise_end": 0.5, "cost": 80.0, "target": 0.6, "target_end": 0.4, "classes": 0.5}

# What each arm changes in its base, table by table.
ARMS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "digits-dense": (_DIGITS, {"train": _DENSE}),
    # The shipped gates were fitted to the class; the cost is to shut what is dear, and leaves them their reason.
    "digits-fitted": (
        _DIGITS,
        {"gates": {"begin": "kept"}, "policy": {**_POLICY, "noise": 0.1, "information": 0.1, "binary": True}},
    ),
    # Two and a half times as long, and no more saved than the demo is to save.
    "digits-long-dense": (_DIGITS, {"train": {**_LONG, "ungated_epochs": 40, "compute": "masked"}}),
    "digits-long-fitted": (_DIGITS, {"train": _LONG, "gates": {"begin": "kept"}, "policy": _FITTED}),
    # As long with one pattern for all images, the best that was found at the MACs of the arm before.
    "digits-long-static": (_DIGITS, {"train": _LONG, "policy": {"pattern": "digits-long-fitted"}}),
    "digits-long-image": (
        _DIGITS,
        {"train": _LONG, "gates": {"begin": "kept"}, "policy": {**_FITTED, "per": "image"}},
    ),
    "digits-long-ranking": (
        _DIGITS,
        {"train": _LONG, "gates": {"begin": "kept"}, "policy": {**_FITTED, "ranking": 0.3}},
    ),
    # Three times as long again; at first layers are left out at random, so that no path relies on all of them.
    "digits-deep-fitted": (
        _DIGITS,
        {
            "train": {**_DEEP, "ungated_epochs": 30},
            "gates": {"begin": "kept"},
            "policy": {**_FITTED, "depth": 0.2},
        },
    ),
    "digits-deep-classes": (
        _DIGITS,
        {
            "train": {**_DEEP, "ungated_epochs": 30},
            "gates": {"begin": "open"},
            "policy": {**_BY_CLASS, "binary": True, "classes": 0.2},
        },
    ),
    "digits-deep-dense": (_DIGITS, {"train": {**_DEEP, "ungated_epochs": 120, "compute": "masked"}}),
    "digits-cost": (_DIGITS, {"policy": {**_POLICY, "binary": True}}),
    "digits-information": (_DIGITS, {"policy": {**_POLICY, "binary": True, "information": 0.3}}),
    "digits-shaping": (_DIGITS, {"policy": {**_POLICY, "binary": True, "shaping": 1.0}}),
    "cifar-dense": ({**_CIFAR, "model": "resnet-32", "skipping": {}}, {"train": {"compute": "masked"}}),
    "cifar-cost": (_CIFAR, {"policy": _POLICY}),
    "cifar-static": (_CIFAR, {"policy": {"pattern": "cifar-cost"}}),
    "cifar-information": (_CIFAR, {"policy": {**_POLICY, "information": 0.3}}),
    "cifar-shaping": (_CIFAR, {"policy": {**_POLICY, "shaping": 1.0}}),
    # Gates that tell classes apart, so that units serve some classes and not others.
    "cifar-classes": (_CIFAR, {"policy": _BY_CLASS}),
    "cifar-classes-static": (_CIFAR, {"policy": {"pattern": "cifar-classes"}}),
    "cifar-distilled": (_CIFAR, {"policy": {**_POLICY, "information": 0.3, "distillation": 0.5}}),
}


def make_recipe(arm: str, seed: int, start: Path) -> Recipe:
    """The recipe of an arm; a teacher is what the arm starts from, a pattern that of another arm's result."""
    base, changes = ARMS[arm]
    fields = {**base, "name": f"{arm}-seed{seed}", "seed": seed, "init": str(start)}
    for table, values in changes.items():
        fields[table] = {**fields.get(table, {}), **values}
    if fields.get("policy", {}).get("distillation"):
        fields["policy"]["teacher"] = str(start)
    if "pattern" in fields.get("policy", {}):
        fields["policy"]["pattern"] = str(RESULTS / f"gates-{fields['policy']['pattern']}-seed{seed}.json")
    return Recipe.model_validate(fields)


def find_start(arm: str, runs: Path, data: Path | None) -> Path:
    """The checkpoint that an arm begins with; the published ResNet-32 is converted once."""
    if arm.startswith("digits"):
        return CHECKPOINT
    start = runs / "resnet-32.safetensors"
    if not start.exists():
        if data is None:
            raise SystemExit(f"arm {arm} needs --data, the folder of cifar10-jpeg-*.npz and resnet32-cifar10.th")
        checkpoints.save(convert.convert(data / "resnet32-cifar10.th").model, start)
    return start


def learned(recipe: Recipe, model: Any) -> bool:
    """Whether an arm's network has gates that decide something."""
    return hasattr(model, "gate_counts") and recipe.train.ungated_epochs != recipe.train.epochs


def open_test(recipe: Recipe, data: Path | None) -> CoarseFineDataset:
    part = recipe.data
    images = {} if part.test_images is None else {"images": part.test_images}
    return open_dataset(part.kind, data, False, **images, **part.options)


def judge(model: Any, recipe: Recipe, data: Path | None) -> dict[str, Any]:
    """Test results of a trained network; of one with gates that learned, its controls and the time they save too."""
    test = open_test(recipe, data)
    if not learned(recipe, model):
        gated = {"gated": False} if hasattr(model, "gate_counts") else {}
        return {"test": evaluate(model, test, task=recipe.task, **gated)}
    fast = dsn_kernels.accelerate(model)
    found = controls(model, test, task=recipe.task, network=fast)
    return {"test": evaluate(fast, test, task=recipe.task), "controls": found, "latency": time_gates(fast, test)}


@torch.inference_mode()
def time_gates(fast: Any, test: CoarseFineDataset) -> dict[str, Any]:
    """What an accelerated network's gates save of the time, on test images drawn at random.

    Returns:
        Machine and threads; under ``rows``, for each of :data:`BATCHES` that there are images for: ``images`` in all,
        ``own_ms`` and ``open_ms`` (as ``Latency.as_dict``), ``saved``, 1 - the ratio of their medians, its 95 %
        ``interval``, whether it is more than noise (``called``), and for the same images ``macs_saved``, 1 - MACs /
        MACs with every gate open.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    rows = []
    for batch, count in BATCHES.items():
        parts = [test.batch(part)[0] for part in order.split(batch)[:count] if len(part) == batch]
        if not parts:
            continue
        opened = open_gates(fast, batch)
        timer = InterleavedTimer(
            {"own": [partial(call, fast, x) for x in parts], "open": [partial(call, fast, x, opened) for x in parts]}
        )
        timer.run(SECONDS)
        times = timer.latencies()
        ratio = Noise(timer.turns).ratio(times["open"].median / times["own"].median, "own", "open")
        macs = [sum(executed_macs(fast, x, gates).sum().item() for x in parts) for gates in (None, opened)]
        row = {"batch": batch, "images": batch * len(parts), "macs_saved": 1 - macs[0] / macs[1]}
        row |= {"own_ms": times["own"].as_dict(), "open_ms": times["open"].as_dict()}
        told = {"saved": 1 - 1 / ratio.value, "interval": [1 - 1 / ratio.low, 1 - 1 / ratio.high]}
        rows.append(row | told | {"called": ratio.called})
    torch.set_num_threads(before)
    return {**machine.facts(), "threads": THREADS, "rows": rows}


def write(document: dict[str, Any], out: Path) -> None:
    checkpoints.write_atomically(out, (json.dumps(document, indent=1) + "\n").encode())


def time_again(arm: str, seed: int, runs: Path, data: Path | None) -> str:
    """Adds what its gates save of the time to the result of an arm, and says what came of it."""
    out, name = RESULTS / f"gates-{arm}-seed{seed}.json", f"{arm}-seed{seed}"
    path = runs / name / f"{name}.safetensors"
    if not out.exists():
        return "has no result"
    if not path.exists():
        return f"has no checkpoint {path}"
    recipe, model = make_recipe(arm, seed, find_start(arm, runs, data)), dsn_models.load(path)
    if not learned(recipe, model):
        return "has no gates that learned"
    test = open_test(recipe, data if arm.startswith("cifar") else None)
    found = time_gates(dsn_kernels.accelerate(model), test)
    write(json.loads(out.read_text()) | {"latency": found}, out)
    return ", ".join(f"batch {row['batch']}: {100 * row['saved']:.1f} % saved" for row in found["rows"])


def run(arm: str, seed: int, runs: Path, data: Path | None) -> Path | None:
    """Trains and judges one arm with one seed, and writes its result; None if that is there."""
    out = RESULTS / f"gates-{arm}-seed{seed}.json"
    if out.exists():
        return None
    recipe = make_recipe(arm, seed, find_start(arm, runs, data))
    folder = data if arm.startswith("cifar") else None
    path = train(recipe, folder, runs / recipe.name)
    facts = checkpoints.read_metadata(path)
    recipe_told = facts["recipe"] | {"init": Path(facts["recipe"]["init"]).name}
    if recipe_told["policy"]["teacher"]:
        recipe_told["policy"]["teacher"] = recipe_told["init"]
    if recipe_told["policy"]["pattern"]:
        recipe_told["policy"]["pattern"] = Path(recipe_told["policy"]["pattern"]).name
    document = {
        "schema": 1,
        "command": f"python benchmarks/gates.py --runs DIR --data DIR --arms {arm} --seeds {seed}",
        **machine.facts(),
        "threads": facts["threads"],
        "images_seen": facts["images_seen"],
        "seconds": facts["seconds"],
        "recipe": recipe_told,
        **judge(dsn_models.load(path), recipe, folder),
    }
    write(document, out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="where checkpoints and states are kept")
    parser.add_argument("--data", type=Path, help="folder of the JPEG CIFAR-10 and of resnet32-cifar10.th")
    parser.add_argument("--arms", default="", help="how the names of the arms begin; all if not given")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--latency", action="store_true", help="time the gates of what is trained; train nothing")
    arguments = parser.parse_args()
    for seed in map(int, arguments.seeds.split(",")):  # every arm once, before any arm has its second seed
        for arm in ARMS:
            if arm.startswith(arguments.arms):
                if arguments.latency:
                    told = time_again(arm, seed, arguments.runs, arguments.data)
                else:
                    told = str(run(arm, seed, arguments.runs, arguments.data) or "done before")
                print(f"{arm}, seed {seed}: {told}", flush=True)


if __name__ == "__main__":
    main()
