"""The rule that kernels are held to: what the reference model computes in float64, and how far one may be from it."""

import copy

import torch

ROUNDING = 2e-5  # of a score in float32, or of its size where that is beyond 1


def assert_as_exact_as_torch(actual, float32, float64):
    """Error against float64 at most twice that of float32 PyTorch, plus a few roundings of the largest value."""
    floor = 8 * torch.finfo(torch.float32).eps * float64.abs().max().clamp(min=1e-3)
    allowed = 2 * (float32.double() - float64).abs().max() + floor
    error = (actual.double() - float64).abs().max()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def assert_scores_agree(scores, reference_scores):
    scale = reference_scores.abs().max().clamp(min=1) if reference_scores.numel() else 1
    torch.testing.assert_close(scores.double(), reference_scores, rtol=0, atol=float(ROUNDING * scale))


def assert_gates_agree(taken, scores, reference_scores, threshold):
    """Gates equal the float64 reference's wherever the score is not within rounding of the threshold."""
    assert_scores_agree(scores, reference_scores)
    clear = (reference_scores - threshold).abs() > ROUNDING * reference_scores.abs().clamp(min=1)
    assert torch.equal(taken.bool()[clear], (reference_scores > threshold)[clear])


def same_dtype(module, x, dtype, **options):
    """What PyTorch gives in the kernels' precision, on the same input."""
    return copy.deepcopy(module).to(dtype)(x.to(dtype), **options)


@torch.no_grad()
def check_network(model, fast, x, dtype=torch.float32, forced=None, device="cpu"):
    """Outputs, gates, scores and MACs of an accelerated network, and returns its outputs.

    ``forced``: gates by branch, as ``fast`` takes them; without, its own are compared too, in float32.
    """
    moved = {} if forced is None else {"forced_gates": {name: gates.to(device) for name, gates in forced.items()}}
    actual = fast(x.to(device), **moved)
    gates = {name: taken.cpu() for name, taken in fast.last_gates.items()}
    for name in forced or {}:
        assert torch.equal(gates[name], forced[name])
    taken = {"forced_gates": gates} if gates else {}
    reference = copy.deepcopy(model).double()
    exact, same = reference(x.double(), **taken), same_dtype(model, x, dtype, **taken)
    for a, s, e in zip(*map(as_tuple, (actual, same, exact)), strict=True):
        assert a.dtype == torch.float32
        assert_as_exact_as_torch(a.cpu(), s, e)
    if dtype == torch.float32:
        limits = fast.thresholds.cpu().split(list(fast.layers.values()))
        for (name, scores), limit in zip(fast.last_scores.items(), limits, strict=True):
            if forced is None:
                assert_gates_agree(gates[name], scores.cpu(), reference.last_scores[name], limit)
            else:
                assert_scores_agree(scores.cpu(), reference.last_scores[name])
    assert torch.equal(fast.last_macs.cpu(), fast.macs(gates).expand(len(x))), "the kernels count what the formula says"
    return actual


def as_tuple(outputs):
    """A network's outputs, of one branch or of several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
