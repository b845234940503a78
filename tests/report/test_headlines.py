"""What comes first: what gates save, and what the kernels gain, each by itself and named."""

from dsn_kernels.report.headlines import Accuracy, Timing, gates_line, kernels_line, started_from

ROWS = [Timing(1, 0.312, True, "openvino", 1.296, True), Timing(8, 0.01, False, "eager", 0.98, False)]


def test_gates_and_kernels_have_a_line_each():
    accuracy = Accuracy({"fine": 0.812}, {"fine": 0.82}, {"fine": 0.818}, 1000)
    assert gates_line(ROWS, 0.331, accuracy) == (
        "Its own gates save, beside the same kernels with all gates open: time 31.2 % at batch 1, 1.0 % at batch 8 "
        "(within noise); MACs 33.1 %. On 1,000 test images accuracy 81.2 % (82.0 % with all gates open, 81.8 % of "
        "the network it began with)."
    )
    assert kernels_line(ROWS, ["eager", "openvino"]) == (
        "Kernels, all gates open, beside the fastest of eager, openvino: 1.30x the speed of openvino at batch 1, 0.98x "
        "the speed of eager at batch 8 (within noise)."
    )
    assert "beside the only dense runtime timed: " in kernels_line(ROWS, ["eager"])


def test_what_is_not_known_is_left_out():
    assert gates_line([], 0.5, None, "random:0.5") == (
        "Its random:0.5 gates save, beside the same kernels with all gates open: MACs 50.0 %."
    )
    assert kernels_line([ROWS[0]._replace(best=None)], []) == ""
    two = Accuracy({"coarse": 0.9, "fine": 0.8}, {"coarse": 0.9, "fine": 0.8}, {}, 64)
    assert gates_line([], 0.0, two).endswith(
        "On 64 test images coarse accuracy 90.0 % (90.0 % with all gates open), "
        "fine accuracy 80.0 % (80.0 % with all gates open)."
    )


def test_a_checkpoint_tells_what_it_began_with():
    gated = {"test": {"fine": {"accuracy": 0.8}, "given": {"fine": {"accuracy": 0.9}}}}
    trained = {"test": {"fine": {"accuracy": 0.8}}, "start": {"checkpoint": "x", "test": {"fine": {"accuracy": 0.7}}}}
    assert started_from(gated) == {"fine": 0.9} and started_from(trained) == {"fine": 0.7}
    for silent in ({}, {"test": None}, {"start": {"test": None}}, {"test": {"images": 3}}):
        assert started_from(silent) == {}
