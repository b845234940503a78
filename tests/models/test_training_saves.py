"""Hours of training are not lost at its end: what could not be saved or loaded is refused before, or after an epoch."""

import dataclasses

import pytest
import torch
from small_recipes import GUNN

import dsn_models
from dsn_models import UserError
from dsn_models.checkpoints import read_metadata
from dsn_models.training import load_recipe, loop, train


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.toml").write_text(
        GUNN.replace("iterations = 6", "epochs = 3").replace("milestones = [4]", "milestones = [2]")
    )
    return load_recipe(tmp_path / "tiny.toml")


def test_a_network_that_could_not_be_loaded_is_refused_before_the_first_step(recipe, tmp_path, monkeypatch):
    def other(name, **options):
        model = dsn_models.create(name, **options)
        model.config = dataclasses.replace(model.config, in_channels=3)
        return model

    monkeypatch.setattr(loop.zoo, "create", other)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match="gunn-15: tensor .* has shape .*; expected"):
        train(recipe, None, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.long
def test_weights_that_break_keep_the_epoch_before(recipe, tmp_path, monkeypatch):
    step, taken = torch.optim.SGD.step, []

    def poisoned(self, *args):
        step(self, *args)
        taken.append(1)
        if len(taken) == 8:  # the last step of the second epoch, after which no gradient tells
            self.param_groups[0]["params"][0].data.fill_(torch.inf)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", poisoned)
        with pytest.raises(UserError, match="holds infinity; its training diverged"):
            train(recipe, None, tmp_path / "out", progress=False)
    path = train(recipe, None, tmp_path / "out", progress=False)  # goes on after the first epoch
    assert read_metadata(path)["images_seen"] == 3 * 32
    whole = dsn_models.load(train(recipe, None, tmp_path / "whole", progress=False)).state_dict()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in dsn_models.load(path).state_dict().items())
