"""Networks that others define, captured and run by the kernels: values against float64, and what share of the
multiply-accumulates the kernels do."""

import copy

import pytest
import torch

import dsn_kernels
from dsn_models.errors import UserError
from tests.capture.capture_checks import make_images, settle
from tests.checks import assert_as_exact_as_torch
from tests.interop import make_foreign

ANY = (0, 1, 3, 17)
# Library, name, side of the images, the share of the multiply-accumulates in kernels, and batches. VGG-16 enlarges the
# last map of smaller images, DiaResNet does not run on none.
NETWORKS = [
    *(
        ("torchvision", name, 64, 1.0, ANY)
        for name in (
            *("resnet18", "resnet50", "resnext50_32x4d", "regnet_x_400mf", "regnet_y_400mf", "densenet121"),
            *("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "mnasnet1_0", "squeezenet1_1"),
        )
    ),
    ("torchvision", "vgg16", 224, 1.0, (0, 1)),
    ("torchvision", "googlenet", 64, 1.0, ANY),
    ("torchvision", "convnext_tiny", 64, 0.066, ANY),
    *(
        ("timm", name, 64, 1.0, ANY)
        for name in ("resnet26d", "seresnet50", "skresnet18", "dla34", "hrnet_w18_small", "ghostnet_100", "repvgg_a0")
    ),
    ("timm", "legacy_xception", 96, 1.0, ANY),
    ("pytorchcv", "wrn16_10_cifar10", 32, 1.0, ANY),
    ("pytorchcv", "diaresnet20_cifar10", 32, 0.9998, (1, 3, 17)),
]
# Its other heads are for training alone.
_OPTIONS = {"googlenet": {"aux_logits": False, "init_weights": False}}


def make(library, name):
    return settle(make_foreign(library, name, **_OPTIONS.get(name, {})).requires_grad_(False))


@torch.no_grad()
def check(model, fast, size, batches):
    exact = copy.deepcopy(model).double()
    images = make_images(max(batches), size)
    expected, same = exact(images.double()), model(images)
    for batch in batches:
        given = fast(images[:batch])
        assert given.shape == (batch, *expected.shape[1:]) and given.dtype == torch.float32
        if batch:
            assert_as_exact_as_torch(given, same[:batch], expected[:batch])


@pytest.mark.long
@pytest.mark.parametrize(("library", "name", "side", "share", "batches"), NETWORKS, ids=str)
def test_networks_that_others_define(library, name, side, share, batches):
    model = make(library, name)
    example = make_images(1, (side, side))
    if share < 1:
        with pytest.raises(UserError, match="strict: .* % of the multiply-accumulates in kernels; torch would compute"):
            dsn_kernels.accelerate(model, example=example, backend="cpu", strict=True)
    fast = dsn_kernels.accelerate(model, example=example, backend="cpu", strict=share == 1, verify=False)
    assert fast.kernel_share == pytest.approx(share, rel=0.02)
    told = fast.summary()
    assert ("torch:" in told) == (share < 1) and "plan on cpu" in told
    check(model, fast, (side, side), batches)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "densenet121"])
def test_at_imagenets_size(name):
    model = make("torchvision", name)
    fast = dsn_kernels.accelerate(model, example=make_images(1, (224, 224)), backend="cpu", strict=True)
    check(model, fast, (224, 224), (1, 3))


@pytest.mark.long
def test_a_published_network_under_another_definition():
    """Its weights are of the data set that the project is measured on, its definition is pytorchcv's."""
    from benchmarks.gate_resnet56 import converted
    from dsn_models.data import open_dataset
    from tests.test_changed_models import DATA

    make_foreign("pytorchcv", "resnet56_cifar10")  # skips where there is none
    weights = DATA / "resnet56-cifar10.th"
    if not weights.exists():
        pytest.skip("the published weights are not at hand: resnet56-cifar10.th")
    train_set = open_dataset("cifar-10-jpeg", DATA, True)
    model = converted(weights, train_set).eval().requires_grad_(False)
    images = train_set.batch(torch.arange(17) * 1000)[0]
    fast = dsn_kernels.accelerate(model, example=images, backend="cpu", strict=True, verify=False)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        assert_as_exact_as_torch(fast(images), model(images), exact)
