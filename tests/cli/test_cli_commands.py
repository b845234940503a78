"""Each command on its main job."""

import json
import signal
import threading

import pytest
import torch
from PIL import Image

import dsn_kernels
import dsn_models


@pytest.mark.long
def test_demo_as_a_new_user(dsn, checkpoint, tmp_path):
    status, out, err = dsn("demo", "--checkpoint", checkpoint, "--images", 64, "--seconds", 0, "--threads", 1)
    assert status == 0, err
    told = ("accuracy", "layers skipped", "dense", "executed", "batch", "same gates as PyTorch", "another image's")
    assert out.startswith("Its own gates save, beside the same kernels with all gates open: time ")
    assert out.splitlines()[1].startswith("Kernels, all gates open, beside ")
    for text in (*told, "dsn-demo.html"):
        assert text in out
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["dsn-demo.html"]
    assert (tmp_path / "dsn-demo.html").read_text().startswith("<!doctype html>")


@pytest.mark.long
def test_demo_json(dsn, checkpoint, tmp_path):
    arguments = ("--checkpoint", checkpoint, "--images", 64, "--seconds", 0, "--report", "other.html")
    status, out, _ = dsn("demo", *arguments, "--json", "-")
    document = json.loads(out)
    assert status == 0 and document["images"] == 64 and document["report"] == "other.html"
    assert [row["batch"] for row in document["latency"]] == [1, 8, 64]
    assert (tmp_path / "other.html").exists()


@pytest.mark.long
def test_train_then_eval(dsn, recipe, tmp_path):
    status, out, _ = dsn("train", recipe, "--out", "run", "--json", "-", "--threads", 1)
    facts = json.loads(out)
    assert status == 0 and facts["checkpoint"] == "run/tiny.safetensors" and facts["test"]["images"] == 50
    results = {}
    for backend in ("reference", "cpu"):
        file = tmp_path / f"{backend}.json"
        status, out, _ = dsn("eval", "run/tiny.safetensors", "--backend", backend, "--json", file)
        assert status == 0 and out == ""
        results[backend] = json.loads(file.read_text())
    for branch in ("coarse", "fine"):
        assert results["cpu"][branch] == results["reference"][branch] == facts["test"][branch]
    status, out, _ = dsn("eval", "run/tiny.safetensors")
    assert status == 0 and "layers skipped" in out and "50 test images" in out


@pytest.mark.long
def test_eval_of_a_baseline(dsn):
    dsn_models.save(dsn_models.create("lenet", image_size=64), "lenet.safetensors")
    status, out, _ = dsn("eval", "lenet.safetensors", "--kind", "navon-sklearn", "--images", 20, "--task", "fine")
    assert status == 0 and "accuracy" in out and not {"fine", "coarse"} & set(out.split()) and "backend cpu" in out


def test_eval_on_a_folder_of_images(dsn, tmp_path):
    for fine, colour in (("plane", "blue"), ("cat", "red")):
        (tmp_path / "data" / "test" / fine).mkdir(parents=True)
        Image.new("RGB", (9, 12), colour).save(tmp_path / "data" / "test" / fine / "1.png")
    (tmp_path / "data" / "coarse.json").write_text('{"plane": "vehicle", "cat": "animal"}')
    options = {"block_layers": (1, 1), "image_size": 16, "in_channels": 3}
    dsn_models.save(dsn_models.create("dsn-navon", classes=(2, 2), **options), "net.safetensors")
    status, out, _ = dsn("eval", "net.safetensors", "--kind", "folder", "--data", "data", "--json", "-")
    assert status == 0 and json.loads(out)["images"] == 2
    dsn_models.save(dsn_models.create("dsn-navon", classes=(2, 3), **options), "other.safetensors")
    status, _, err = dsn("eval", "other.safetensors", "--kind", "folder", "--data", "data")
    assert status == 2 and "the model has 3 fine classes, the data 2" in err


@pytest.mark.long
def test_train_takes_overrides_and_resumes(dsn, recipe):
    status, out, _ = dsn("train", recipe, "--epochs", 1, "--seed", 7)
    assert status == 0 and "runs/tiny/tiny.safetensors" in out
    status, _, err = dsn("train", recipe, "--seed", 7)  # another recipe than the one that was begun
    assert status == 2 and err.count("\n") == 1 and "--no-resume" not in err
    status, out, _ = dsn("train", recipe, "--no-resume", "--json", "-")
    assert status == 0 and json.loads(out)["recipe"]["train"]["epochs"] == 2


@pytest.mark.long
@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_ctrl_c_in_training(start_dsn, recipe, tmp_path, inherited):
    arguments = ("train", recipe, "--epochs", 100_000, "--out", "run", "--threads", 1)
    process = start_dsn(*arguments, interrupt=inherited)
    lines = []
    first_epoch = threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if "epoch" in line:
                first_epoch.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert first_epoch.wait(120), lines
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    reader.join()
    assert lines[-1] == "dsn: interrupted\n" and "Traceback" not in "".join(lines)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"tiny.state", "tensorboard"}  # nothing half-written beside them


