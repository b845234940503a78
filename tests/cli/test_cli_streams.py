"""Outputs that are closed, full or of another encoding, and Ctrl-C where the parent ignored it."""

import io
import os
import signal
import subprocess
import sys

import pytest
import torch

from dsn_kernels.cli import streams

DSN = f"{sys.executable} -m dsn_kernels"


def shell(command):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=buffered)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.long
@pytest.mark.parametrize(
    "command, expected",
    [
        # The reader left: as any program that SIGPIPE ends, without a word.
        ("{ $DSN --help; echo $? >&2; } | true", (0, "", "141\n")),
        # The result is lost: one line, a user's mistake.
        ("$DSN --help >/dev/full", (2, "", "dsn: error: cannot write to stdout: No space left on device; ")),
        ("$DSN --help >&-", (2, "", "dsn: error: cannot write to stdout: Bad file descriptor; ")),
        # Nobody can be told; the status does.
        ("$DSN fly 2>&-", (2, "", "")),
    ],
    ids=["no reader", "full", "closed", "stderr closed"],
)
def test_outputs_that_take_nothing(command, expected):
    status, out, err = shell(command.replace("$DSN", DSN))
    assert (status, out) == expected[:2]
    assert err.startswith(expected[2]) and err.count("\n") == (expected[2] != "")


def test_a_full_disk_under_a_table(dsn, monkeypatch):
    """What a command prints is flushed by rich; the message names stdout all the same."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status, _, err = dsn("info")
    assert status == 2
    assert err == "dsn: error: cannot write to stdout: No space left on device; free space or choose another place\n"


def test_an_encoding_that_lacks_our_characters(dsn, monkeypatch):
    """Frames of tables and `\u00b5` need no UTF-8."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    status, _, err = dsn("timeline", "resnet-20", "--option", "stage_units=1,1,1", "--batch", 1, "--runs", 1)
    assert (status, err) == (0, "") and b"\\xb5s if run" in written.getvalue()


def test_a_name_that_is_no_utf_8(dsn, tmp_path):
    """Names of files are bytes; a message shows those that are no text, and hides no control character."""
    name = b"odd\xff\x1b[31m.pth"
    (tmp_path / os.fsdecode(name)).write_bytes(b"junk")
    status, out, err = dsn("convert", os.fsdecode(name))
    assert (status, out) == (2, "") and err.startswith(r"dsn: error: odd\udcff\x1b[31m.pth ") and err.count("\n") == 1


def test_ctrl_c_works_where_the_parent_ignored_it():
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGHUP)]
    try:
        for number, _ in before:
            signal.signal(number, signal.SIG_IGN)
        streams.prepare()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
        own = signal.signal(signal.SIGINT, lambda number, frame: None)
        assert own is signal.default_int_handler
        streams.prepare()
        assert (
            signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        )  # a program that calls main keeps its own
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 74.5 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.\nat x"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_memory_is_one_line(dsn, monkeypatch, error):
    from dsn_kernels.cli import info

    def fails():
        raise error

    monkeypatch.setattr(info, "collect", fails)
    status, out, err = dsn("info")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"dsn: error: not enough memory ({str(error).splitlines()[0]}); choose a smaller batch")
