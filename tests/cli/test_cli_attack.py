"""``dsn eval --attack``: accuracy under attack, with skipping on and off."""

import json
from importlib.util import find_spec

import pytest

import dsn_models

# Not importorskip: the toolbox takes seconds to import, which those who only collect the tests would wait for.
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("art") is None, reason="adversarial-robustness-toolbox is not installed"),
]
DATA = ("--kind", "navon-sklearn", "--images", 6, "--threads", 1)


def test_a_gated_network_is_attacked_with_skipping_on_and_off(dsn, tmp_path):
    dsn_models.save(dsn_models.create("lsn-navon", block_layers=(1, 1)), tmp_path / "lsn.safetensors")
    options = ("--attack", "fgsm", "--epsilon", 0.1, "--attack-images", 4)
    status, out, err = dsn("eval", "lsn.safetensors", *DATA, *options, "--json", "-")
    assert status == 0, err
    document = json.loads(out)
    assert document["images"] == 6
    assert [attack["gated"] for attack in document["attacks"]] == [True, False]
    assert document["attacks"][1]["coarse"]["skipped"] == 0
    assert document["attacks"][0]["images"] == 4 and document["attacks"][0]["epsilon"] == 0.1
    status, out, _ = dsn("eval", "lsn.safetensors", *DATA, *options)
    assert status == 0 and "fgsm, epsilon 0.1, 4 test images" in out


def test_a_network_without_gates_is_attacked_once(dsn, tmp_path):
    dsn_models.save(dsn_models.create("lenet", image_size=64), tmp_path / "lenet.safetensors")
    arguments = ("--task", "fine", "--attack", "pgd", "--attack-steps", 2, "--json", "-")
    status, out, err = dsn("eval", "lenet.safetensors", *DATA, *arguments)
    assert status == 0, err
    assert [set(attack) >= {"fine"} for attack in json.loads(out)["attacks"]] == [True]


def test_an_unknown_attack_is_a_users_error(dsn, tmp_path):
    dsn_models.save(dsn_models.create("lenet", image_size=64), tmp_path / "lenet.safetensors")
    status, out, err = dsn("eval", "lenet.safetensors", *DATA, "--task", "fine", "--attack", "cw")
    assert (status, out) == (2, "") and "attack is 'cw'; expected one of fgsm, pgd" in err
