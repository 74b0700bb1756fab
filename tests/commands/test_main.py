"""ringnet: its verbs, what it says of itself, and the same commands under python -m."""

import importlib
import os
import pkgutil
import runpy
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import ringnet_ext
from ringnet_ext import commands
from ringnet_ext.commands.main import VERBS, main
from ringnet_ext.commands.options import path

ROOT = Path(ringnet_ext.__file__).parents[1]
#: What stands after python -m, and how the command is then called in its help and its errors.
MODULES = {f"ringnet_ext.{verb}": f"python -m ringnet_ext.{verb}" for verb in VERBS}
MODULES |= {f"ringnet_ext {verb}": f"python -m ringnet_ext {verb}" for verb in VERBS}
MODULES |= {name: f"python -m {name}" for name in ("ringnet_ext.contact_sheet", "ringnet_ext.flame")}


def exit_code(function, *arguments):
    try:
        return function(*arguments)
    except SystemExit as stop:
        return stop.code


def parsers():
    return {verb: importlib.import_module(f"ringnet_ext.commands.{verb}").make_parser() for verb in VERBS}


def test_help_has_a_line_for_every_verb(capsys):
    assert exit_code(main, ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb, text in VERBS.items():
        assert any(line.split(maxsplit=1) == [verb, text] and len(line) <= 80 for line in lines), verb


def test_every_command_is_a_verb():
    modules = {name for _, name, _ in pkgutil.iter_modules(commands.__path__)}
    assert modules - {"main", "options", "option_files", "faces", "videos"} == set(VERBS)


def test_version(capsys):
    assert exit_code(main, ["--version"]) == 0
    assert capsys.readouterr().out.split() == ["ringnet_ext", ringnet_ext.__version__]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "there is no verb 'trian'; did you mean train? ringnet --help lists them"),
        (["flame", "--model", "a.npz"], "there is no verb 'flame'; did you mean pose? ringnet --help lists them"),
        (["zzz", "--help"], "there is no verb 'zzz'; ringnet --help lists them"),
        ([], "expected a verb: train, infer"),
        (["--out", "x"], "unrecognized arguments: --out x; ringnet --help"),
        (["--print-completion", "cmd"], "--print-completion: invalid choice: 'cmd'"),
        (["train", "--stepz"], "unrecognized arguments: --stepz; ringnet train --help lists the options"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(arguments, message, capsys):
    assert exit_code(main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gets_the_arguments_after_it_and_its_exit_code_counts(verb, monkeypatch):
    given = []
    module = importlib.import_module(f"ringnet_ext.commands.{verb}")
    monkeypatch.setattr(module, "main", lambda arguments: given.append(arguments) or 3)
    assert main([verb, "--out", verb]) == 3 and given == [["--out", verb]]


@pytest.mark.parametrize("words, name", MODULES.items(), ids=MODULES)
def test_a_command_knows_how_it_was_called(words, name, monkeypatch, capsys):
    module, *verb = words.split()
    monkeypatch.delitem(sys.modules, module, raising=False)  # for runpy, which would warn
    if module == "ringnet_ext":
        monkeypatch.setitem(sys.modules, module, ringnet_ext)
    elif hasattr(ringnet_ext, short := module.removeprefix("ringnet_ext.")):
        monkeypatch.setattr(ringnet_ext, short, getattr(ringnet_ext, short))  # runpy sets another one
    monkeypatch.setattr(sys, "argv", ["-m", *verb, "--help"])
    assert exit_code(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)) == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} [")
    monkeypatch.setattr(sys, "argv", ["-m", *verb, "--no-such-option"])
    assert exit_code(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)) == 2
    assert capsys.readouterr().err.endswith(f"; {name} --help lists the options\n")


def test_the_console_script_is_this_command():
    (script,) = entry_points(group="console_scripts", name="ringnet")
    assert script.load() is main


@pytest.mark.parametrize("arguments", ["--help", "--version", "trian"])
@pytest.mark.parametrize("console", [True, False])
def test_what_needs_no_verb_is_answered_without_pytorch(console, arguments):
    if console:  # what the script that pip makes does
        program = "import sys; sys.argv[0] = '/bin/ringnet'; from ringnet_ext.commands.main import main; main()"
        started = ["-c", program]
    else:
        started = ["-m", "ringnet_ext"]
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *started, arguments], cwd=ROOT, capture_output=True, text=True
    )
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines()}
    assert "ringnet_ext.commands.main" in imported
    assert not imported & {"torch", "numpy", "cv2", "_ringnet_core"}


