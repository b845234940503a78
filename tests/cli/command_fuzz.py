"""Command lines drawn from the command tree itself, with hostile values and damaged files, and what must hold of each.

``python tests/cli/command_fuzz.py --minutes 60`` runs them for as long and prints what did not hold; what it found is
kept as cases in ``test_cli_hostile.py``. ``test_cli_fuzz.py`` runs a few, always the same.
"""

import argparse
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import webbrowser
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import hypothesis
import torch
import typer
from corpus import FILES, Damage, make_corpus, whole
from hypothesis import strategies as st

from dsn_kernels import cli
from dsn_models.data import KINDS
from dsn_models.lettering import printable
from dsn_models.training.recipe import recipe_names

COMMANDS = typer.main.get_command(cli.app).commands
# Nothing that leads out of the folder in which a command runs.
HOSTILE = (
    "", " ", "-", "--", "-1", "0", "1", "nan", "inf", "-inf", "1e308", "1e-320", "9" * 30, "0x10", "1,2", ",", "1,,2",
    "a=b", "=", "=1", "None", "true", "..", ".", "/dev/null", "/dev/full", "/dev/null/x", "/proc/self/mem", "absent",
    "absent/deep/file", "a\nb", "\x1b[31m", "[/red]", "[bold", ":smile:", "$x_1$", "%s", "{0}", "日本", "\u202ertl",
    "\udcff", "x" * 300, "x" * 5000, "~", "*", "--help", "😀", "٣",
)  # fmt: skip
SOUND = {
    "checkpoint": ("tiny.safetensors", "skipnet.safetensors", "folder.safetensors", "tiny.safetensors"),
    "source": ("released.pth", "skipnet.safetensors"),
    "images": ("4", "64"),
    "seed": ("0", "7"),
    "seconds": ("0",),
    "runs": ("1",),
    "model": ("tiny.safetensors", "skipnet.safetensors", "dsn-navon", "lenet", "resnet-20", "gunn-15"),
    "recipe": ("tiny.toml", "tiny.toml", *recipe_names()[:2]),
    "option": ("stage_units=1,1,1", "image_size=8", "gate=soft", "block_layers=1,1", "classes=2", "gate=1", "units=x"),
    "batch": ("1", "2", "1,2", "0", "1000000000"),
    "gates": ("open", "shut", "random:0.5", "equal:1", "trained", "paper", "random:1e9"),
    "against": ("", "eager", "channels_last", "eager,eager"),
    "kind": KINDS,
    "task": ("coarse", "fine", "both"),
    "data": ("data", "folder"),
    "device": ("cpu", "cuda", "cuda:9", "meta", "mps"),
    "dtype": ("float32", "bfloat16", "int8", "Tensor"),
    "backend": ("auto", "cpu", "reference", "cuda", "triton"),
    "attack": ("fgsm", "pgd"),
    "load": ("qps=50,slo=20ms", "qps=0,slo=1", "qps=1e9,slo=1ms"),
    "budget": ("macs=0.9", "latency=2ms", "error=+0.5pt", "macs=0", "macs=" + "9" * 400),
    "to": ("skipnet",),
    "json": ("-", "out.json"),
    "pin": ("0", "0-1", "0-", "1-0"),
    "plot": ("p.svg", "p.png", "p.pdf", "p.gif", ".svg"),
    "picture_file": ("p.svg", "p.png", "p.gif"),
    "trace_file": ("trace.json",),
    "out": ("out", "out.html", "out.safetensors"),
    "report": ("out.html",),
    "pictures": ("pictures",),
    "threads": ("1", "2"),
}
# What keeps a case short, where it is not drawn.
SHORT = {
    "seconds": "0",
    "images": "64",
    "thresholds": "1",
    "runs": "1",
    "threads": "1",
    "attack_steps": "1",
    "batch": "2",
}
TIMERS = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
ONLY = {"batch": ("bench", "timeline", "sweep")}


class Case(NamedTuple):
    """A command line, and the files that are damaged for it, by name."""

    words: list
    damages: dict


def values(command, parameter):
    """What may be given for a parameter: what is sound, what is not, files sound and damaged."""
    kind = get_type_hints(COMMANDS[command].callback)[parameter.name]
    if {int, float} & {kind, *get_args(kind)}:
        number = (
            st.one_of(st.integers(-3, 70), st.integers(), st.floats())
            if float in (kind, *get_args(kind))
            else st.integers(-3, 70)
        )
        return st.one_of(number.map(str), st.sampled_from(HOSTILE))
    damaged = st.builds(
        Damage, st.sampled_from([f for f in FILES if "." in f]), st.sampled_from(["cut", "flip"]), st.integers(0, 2**20)
    )
    sound = st.sampled_from([*SOUND.get(parameter.name, ()), *FILES])
    return st.one_of(
        sound, sound, damaged, st.sampled_from(HOSTILE), st.text(st.characters(exclude_characters="\0/"), max_size=8)
    )


