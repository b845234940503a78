"""What wraps a network in the names of its tensors, and what may be missing among them."""

from __future__ import annotations

COUNTER = "num_batches_tracked"  # batch norms of old PyTorch versions have none
_WRAPPERS = {"module", "_orig_mod"}  # of DataParallel and of torch.compile, around any part of a network
_OWNERS = {"model", "backbone", "net", "network"}  # a network as part of another, before all of a key


def bare(key: str) -> str:
    """The name of a tensor without what wraps its network: ``"module.model.fc.weight"`` to ``"fc.weight"``."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _OWNERS:
        parts = parts[1:]
    return ".".join(parts)
