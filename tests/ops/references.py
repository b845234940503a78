"""Reference modules with statistics worth folding, and the error rule every kernel is held to."""

import torch

from dsn_models.densenet import DenseLayer, Head, Transition
from dsn_models.dual_skipping import SkipDenseBlock
from dsn_models.resnet import PreActivationUnit


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Batch norms that move their input, negative scales among them; gates that open about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
            m.weight.data.uniform_(-0.5, 1.5, generator=generator)
            m.bias.data.normal_(0, 0.3, generator=generator)
    for name, parameter in module.named_parameters():
        if "gates" in name and name.endswith("weight") and parameter.dim() > 1:
            parameter.data.normal_(0, 4 / parameter.shape[1] ** 0.5, generator=generator)
    return module.eval().requires_grad_(False)


def make_block(channels, layers, growth=12, bottleneck=True, merge="concat", gate="hard") -> SkipDenseBlock:
    torch.manual_seed(layers)
    step = growth if merge == "concat" else 0
    parts = [
        DenseLayer(channels + i * step, growth, bottleneck)
        if merge == "concat"
        else PreActivationUnit(channels, channels)
        for i in range(layers)
    ]
    return randomise(SkipDenseBlock(channels, parts, growth, merge, gate))


def make_transition(channels, out_channels) -> Transition:
    return randomise(Transition(channels, out_channels))


def make_head(channels, classes) -> Head:
    return randomise(Head(channels, classes))


def assert_as_exact_as_torch(actual, float32, float64):
    """Error against float64 at most twice that of float32 PyTorch, plus a few roundings of the largest value."""
    floor = 8 * torch.finfo(torch.float32).eps * float64.abs().max().clamp(min=1e-3)
    allowed = 2 * (float32.double() - float64).abs().max() + floor
    error = (actual.double() - float64).abs().max()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def assert_gates_agree(taken, scores, reference_scores, threshold):
    """Gates equal the float64 reference's wherever the score is not within rounding of the threshold."""
    torch.testing.assert_close(scores.double(), reference_scores, rtol=0, atol=2e-5)
    clear = (reference_scores - threshold).abs() > 2e-5
    assert torch.equal(taken.bool()[clear], (reference_scores > threshold)[clear])
