"""Options from files, and what a run folder says of its making."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ringnet_ext.commands import train
from ringnet_ext.commands.option_files import file_arguments
from ringnet_ext.training.run_folder import described


def parsed(path, *arguments):
    parser = train.make_parser()
    return parser.parse_args([*file_arguments(path, parser), *arguments])


FILES = {
    "options.toml": "steps = 12\nlearning-rate = 1e-4\ncompile = true\nresume = false\n"
    'out = "runs/a b"\nencoder = "resnet50"\n',
    "options.yaml": "steps: 12\nlearning_rate: 1e-4\ncompile: true\nresume: false\n"
    "out: runs/a b\nencoder: resnet50\nhead: null\n",
    "options.json": '{"steps": 12, "learning_rate": 1e-4, "compile": true, "out": "runs/a b", "encoder": "resnet50"}',
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_says_the_same_and_the_command_line_goes_before(tmp_path, name):
    if name.endswith("toml") and sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    path = tmp_path / name
    path.write_text(FILES[name])
    expected = train.make_parser().parse_args(
        ["--steps", "12", "--learning-rate", "1e-4", "--compile", "--out", "runs/a b", "--encoder", "resnet50"]
    )
    assert parsed(path) == expected
    assert parsed(path, "--steps", "13").steps == 13


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("a.toml", "stepz = 3", "no option 'stepz'; did you mean steps"),
        ("a.toml", "steps = ", "a.toml"),
        ("a.yaml", "steps: [1, 2", "a.yaml"),
        ("a.yaml", "steps: [1, 2]", "steps: expected one value"),
        ("a.yaml", "- steps", "expected names and values"),
        ("a.yaml", "compile: 3", "compile: expected true or false"),
        ("a.toml", "steps = true", "steps: expected one value"),
        ("a.json", "{", "a.json"),
        ("a.ini", "steps = 3", "expected a .toml"),
        ("a.toml", "help = true", "no option 'help'"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, name, text, problem, capsys):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        train.main(["--config", str(path)])
    assert stop.value.code == 2 and problem in capsys.readouterr().err


def test_yaml_cannot_run_code(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text(f"steps: !!python/object/apply:os.mkdir [{tmp_path}/made]")
    with pytest.raises(SystemExit):
        train.main(["--config", str(path)])
    assert not (tmp_path / "made").exists()


def test_the_configuration_of_a_run_starts_another(tmp_path):
    options = train.make_parser().parse_args(
        ["--steps", "7", "--ema", "0.9", "--overwrite", "--device", "cpu", "--out", "a"]
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(described(options, processes=1)))
    again = parsed(path, "--out", "b")
    options.overwrite, options.out = False, Path("b")
    assert again == options


def test_git_state_is_that_of_the_current_directory(tmp_path, monkeypatch):
    options = train.make_parser().parse_args(["--device", "cpu"])
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert described(options)["git"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    state = described(options)["git"]
    assert len(state["commit"]) == 40 and state["changed"] == []
    (tmp_path / "a").write_text("2")
    assert described(options)["git"]["changed"] == [" M a"]
