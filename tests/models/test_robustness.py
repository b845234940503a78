"""Attacks: by hand, within their bounds, with skipping on and off."""

from importlib.util import find_spec

import pytest
import torch

from dsn_models import UserError
from dsn_models.data import navon
from dsn_models.training import robustness
from dsn_models.training.robustness import attacked_accuracy
from tests.networks import make_small

# Not importorskip: the toolbox takes seconds to import, which those who only collect the tests would wait for.
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("art") is None, reason="adversarial-robustness-toolbox is not installed"),
]


def make_data(images=12):
    return navon.from_sklearn(False, images, canvas=16, glyph=4)


@pytest.fixture
def seen(monkeypatch):
    """Every batch of images that was measured, in the order: clean, attacked, for each task."""
    batches, measure = [], robustness._measure

    def record(view, pixels, *rest):
        batches.append(torch.as_tensor(pixels).clone())
        return measure(view, pixels, *rest)

    monkeypatch.setattr(robustness, "_measure", record)
    return batches


@pytest.mark.parametrize("gated", [True, False])
def test_fgsm_by_hand(seen, gated):
    model, dataset = make_small("lsn-navon"), make_data()
    result = attacked_accuracy(model, dataset, "fgsm", epsilon=0.1, gated=gated)
    images, coarse, _ = dataset.batch(torch.arange(12))
    source = images.clone().requires_grad_()
    forced = None if gated else robustness.all_open(model, 12)
    torch.nn.functional.cross_entropy(model(source, forced_gates=forced)[0], coarse).backward()
    expected = (images + 0.1 * source.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(seen[0], images)
    torch.testing.assert_close(seen[1], expected)
    with torch.no_grad():
        logits = model(expected, forced_gates=forced)[0]
    assert result["coarse"]["accuracy"] == pytest.approx((logits.argmax(1) == coarse).float().mean().item())
    assert result["coarse"]["skipped"] == pytest.approx(1 - model.last_gates["coarse"].float().mean().item())
    assert gated or result["fine"]["skipped"] == 0


def test_pgd_stays_in_its_ball_and_raises_the_loss(seen):
    model, dataset = make_small("dsn-navon"), make_data()
    first = attacked_accuracy(model, dataset, "pgd", epsilon=0.05, steps=4, batch=5)
    clean, changed = seen[2], seen[3]
    assert (changed - clean).abs().max() <= 0.05 + 1e-6 and changed.min() >= 0 and changed.max() <= 1
    _, _, fine = dataset.batch(torch.arange(12))
    with torch.no_grad():
        losses = [torch.nn.functional.cross_entropy(model(images)[1], fine) for images in (clean, changed)]
    assert losses[1] > losses[0]
    assert first == attacked_accuracy(model, dataset, "pgd", epsilon=0.05, steps=4, batch=5)


def test_normalised_data_is_attacked_in_pixels(seen):
    model, dataset = make_small("lenet"), navon.from_sklearn(False, 12, canvas=16, glyph=4, mean=[0.5], std=[0.25])
    result = attacked_accuracy(model, dataset, "fgsm", epsilon=0.2, task="fine", images=5)
    torch.testing.assert_close(seen[0], make_data().batch(torch.arange(5))[0])
    assert set(result) == {"attack", "epsilon", "images", "gated", "fine"} and result["images"] == 5
    assert "skipped" not in result["fine"]


@pytest.mark.parametrize(
    ("attack", "options", "said"),
    [
        ("cw", {"epsilon": 0.1}, "attack is 'cw'; expected one of fgsm, pgd"),
        ("pgd", {"epsilon": 0.0}, "expected 0 < epsilon <= 1"),
        ("pgd", {"epsilon": 0.1, "steps": 0}, "the others >= 1"),
    ],
)
def test_mistakes(attack, options, said):
    with pytest.raises(UserError, match=said):
        attacked_accuracy(make_small("dsn-navon"), make_data(), attack, **options)
