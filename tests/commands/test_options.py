"""What the commands share: one line and an exit code for every error, outputs that are whole or absent, progress."""

import argparse
import errno
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ringnet_ext import progress as progress_module
from ringnet_ext.commands.options import (
    OptionError,
    Parser,
    command,
    output_file,
    path,
    real,
    whole,
)
from ringnet_ext.files.errors import explained
from ringnet_ext.files.whole import folder_written_whole, output_folder, remove_leftovers, write_together, written_whole
from ringnet_ext.ops.devices import DeviceError, computing_device
from ringnet_ext.progress import progress


@pytest.mark.parametrize(
    "error, code, line",
    [
        (OptionError("--size: expected more"), 2, "error: --size: expected more"),
        (DeviceError("device: no such"), 2, "error: --device: no such"),
        (ValueError("a.npz: no\n  head"), 1, "error: a.npz: no head"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npz"),
            1,
            "error: a.npz: No such file or directory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "b.obj"), 1, "error: b.obj: No space left on device"),
        (MemoryError(), 1, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: out of memory: CUDA out of memory"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    @command
    def main(arguments):
        raise error

    assert main([]) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_mistake_of_ours_keeps_its_traceback():
    @command
    def main(arguments):
        raise KeyError("x")

    with pytest.raises(KeyError):
        main([])


def parser():
    result = Parser(prog="x")
    result.add_argument("--count", type=whole(1, 10_000))
    result.add_argument("--share", type=real(above=0, below=1))
    result.add_argument("--out", type=path)
    return result


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("--count", "0", "a whole number of at least 1 and of at most 10000"), ("--count", "10001", "at most"),
        ("--count", "3.5", "a whole number"), ("--count", "", "a whole number"),
        ("--share", "0", "above 0 and below 1"), ("--share", "1", "below 1"),
        ("--share", "nan", "a number"), ("--share", "inf", "a number"),
        ("--share", "half", "a number"), ("--out", "", "a path"), ("--out", " ", "a path"), ("--cuont", "3", "--cuont"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line_that_names_it(option, value, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([f"{option}={value}"])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    assert message.startswith("error: ") and option in message and expected in message


def test_right_options_are_read():
    options = parser().parse_args(["--count", "10000", "--share", "1e-3", "--out", "a b"])
    assert options == argparse.Namespace(count=10_000, share=1e-3, out=path("a b"))


def test_devices():
    assert computing_device("cpu") == torch.device("cpu")
    assert computing_device().type in ("cpu", "cuda")
    for name in ("banana", "", "mps", "cpu:x", "cuda:-1"):
        with pytest.raises(DeviceError, match=r"^device: expected cpu, cuda or cuda:N, got"):
            computing_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r"^device: cuda: "):
            computing_device("cuda")
    with pytest.raises(DeviceError, match=r"^device: cuda:99: "):
        computing_device("cuda:99")


def test_an_output_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"^--out: {folder}: expected a folder"):
            output_folder(folder)
    with pytest.raises(OSError, match=r"^--picture: .*expected a file, and a folder"):
        output_file(tmp_path, option="--picture")
    with pytest.raises(OSError, match=r"^--out: .*below.png: there is no folder .*file"):
        output_file(tmp_path / "file" / "below.png")
    with pytest.raises(OptionError, match=r"^--out: a.xyz: expected a name that ends in .png or .jpg"):
        output_file(path("a.xyz"), (".png", ".jpg"))
    with pytest.raises(OSError, match=r"^--out: /proc/self: cannot be written"):
        output_folder(path("/proc/self"))
    assert output_folder(tmp_path / "a" / "b").is_dir() and not output_file(tmp_path / "a" / "d.png").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]


def test_a_file_that_cannot_be_written_whole_is_named_and_absent(tmp_path):
    with pytest.raises(OSError) as caught, written_whole(tmp_path / "a.obj"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write to a full disk raises it
    assert explained(caught.value) == f"{tmp_path / 'a.obj'}: No space left on device"
    with pytest.raises(OSError) as caught, written_whole(tmp_path / "nothing" / "a.obj"):
        pass
    assert explained(caught.value) == f"{tmp_path / 'nothing' / 'a.obj'}: No such file or directory"
    assert not list(tmp_path.iterdir())


def test_files_are_written_together_or_not_at_all(tmp_path):
    first, second = str(tmp_path / "new" / "a.obj"), str(tmp_path / "b.npz")
    write_together({first: [b"one ", b"two"], second: (part for part in (b"three",))})
    assert (tmp_path / "new" / "a.obj").read_bytes() == b"one two" and Path(second).read_bytes() == b"three"

    def broken():
        yield b"half"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_together({first: [b"later"], second: broken()})
    assert os.listdir(tmp_path) == ["new"] and not os.listdir(tmp_path / "new")  # nor what was there before
    Path(second).mkdir()
    with pytest.raises(OSError) as caught:
        write_together({first: [b"later"], second: [b"later"]})
    assert explained(caught.value) == f"{second}: Is a directory"
    assert str(caught.value) == f"[Errno {errno.EISDIR}] Is a directory: {second!r}"
    assert sorted(os.listdir(tmp_path)) == ["b.npz", "new"] and not os.listdir(tmp_path / "new")


_KILLED = """
import os, signal, sys
from ringnet_ext.files.whole import folder_written_whole, written_whole
with written_whole(sys.argv[1] + "/a.png") as file, folder_written_whole(sys.argv[1] + "/b") as folder:
    file.write(b"half")
    (folder / "x").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "writing\n"
        (tmp_path / ".a.png.notes.tmp").write_text("the user's own")
        written = {f".a.png.{process.pid}.tmp", f".b.{process.pid}.tmp"}
        remove_leftovers(tmp_path)
        assert set(os.listdir(tmp_path)) == {".a.png.notes.tmp", *written}
    finally:
        process.kill()
        process.communicate()
    remove_leftovers(tmp_path, name="c.png")
    assert set(os.listdir(tmp_path)) == {".a.png.notes.tmp", *written}
    output_folder(tmp_path)
    assert os.listdir(tmp_path) == [".a.png.notes.tmp"]


def test_a_folder_is_written_whole_in_place_of_the_one_before(tmp_path):
    for text in ("one", "two"):
        with folder_written_whole(tmp_path / "set") as folder:
            (folder / "x").write_text(text)
        assert (tmp_path / "set" / "x").read_text() == text
    with pytest.raises(RuntimeError), folder_written_whole(tmp_path / "set") as folder:
        (folder / "x").write_text("three")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["set"] and (tmp_path / "set" / "x").read_text() == "two"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_long_work_says_a_line_now_and_then(monkeypatch):
    """And not one for every step, nor carriage returns; work that is soon over says nothing."""
    monkeypatch.setattr(progress_module, "INTERVAL", 0.05)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for _ in progress(range(20), desc="short", unit="thing"):
        pass
    assert log.getvalue() == ""
    bar = progress(range(40), desc="long work", unit="thing")
    for _ in bar:
        time.sleep(0.01)
    lines = log.getvalue().splitlines()
    assert 3 <= len(lines) <= 10 and "\r" not in log.getvalue()
    assert all(line.startswith("long work: ") and " of 40 " in line and "to go" in line for line in lines)
    assert lines[-1].startswith("long work: 40 of 40 (100 %)")


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    log = Terminal()
    monkeypatch.setattr(sys, "stderr", log)
    for _ in progress(range(3), desc="work", unit="thing"):
        pass
    assert "\r" in log.getvalue() and "3/3" in log.getvalue()
    for _ in progress(range(3), desc="hidden", unit="thing", show=False):
        pass
    assert "hidden" not in log.getvalue()


def test_without_an_error_stream_work_goes_on_in_silence(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress(range(3), desc="work", unit="thing")) == [0, 1, 2]
