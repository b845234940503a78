"""Commands as a new user runs them: from an empty folder."""

import signal
import subprocess
import sys

import pytest
import torch
from corpus import RECIPE, make_corpus

import dsn_models
from dsn_kernels import cli
from dsn_models.training.recipe import load_recipe


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def dsn(capsys, monkeypatch):
    """``dsn(*arguments)`` runs the command in this process and returns its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dsn", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return run


@pytest.fixture
def start_dsn():
    """``start_dsn(*arguments)`` starts ``python -m dsn_kernels`` as a process of its own.

    Ctrl-C ends it, or is ignored when it starts, whatever the process that runs the tests inherited.
    """
    processes = []

    def start(*arguments, interrupt=signal.SIG_DFL):
        command = [sys.executable, "-m", "dsn_kernels", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with a sound file of each kind, small ones; to be copied."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A dual network of two small blocks with random weights, that says it was trained by RECIPE."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.toml").write_text(RECIPE)
    recipe = load_recipe(folder / "tiny.toml")
    model = dsn_models.create(recipe.model, **recipe.options)
    return dsn_models.save(model, folder / "tiny.safetensors", recipe=recipe.model_dump(mode="json"))


@pytest.fixture(scope="session")
def bare_checkpoint(checkpoint):
    """The same network, without a word on its training."""
    return dsn_models.save(dsn_models.load(checkpoint), checkpoint.with_name("bare.safetensors"))
