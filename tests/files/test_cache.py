"""Where what can be made again is kept."""

from pathlib import Path

import pytest

from ringnet_ext.files.cache import cache_folder


@pytest.mark.parametrize(
    "given, variables, expected",
    [
        ("here", {"RINGNET_CACHE": "/own"}, "here"),
        (None, {"RINGNET_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        (None, {"RINGNET_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/ringnet_ext"),
        (None, {"HOME": "/home/ann"}, "/home/ann/.cache/ringnet_ext"),
    ],
)
def test_the_first_of_argument_own_variable_the_desktops_and_home(monkeypatch, given, variables, expected):
    for name in ("RINGNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder(given) == Path(expected)
