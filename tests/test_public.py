"""How accelerated networks show themselves, and what they take for gates and images."""

import json

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_models import UserError

TYPES = (torch.uint8, torch.bool, torch.int32, torch.int64, torch.float32, torch.float64)


def make(captured):
    torch.manual_seed(0)
    if not captured:
        model = dsn_models.create("skipnet-38-rnn", stage_units=(1, 2, 1)).eval()
        return model, dsn_kernels.accelerate(model)
    images = torch.rand(2, 3, 32, 32)
    model, _ = dsn_models.gate(dsn_models.create("resnet-20", stage_units=(2, 2, 2)).eval(), images)
    return model, dsn_kernels.accelerate(model, example=images)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_forced_gates_of_any_type(captured, dtype):
    model, fast = make(captured)
    gates = {name: torch.randint(0, 2, (3, count)) for name, count in fast.layers.items()}
    given = {name: some.to(dtype) for name, some in gates.items()}
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fast(images, forced_gates=given), model(images, forced_gates=given))
    for name, some in gates.items():
        assert torch.equal(fast.last_gates[name], some.byte()) and torch.equal(model.last_gates[name], some.byte())


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, float("nan")])
def test_a_gate_that_is_neither_is_refused(captured, value):
    for network in make(captured):
        counts = getattr(network, "layers", None) or network.gate_counts
        gates = {name: torch.full((1, count), value) for name, count in counts.items()}
        with pytest.raises(UserError, match=f"holds {value:g}; expected only 0 and 1"):
            network(torch.rand(1, 3, 32, 32), forced_gates=gates)


@pytest.mark.parametrize("captured", [False, True])
def test_an_image_without_a_batch_is_told(captured):
    _, fast = make(captured)
    with pytest.raises(UserError, match=r"\[3, 32, 32\].*: add a batch dimension, images\[None\]"):
        fast(torch.rand(3, 32, 32))


def test_repr_tells_backend_type_gates_and_macs():
    _, fast = make(captured=False)
    fast(torch.rand(1, 3, 32, 32), forced_gates={"units": torch.ones(1, fast.layers["units"])})
    macs = f"{int(fast.last_macs) / 1e6:,.2f} M MACs"
    assert repr(fast) == f"<skipnet-38-rnn, accelerated: cpu, float32, gates: 3 units, {macs} with all open>"
    _, captured = make(captured=True)
    assert repr(captured).startswith("<network of [B, 3, 32, 32], accelerated: cpu, float32, gates: ")


def test_a_timeline_shows_and_saves_itself(tmp_path):
    _, fast = make(captured=False)
    found = dsn_kernels.timeline(fast, torch.rand(2, 3, 32, 32), runs=1)
    table = found.table(top=2).splitlines()
    assert len(table) == 4 and table[0].startswith("step") and "others" in table[-1]
    assert len({len(line) for line in table}) == 1 and repr(found).splitlines()[0].startswith("batch 2, ")
    assert found._repr_html_().count("<tr>") == 1 + len(found.table().splitlines()) - 1
    assert json.loads(found.save(tmp_path / "t.json").read_text())["traceEvents"]
    assert found.save(tmp_path / "t.svg").read_text().startswith("<?xml")
    with pytest.raises(UserError, match="ends in '.gif'; expected .json"):
        found.save(tmp_path / "t.gif")