@st.composite
def cases(draw):
    """Command lines: each parameter left out or given, options in any number."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    words, damages, given = [], {}, set()
    tame = draw(st.booleans())  # half of the cases are to get far: most of their values are sound

    def drawn(parameter):
        sound = SOUND.get(parameter.name)
        value = draw(st.sampled_from(sound) if sound and tame and draw(st.integers(0, 5)) else values(name, parameter))
        if isinstance(value, Damage):
            path = f"damaged{len(damages)}{Path(value.source).suffix}"
            damages[path] = value
            return path
        return value

    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            if parameter.required or draw(st.booleans()):
                words.append(drawn(parameter))
        elif draw(st.integers(0, 3)) == 0:
            given.add(parameter.name)
            option = draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts]))
            words += [option] if parameter.is_flag else [option, drawn(parameter)]
    for parameter in COMMANDS[name].params:
        wanted = parameter.name in SHORT and name in ONLY.get(parameter.name, (name,))
        if wanted and parameter.name not in given:
            words += [parameter.opts[0], SHORT[parameter.name]]
    return Case([name, *words], damages)


class Outcome(NamedTuple):
    status: int | None
    out: str
    err: str
    raised: str


@contextmanager
def bounded(seconds):
    """Ctrl-C after so many seconds of computing, or ten times as many in all, told by a list that is then not empty;
    memory for three GiB more; threads and cores as before."""
    fired = []

    def interrupt(number, frame):
        fired.append(frame)
        raise KeyboardInterrupt

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits, handlers = (
        resource.getrlimit(resource.RLIMIT_AS),
        {number: signal.signal(number, interrupt) for number in TIMERS},
    )
    threads, cores, browser = torch.get_num_threads(), os.sched_getaffinity(0), webbrowser.get
    resource.setrlimit(resource.RLIMIT_AS, (held + 3 * 2**30, limits[1]))
    webbrowser.get = none
    try:
        for number, timer in TIMERS.items():
            signal.setitimer(timer, seconds * (1 if number == signal.SIGPROF else 10), 0.5)
        yield fired
    finally:
        for number, timer in TIMERS.items():
            signal.setitimer(timer, 0)
            signal.signal(number, handlers[number])
        resource.setrlimit(resource.RLIMIT_AS, limits)
        webbrowser.get = browser
        torch.set_num_threads(threads)
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), cores)


def none():
    raise webbrowser.Error("there is no browser")


def run(words, seconds):
    """``dsn`` in this process, in the folder where it is."""
    before = sys.argv, sys.stdout, sys.stderr
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    status, raised = None, ""
    sys.argv, (sys.stdout, sys.stderr) = ["dsn", *words], streams
    try:
        with bounded(seconds) as interrupted, warnings.catch_warnings():
            warnings.simplefilter("always")
            cli.main()
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:
        status = 130  # between the command and its end
    except BaseException:
        if interrupted:  # C code may turn a Ctrl-C into an error of its own
            status = 130
        else:
            raised = traceback.format_exc()
    finally:
        sys.argv, sys.stdout, sys.stderr = before
    for stream in streams:
        stream.flush()
    return Outcome(status, *(stream.buffer.getvalue().decode() for stream in streams), raised)


def complaints(words, found, folder):
    """What does not hold: no traceback, a status that is documented, a failure in one line, no half a file."""
    wrong = []
    if found.raised:
        return [found.raised]
    if found.status not in (0, 2, 130):
        wrong.append(f"status {found.status}")
    lines = found.err.splitlines()
    told = [line for line in lines if line.startswith("dsn: ")]
    if len(told) != (found.status != 0) and found.status != 130:
        wrong.append(f"told {len(told)} times")
    if told and (lines[-1] != told[0] or printable(told[0]) != told[0]):
        wrong.append("the failure is not one line at the end")
    if found.status != 130 and ("Traceback" in found.err or "Warning" in found.err):
        wrong.append("a traceback or a warning")
    if (
        found.status == 0
        and "--json" in words[:-1]
        and words[words.index("--json") + 1] == "-"
        and "--help" not in words
    ):
        json.loads(found.out)
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("damaged") and not whole(path):
            wrong.append(f"{path.relative_to(folder)} is left behind or not whole")
    return wrong


@cache
def import_what_commands_import():
    """Ctrl-C inside an import would leave half a module to the cases after it."""
    for module in ("torch._dynamo", "torch.utils.tensorboard", "sklearn.datasets", "sklearn.manifold", "kornia"):
        with suppress(ImportError):
            import_module(module)
    for module in ("agg", "pdf", "svg"):
        import_module(f"matplotlib.backends.backend_{module}")


def check(case, corpus, seconds):
    """Runs a case in a copy of the corpus; returns what does not hold."""
    import_what_commands_import()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "in" / "here"
        shutil.copytree(corpus, folder, copy_function=os.link)
        for name, damage in case.damages.items():
            damage.make(folder, name)
        os.chdir(folder)
        try:
            found = run(case.words, seconds)
            return found, complaints(case.words, found, folder)
        except (ValueError, OSError):  # of a file that is not whole
            return found, [traceback.format_exc()]
        finally:
            os.chdir(before)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a case")
    options = parser.parse_args()
    end, count, seen, statuses = time.monotonic() + 60 * options.minutes, 0, set(), {}
    with tempfile.TemporaryDirectory() as scratch:
        make_corpus(Path(scratch))

        @hypothesis.given(cases())
        @hypothesis.settings(
            max_examples=200, database=None, deadline=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        def round_of(case):
            nonlocal count
            if time.monotonic() > end:
                return
            count += 1
            found, wrong = check(case, Path(scratch), options.seconds)
            statuses[found.status] = statuses.get(found.status, 0) + 1
            signature = tuple(text.splitlines()[-1] for text in wrong)
            if wrong and signature not in seen:
                seen.add(signature)
                print("=" * 100, case, *wrong, found.err[-2000:], sep="\n", flush=True)

        seed = options.seed
        while time.monotonic() < end:
            hypothesis.seed(seed)(round_of)()
            seed += 1
            print(f"{count} cases, statuses {statuses}, seeds to {seed}", flush=True)
    print(f"{count} cases, {len(seen)} findings")


if __name__ == "__main__":
    main()
