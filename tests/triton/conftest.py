"""Where the Triton kernels run in a test: on a GPU, else in Triton's interpreter; skipped where there is no Triton."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch


def _why_not():
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from dsn_kernels.triton.support import INTERPRETED, device_type

    if device_type() is None:
        return "no GPU, and triton was imported without TRITON_INTERPRET=1"
    return "" if INTERPRETED else None


@pytest.fixture(scope="session")
def _quick_interpreter():
    """The interpreter puts its functions into triton.language anew for each call of a kernel or a function in it, which
    takes most of its time; once is enough."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = pytest.MonkeyPatch()
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    patch.setattr(interpreter, "_patch_lang", lambda function: SimpleNamespace(restore=lambda: None))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def place(request):
    """The backend's name and its device."""
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    if reason == "":
        request.getfixturevalue("_quick_interpreter")
    return SimpleNamespace(backend="triton", device="cpu" if reason == "" else "cuda")


@pytest.fixture(autouse=True)
def _poisoned():
    """What torch allocates and a kernel leaves out is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
