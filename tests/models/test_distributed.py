"""Several processes train as one: batch norms, losses on the whole batch, whole runs."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import dsn_models
from dsn_models import distributed
from dsn_models.gradually_updated import GradualLayer
from dsn_models.training import load_recipe, train

WORLD = 2
RECIPES = {
    "dsn": """
name = "dsn"
model = "dsn-navon"
[options]
image_size = 16
block_layers = [1, 1, 1]
[train]
epochs = 3
ungated_epochs = 1
settled_epochs = 1
batch = 8
lr = 0.05
[gates]
slope_step = 2.0
sparsity = 1.0
target = [0.5, 0.5]
""",
    "gunn": """
name = "gunn"
model = "gunn-15"
task = "fine"
[options]
image_size = 16
in_channels = 1
widths = [6, 8]
segments = [3, [1, 7]]
[train]
iterations = 6
batch = 8
schedule = "step"
milestones = [4]
""",
}
DATA = """
[data]
kind = "navon-sklearn"
train_images = 32
test_images = 20
[data.options]
canvas = 16
glyph = 4
"""


def make_parts():
    """A small network of what processes share, float64, and eight images with weights for a loss on the whole batch."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), GradualLayer((1, 2), 1, 1, True, "gradual", True),
        torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.BatchNorm1d(4),
    ).double()  # fmt: skip
    return network, torch.randn(8, 2, 4, 4, dtype=torch.float64), torch.rand(8, 4, dtype=torch.float64)


def loss_of(network, images, weights):
    """A mean over images, and the square of a mean over the whole batch."""
    scores = network(distributed.own_rows(images)).sigmoid()
    own = (scores * distributed.own_rows(weights)).mean()
    return own + 3 * distributed.gather_rows(scores)[:, 1].mean() ** 2


def work(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    network, images, weights = make_parts()
    network = distributed.share_batch_norms(network)
    parallel = torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    loss_of(parallel, images, weights).backward()
    found = {"gradients": [p.grad for p in network.parameters()], "state": network.state_dict()}
    found["mean"] = distributed.average({"rank": float(rank)})["rank"]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_and_statistics_of_two_processes_are_those_of_one(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), WORLD)
    network, images, weights = make_parts()
    loss_of(network, images, weights).backward()
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["mean"] == 0.5
        for ours, single in zip(found["gradients"], network.parameters(), strict=True):
            torch.testing.assert_close(ours, single.grad)
        for name, single in network.state_dict().items():
            torch.testing.assert_close(found["state"][name], single)


def launch(recipe, out, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}", "-m",
               "dsn_kernels", "train", str(recipe), "--out", str(out), "--threads", "1", *options]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_in_two_processes_ends_at_the_weights_of_one(name, tmp_path):
    recipe = tmp_path / f"{name}.toml"
    recipe.write_text(RECIPES[name] + DATA)
    done = launch(recipe, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test images") == 1  # one process reports
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]
    facts = dsn_models.checkpoints.read_metadata(tmp_path / "two" / f"{name}.safetensors")
    assert facts["processes"] == WORLD
    two = dsn_models.load(tmp_path / "two" / f"{name}.safetensors").state_dict()
    one = dsn_models.load(train(recipe, None, tmp_path / "one", progress=False)).state_dict()
    chosen = load_recipe(recipe)
    torch.manual_seed(chosen.seed)
    start = dsn_models.create(chosen.model, **chosen.options).state_dict()
    apart, moved = (torch.cat([(a[k] - b[k]).flatten() for k in one]).norm() for a, b in ((one, two), (one, start)))
    assert apart < 1e-3 * moved  # float32 rounds sums in another order, and training makes more of it


def test_a_batch_that_cannot_be_shared_is_refused_once(tmp_path):
    recipe = tmp_path / "dsn.toml"
    recipe.write_text((RECIPES["dsn"] + DATA).replace("batch = 8", "batch = 7"))
    done = launch(recipe, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("2 processes cannot share a batch of 7 evenly; set train.batch to a multiple") == 1