def test_a_command_sees_the_whole_package_and_pytorch_s_openmp():
    """Though it imports nothing that it wasn't asked for."""
    program = (
        "import sys; sys.argv[0] = '/bin/ringnet'; import ringnet_ext; assert 'torch' not in sys.modules;"
        "from ringnet_ext.commands import main; main._module('infer');"
        "assert all(callable(getattr(ringnet_ext, name)) for name in ringnet_ext.__all__ if name[0] != '_');"
        "print(*ringnet_ext.__config__.openmp_libraries(), sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.splitlines()) <= set(
        ringnet_ext.__config__.openmp_libraries()
    )  # of tests, which import PyTorch first


def test_without_the_core_a_verb_says_what_to_do_in_one_line(tmp_path):
    (tmp_path / "_ringnet_core.py").write_text("raise ImportError('no such library')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    started = [sys.executable, "-m", "ringnet_ext.train"]
    run = subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ringnet_ext") and "pip install ." in run.stderr


def test_a_package_that_is_missing_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ringnet_ext.commands.prepare", None)
    assert main(["prepare"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith("; ringnet doctor says what is missing\n")


# What the verbs share.


def test_shared_options_mean_the_same_in_every_verb():
    shared = {flag: {} for flag in ("--head", "--out", "--device", "--threads", "--seed")}
    for verb, parser in parsers().items():
        for action in parser._actions:
            for flag in set(action.option_strings) & shared.keys():
                shared[flag][verb] = action
    verbs = {flag: set(actions) for flag, actions in shared.items()}
    assert verbs["--head"] == {"train", "infer", "fit", "evaluate", "contour", "pose", "sheet", "export"}
    assert verbs["--out"] == verbs["--head"] | {"prepare"}
    assert verbs["--device"] == {"train", "infer", "fit", "evaluate"}
    assert verbs["--threads"] == verbs["--device"] | {"prepare"}
    for flag in ("--head", "--out"):
        assert all(action.type is path and action.metavar in ("FILE", "DIR") for action in shared[flag].values())
    for flag in ("--head", "--device", "--threads", "--seed"):
        assert len({action.default for action in shared[flag].values()}) == 1, flag
    assert len({action.help for action in shared["--threads"].values()}) == 1
    assert all(action.help.startswith("cpu, cuda or cuda:N") for action in shared["--device"].values())


@pytest.mark.parametrize(
    "verb, former, now",
    [
        ("pose", "--model a.npz", "--head a.npz"), ("contour", "a.npz --ears", "--head a.npz --ears"),
        ("contour", "--ears a.npz", "--ears --head a.npz"), ("sheet", "a.npz", "--head a.npz"),
        ("prepare", "a --out b --workers 3", "a --out b --threads 3"),
    ],
)  # fmt: skip
def test_former_names_are_understood_and_not_shown(verb, former, now, capsys):
    parser = parsers()[verb]
    assert vars(parser.parse_args(now.split())) == vars(parser.parse_args(former.split())), former
    text = parser.format_help()
    assert "--workers" not in text and "--model" not in text and "MODEL" not in text
    if "a.npz" in former:
        assert exit_code(parser.parse_args, [*former.split(), "--head", "b.npz"]) == 2
        assert "not allowed with" in capsys.readouterr().err


# Shell completion.


def completed(script, *words):
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_ringnet; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    run = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_bash_completes_verbs_options_and_values(capsys, tmp_path, monkeypatch):
    pytest.importorskip("shtab")
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert set(completed(script, "ringnet", "")) >= set(VERBS)
    assert completed(script, "ringnet", "tr") == ["train"]
    assert completed(script, "ringnet", "train", "--ring-s") == ["--ring-size"]
    assert completed(script, "ringnet", "train", "--preset", "pa") == ["paper"]
    assert completed(script, "ringnet", "pose", "--mo") == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.npz").touch()
    assert set(completed(script, "ringnet", "train", "--head", "f")) == {"file.npz", "folder"}
    assert completed(script, "ringnet", "train", "--out", "f") == ["folder"]


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_have_a_script_too(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS) and "ring-size" in script


def test_completion_without_its_package_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == "error: --print-completion: needs the package shtab; pip install shtab\n"
