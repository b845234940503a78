"""Networks that others define: torchvision's, timm's and pytorchcv's."""

import pytest
import torch

# torchvision's wheel declares these two in its compiled part, which does not load beside every build of torch.
_DECLARED = torch.library.Library("torchvision", "FRAGMENT")


def declare_operators():
    """Lets torchvision be imported beside any build of torch."""
    for name, schema in (
        ("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ):
        if not hasattr(torch.ops.torchvision, name):
            _DECLARED.define(schema)


def make_foreign(library, name, **options):
    """A network by its library's name for it, in ``eval()``, with random weights; skips the test if it cannot."""
    declare_operators()
    torch.manual_seed(0)
    if library == "torchvision":
        models = pytest.importorskip("torchvision.models", exc_type=ImportError)
        model = models.get_model(name, weights=None, **options)
    elif library == "timm":
        model = pytest.importorskip("timm", exc_type=ImportError).create_model(name, **options)
    else:
        provider = pytest.importorskip("pytorchcv.model_provider", exc_type=ImportError)
        model = provider.get_model(name, **options)
    return model.eval()
