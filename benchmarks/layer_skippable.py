"""LSN against DSN: accuracy, skipping and accuracy under attack, with each of LSN's additions switched off in turn.

    python benchmarks/layer_skippable.py OUT.json [--images 640] [--attacked 200] [--data MNIST --start CKPT]

Every arm fine-tunes the shipped network (dsn-navon on Navon digits of scikit-learn), or on sb-MNIST one trained by
`dsn train sb-mnist`, by the same recipe: two epochs in which the gates learn too. What an arm adds begins without
effect, so all begin alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

import dsn_models
from dsn_kernels.cli.demo import CHECKPOINT
from dsn_models import checkpoints
from dsn_models.data import open_dataset
from dsn_models.training import Recipe, train
from dsn_models.training.robustness import attacked_accuracy

# name: feedback (guide), path-encoding affine, weight of the ranking loss
ARMS = {
    "dsn": (False, False, 0.0),
    "lsn": (True, True, 0.5),
    "lsn, no feedback": (False, True, 0.5),
    "lsn, no path encoding": (True, False, 0.5),
    "lsn, no ranking loss": (True, True, 0.0),
}


def make_recipe(name: str, start: Path, kind: str, images: int, seed: int) -> Recipe:
    guide, path_affine, ranking = ARMS[name]
    return Recipe.model_validate(
        {
            "name": name.replace(", ", "-").replace(" ", "-"),
            "model": "lsn-navon",
            "seed": seed,
            "init": str(start),
            "options": {"guide": guide, "path_affine": path_affine},
            "data": {
                "kind": kind, "train_images": images, "test_images": 500,
                "options": {"distortions": 2, "seed": 1},
            },
            "train": {"epochs": 2, "batch": 32, "lr": 0.01},
            "gates": {
                "begin": "kept", "slope": 4.0, "slope_step": 0.0, "sparsity": 2.0, "target": [0.85, 0.88],
            },
            "lsn": {"ranking": ranking, "margin": 0.05},
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=640, help="of an epoch")
    parser.add_argument("--attacked", type=int, default=200, help="test images under FGSM; a quarter of them under PGD")
    parser.add_argument("--data", type=Path, help="folder of MNIST's files: sb-MNIST instead of scikit-learn's digits")
    parser.add_argument("--start", type=Path, default=CHECKPOINT, help="a dsn-navon trained on these data")
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kind = "navon-idx" if options.data else "navon-sklearn"
    test_set = open_dataset(kind, options.data, False, options.attacked, seed=1)
    document = {
        "schema": 1,
        "command": f"python {' '.join(sys.argv)}",
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "seed": options.seed,
        "pgd": {"steps": 5},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ARMS:
            began = time.process_time()
            recipe = make_recipe(name, options.start, kind, options.images, options.seed)
            checkpoint = train(recipe, options.data, Path(folder) / recipe.name)
            facts = checkpoints.read_metadata(checkpoint)
            trained = facts["recipe"] | {"init": options.start.name}  # not where it lies on this machine
            row = {"arm": name, "recipe": trained, "images_seen": facts["images_seen"], "test": facts["test"]}
            row["train_cpu_seconds"] = round(time.process_time() - began, 1)
            model = dsn_models.load(checkpoint)
            row["attacks"] = [
                attacked_accuracy(
                    model, test_set, attack, epsilon=options.epsilon, steps=5, images=images, gated=gated
                )
                for attack, images in (("fgsm", options.attacked), ("pgd", options.attacked // 4))
                for gated in (True, False)
            ]  # fmt: skip
            row["cpu_seconds"] = round(time.process_time() - began, 1)
            document["rows"].append(row)
            options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
