"""What README and docs/ point to exists: files, headings, modules, names, flags."""

import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("docs/ is not here: a source distribution leaves it out", allow_module_level=True)

PAGES = sorted([*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = "ringnet_ext", "csrc", "python", "tests", "benchmarks", "docs"


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def anchors(text):
    """What GitHub calls the headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_files_that_are_named_exist(page):
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_python_is_python_and_imports_what_there_is(page):
    for block in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ringnet_ext":
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module}.{name.name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ringnet_ext":
                assert hasattr(importlib.import_module("ringnet_ext"), node.attr), f"ringnet_ext.{node.attr}"


def test_commands_have_the_flags_that_are_named(page, monkeypatch, capsys):
    for block in blocks(page.read_text(), "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for call in re.split(r"&&|;", line):
                words = shlex.split(call, comments=True)
                if words[:1] == ["ringnet"]:
                    module, given = "ringnet_ext", words[1:]
                elif module := next((word for word in words if re.fullmatch(r"ringnet_ext\.\w+", word)), None):
                    given = words[words.index(module) + 1 :]
                else:
                    continue
                verb = given[:1] if module == "ringnet_ext" else []
                monkeypatch.setattr(sys, "argv", [module, *verb, "--help"])
                with pytest.raises(SystemExit) as ended:
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
                assert ended.value.code in (0, None), call
                known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
                unknown = {word for word in given if word.startswith("--")} - known - {"--help"}
                assert not unknown, call
