"""torchvision's DenseNet-121 keys, written out from their pattern, load into the baseline and into both branches."""

import pytest
import torch

import dsn_models
from dsn_models import UserError, load_torchvision_densenet121


def torchvision_state_dict(old_style=False, classes=1000):
    generator = torch.Generator().manual_seed(0)
    state = {}

    def norm(key, channels):
        for field in ("weight", "bias", "running_mean", "running_var"):
            state[f"{key}.{field}"] = torch.rand(channels, generator=generator)
        if not old_style:
            state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    def conv(key, *shape):
        state[f"{key}.weight"] = torch.rand(shape, generator=generator)

    dot = "." if old_style else ""
    conv("features.conv0", 64, 3, 7, 7)
    norm("features.norm0", 64)
    channels = 64
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            key = f"features.denseblock{block}.denselayer{layer}"
            norm(f"{key}.norm{dot}1", channels)
            conv(f"{key}.conv{dot}1", 128, channels, 1, 1)
            norm(f"{key}.norm{dot}2", 128)
            conv(f"{key}.conv{dot}2", 32, 128, 3, 3)
            channels += 32
        if block < 4:
            norm(f"features.transition{block}.norm", channels)
            conv(f"features.transition{block}.conv", channels // 2, channels, 1, 1)
            channels //= 2
    norm("features.norm5", channels)
    conv("classifier", classes, channels)
    state["classifier.bias"] = torch.rand(classes, generator=generator)
    return state


@pytest.mark.parametrize("old_style", [False, True])
def test_into_the_baseline(old_style):
    model = dsn_models.create("densenet-121")
    state = torchvision_state_dict(old_style)
    assert load_torchvision_densenet121(model, state) == []
    own = model.state_dict()
    assert sum(1 for key in own if "num_batches" not in key) == sum(1 for key in state if "num_batches" not in key)
    dot = "." if old_style else ""
    for theirs, ours in [
        ("features.conv0.weight", "stem.conv.weight"),
        (f"features.denseblock3.denselayer24.conv{dot}2.weight", "blocks.2.layers.23.conv2.weight"),
        ("features.transition2.norm.running_var", "transitions.1.norm.running_var"),
        ("features.norm5.bias", "head.norm.bias"),
        ("classifier.bias", "head.classifier.bias"),
    ]:
        assert torch.equal(own[ours], state[theirs])


def test_into_both_branches_the_guide_left_as_it_was():
    model = dsn_models.create("dsn-121")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torchvision_state_dict()
    notes = load_torchvision_densenet121(model, state)
    own = model.state_dict()
    key = "transitions.2.conv.weight"
    assert torch.equal(own[f"coarse.{key}"], state["features.transition3.conv.weight"])
    assert torch.equal(own[f"fine.{key}"][:, :1024], state["features.transition3.conv.weight"])
    assert torch.equal(own[f"fine.{key}"][:, 1024:], before[f"fine.{key}"][:, 1024:])
    assert torch.equal(own["fine.head.classifier.weight"], before["fine.head.classifier.weight"])
    assert "coarse.head.classifier.weight: left at its initial values, 1000 classes given, the model has 39" in notes
    assert f"fine.{key}: inputs 1024 to 2047 (guide) left at their initial values" in notes
    assert len(notes) == 4 + 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features.norm5.bias": None}, "key for coarse.head.norm.bias is missing"),
        ({"layer1.0.weight": torch.ones(1)}, "unexpected key 'layer1.0.weight'"),
        ({"features.denseblock5.denselayer1.norm1.weight": torch.ones(1)}, "unexpected key 'features.denseblock5"),
        (
            {"features.norm5.bias": torch.ones(3)},
            r"tensor for coarse.head.norm.bias has shape \[3\]; expected \[1024\]",
        ),
    ],
)
def test_refusals_change_nothing(change, said):
    model = dsn_models.create("dsn-121")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v for k, v in {**torchvision_state_dict(), **change}.items() if v is not None}
    with pytest.raises(UserError, match=said):
        load_torchvision_densenet121(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_wrong_model():
    with pytest.raises(UserError, match="model is a LeNet"):
        load_torchvision_densenet121(dsn_models.create("lenet"), {})
