"""Several processes train as one: batch norms, losses on the whole batch, whole runs."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from small_recipes import DSN, GATERNET, GUNN, LSN, SKIPNET

import dsn_models
from dsn_models import distributed
from dsn_models.gradually_updated import GradualLayer
from dsn_models.training import load_recipe, train
from dsn_models.training.recipe import tomllib

WORLD = 2
RECIPES = {
    "dsn": DSN.replace("ungated_epochs = 1", "ungated_epochs = 1\nsettled_epochs = 1"),
    "lsn": LSN + "[lsn]\nranking = 1.0\n",
    "skipnet": SKIPNET + "[skipping]\npenalty = 1.0\ntarget = 0.5\n",
    "skipnet-hrl": SKIPNET.replace("[options]", "init = 'INIT'\n[options]") + "[skipping]\nstage = 'reinforce'\n",
    "gaternet": GATERNET,
    "gunn": GUNN,
}


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


@pytest.mark.long
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


def assert_same_training(recipe, two, one):
    """Weights of two processes differ from those of one by rounding, which training makes more of, and no more."""
    facts = dsn_models.checkpoints.read_metadata(two)
    assert facts["processes"] == WORLD
    chosen = load_recipe(recipe)
    torch.manual_seed(chosen.seed)
    start = dsn_models.create(chosen.model, **chosen.options)
    if chosen.init:
        start = dsn_models.load(chosen.init)
    start, two, one = start.state_dict(), dsn_models.load(two).state_dict(), dsn_models.load(one).state_dict()
    apart, moved = (torch.cat([(a[k] - b[k]).flatten() for k in one]).norm() for a, b in ((one, two), (one, start)))
    assert apart < 1e-3 * moved


@pytest.mark.slow
def test_torchrun_ends_at_the_weights_of_one_process(tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPES["dsn"])
    done = launch(recipe, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test images") == 1  # one process reports
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]
    one = train(recipe, None, tmp_path / "one", progress=False)
    assert_same_training(recipe, tmp_path / "two" / "tiny.safetensors", one)


def train_in_two(rank, folder, names):
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    for name in names:
        train(f"{folder}/{name}.toml", None, f"{folder}/two/{name}", progress=False)
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_family_ends_at_the_weights_of_one_process(tmp_path):
    torch.manual_seed(0)
    skipnet = dsn_models.create("skipnet-38-rnn", **tomllib.loads(SKIPNET)["options"])
    init = dsn_models.save(skipnet, tmp_path / "init.safetensors")
    names = [name for name in RECIPES if name != "dsn"]
    for name in names:
        (tmp_path / f"{name}.toml").write_text(RECIPES[name].replace("INIT", str(init)))
    torch.multiprocessing.spawn(train_in_two, (str(tmp_path), names), WORLD)
    for name in names:
        recipe = tmp_path / f"{name}.toml"
        one = train(recipe, None, tmp_path / "one" / name, progress=False)
        assert_same_training(recipe, tmp_path / "two" / name / "tiny.safetensors", one)


@pytest.mark.long
def test_a_batch_that_cannot_be_shared_is_refused_once(tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(DSN.replace("batch = 8", "batch = 7"))
    done = launch(recipe, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("2 processes cannot share a batch of 7 evenly; set train.batch to a multiple") == 1