@pytest.mark.long
def test_bench(dsn, checkpoint, tmp_path):
    gates = "open,shut,random:0.5,paper,trained"
    options = ("--batch", "1,2", "--against", "eager,channels_last", "--seconds", 0, "--threads", 1)
    status, out, err = dsn("bench", checkpoint, "--gates", gates, *options, "--json", "bench.json")
    assert status == 0 and out == ""
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["model"] == str(checkpoint) and document["threads"] == 1 and document["missing"] == {}
    assert [row["gates"] for row in document["rows"]] == gates.split(",") * 2
    assert "batch 2, gates paper" in err
    status, out, err = dsn("bench", checkpoint, *options)
    assert status == 0 and "channels_last" in out and "speed-up" in out and "trained" in out
    first, second = out.splitlines()[:2]
    assert first.startswith("Its trained gates save, beside the same kernels with all gates open: time ")
    assert " test images coarse accuracy " in first and " with all gates open)" in first
    assert second.startswith("Kernels, all gates open, beside the fastest of eager, channels_last: ")


@pytest.mark.long
def test_bench_by_name_and_without_data(dsn, bare_checkpoint):
    options = ("--batch", "1", "--against", "", "--seconds", 0, "--json", "-")
    status, out, _ = dsn("bench", "dsn-navon", "--gates", "shut", *options)
    (row,) = json.loads(out)["rows"]
    assert status == 0 and row["best_baseline"] is None
    status, out, err = dsn("bench", bare_checkpoint, *options)
    document = json.loads(out)
    assert status == 0 and [row["gates"] for row in document["rows"]] == ["open", "trained"]
    assert "note: no --data, so images are noise" in err and len(document["headlines"]) == 1


@pytest.mark.long
def test_bench_of_other_families(dsn):
    fast = ("--batch", "1", "--against", "eager", "--seconds", 0, "--json", "-")
    sizes = ("--option", "widths=24,30,36", "--option", "segments=4,5,6")
    status, out, _ = dsn("bench", "gunn-15", *sizes, *fast, "--baseline-model", "sunn-15")
    document = json.loads(out)
    assert status == 0 and document["options"] == {"widths": [24, 30, 36], "segments": [4, 5, 6]}
    assert document["baseline_model"] == "sunn-15" and [row["gates"] for row in document["rows"]] == ["open"]
    status, out, _ = dsn("bench", "skipnet-38-rnn", "--option", "stage_units=1,2,1", *fast)
    assert status == 0 and [row["gates"] for row in json.loads(out)["rows"]] == ["open", "random:0.5"]


@pytest.mark.long
def test_bench_names_what_is_missing(dsn, checkpoint, monkeypatch):
    from dsn_kernels.measure import baselines

    def absent(dense, images):
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setitem(baselines.BASELINES, "openvino", absent)
    options = ("--batch", "1", "--gates", "open", "--seconds", 0)
    status, out, err = dsn("bench", checkpoint, *options, "--against", "openvino,eager", "--json", "-")
    assert status == 0 and "missing: openvino" in err
    assert json.loads(out)["missing"] == {"openvino": "batch 1: not installed: pip install openvino"}


@pytest.mark.long
def test_interrupted_bench_writes_what_it_has(dsn, checkpoint, tmp_path, monkeypatch):
    from dsn_kernels.measure import bench

    original = bench._bench_batch

    def second_is_interrupted(*arguments):
        if arguments[3] == 2:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(bench, "_bench_batch", second_is_interrupted)
    options = ("--batch", "1,2", "--gates", "open", "--against", "", "--seconds", 0)
    status, _, err = dsn("bench", checkpoint, *options, "--json", "b.json")
    document = json.loads((tmp_path / "b.json").read_text())
    assert status == 130 and err.endswith("dsn: interrupted\n")
    assert document["interrupted"] and [row["batch"] for row in document["rows"]] == [1]


@pytest.mark.skipif(not dsn_kernels._C.build_info()["bfloat16"], reason="bfloat16 on the CPU needs AVX-512")
def test_bench_in_bfloat16(dsn, checkpoint, tmp_path):
    options = ("--batch", "1", "--gates", "open", "--against", "", "--seconds", 0, "--json", "b.json")
    status, _, _ = dsn("bench", checkpoint, "--dtype", "bfloat16", *options)
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert status == 0 and [row["dtype"] for row in rows] == ["bfloat16"]
    status, _, err = dsn("bench", checkpoint, "--dtype", "float16", *options)
    assert status == 2 and "dtype is torch.float16; the CPU kernels serve torch.float32, torch.bfloat16" in err


def test_info(dsn):
    status, out, _ = dsn("info", "--json", "-")
    facts = json.loads(out)
    assert status == 0
    assert facts["backends"]["cpu"] == "runs" and facts["backends"]["reference"] == "runs"
    assert facts["devices"][0] == "cpu" and facts["build"]["isa"] and facts["threads"] == torch.get_num_threads()
    assert facts["models"] == dsn_models.names()
    assert [*facts["grouping"]] == ["fetch, s/byte", "pack, s/byte", "reload, s/byte"]
    status, out, _ = dsn("info")
    assert status == 0 and "build.isa" in out and "backends.cpu" in out and "grouping.pack, s/byte" in out


@pytest.mark.parametrize("command", ["demo", "train", "eval", "bench", "info"])
def test_help(dsn, command):
    status, out, _ = dsn(command, "--help")
    assert status == 0 and "--json" in out
