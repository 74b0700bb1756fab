"""The public API as a file, tests/api.txt: whoever changes a name or a signature sees so in the review.

After a change that is meant: ``python tests/test_api.py``, and a line in CHANGELOG.md.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ringnet_ext

FILE = Path(__file__).with_name("api.txt")

#: Modules whose `__all__` is public, and names of other modules that are.
MODULES = ["ringnet_ext", "ringnet_ext.flame", "ringnet_ext.fitting", "ringnet_ext.ops", "ringnet_ext.ops.reference"]
NAMES = {
    "ringnet_ext.accelerate": ["Acceleration"],
    "ringnet_ext.data.face_set": ["Augmentation", "FaceSet"],
    "ringnet_ext.data.photographs": ["load_photographs"],
    "ringnet_ext.data.prepare": ["PrepareSettings", "prepare"],
    "ringnet_ext.data.synthetic": ["SyntheticFaces"],
    "ringnet_ext.deca": ["FLAME"],
    "ringnet_ext.flame.contour": ["contour_embedding", "ear_embedding"],
    "ringnet_ext.flame.parameters": ["FlameParams"],
    "ringnet_ext.flame.sources": ["load_head"],
    "ringnet_ext.flame_pytorch": ["FLAME", "get_config"],
}


def public() -> Iterator[tuple[str, object]]:
    """All public functions and classes, by the names under which they are imported."""
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            yield f"{module}.{name}", getattr(importlib.import_module(module), name)
    for module, names in NAMES.items():
        for name in names:
            yield f"{module}.{name}", getattr(importlib.import_module(module), name)


def annotation(value) -> str:
    """As it stands in the source, on every Python."""
    value = getattr(value, "__forward_arg__", value)
    return value if isinstance(value, str) else inspect.formatannotation(value).replace("'", "")


def signature(function) -> str:
    parts, kind = [], None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and kind not in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL):
            parts.append("*")
        kind = parameter.kind
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
        part = star + parameter.name
        if parameter.annotation is not parameter.empty:
            part += f": {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            part += f" = {re.sub(r' at 0x[0-9a-f]+', '', repr(parameter.default))}"
        parts.append(part)
    returned = inspect.signature(function).return_annotation
    arrow = "" if returned is inspect.Signature.empty else f" -> {annotation(returned)}"
    return f"({', '.join(parts)}){arrow}"


def members(cls) -> Iterator[tuple[str, object]]:
    """What the package itself defines in a class: its public methods and properties, and how instances are called."""
    seen = set()
    for base in cls.__mro__:
        if base.__module__.startswith("ringnet_ext"):
            for name, value in vars(base).items():
                if not name.startswith("_") and name not in seen:
                    seen.add(name)
                    yield name, value


def described(name: str, value) -> Iterator[str]:
    if not callable(value):
        yield f"{name}: {type(value).__name__}"
    elif not inspect.isclass(value):
        yield f"{name}{signature(value)}"
    else:
        if hasattr(value, "_fields"):
            fields = (f"{field}: {annotation(value.__annotations__[field])}" for field in value._fields)
            yield f"{name}({', '.join(fields)})"
        else:
            yield f"{name}{signature(value)}"
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                if not field.name.startswith("_"):
                    yield f"{name}.{field.name}: {annotation(field.type)}"
        for member, inner in members(value):
            inner = inner.__func__ if isinstance(inner, (classmethod, staticmethod)) else inner
            if isinstance(inner, property):
                yield f"{name}.{member}{signature(inner.fget).removeprefix('(self)')}"
            elif inspect.isfunction(inner):
                yield f"{name}.{member}{signature(inner)}"


def api() -> list[str]:
    lines, first = set(), {}
    for name, value in public():
        if first.setdefault(id(value), name) == name:
            lines.update(described(name, value))
        else:
            lines.add(f"{name} is {first[id(value)]}")
    return sorted(lines)


def test_the_api_is_what_the_file_says():
    expected = FILE.read_text().splitlines()
    difference = "\n".join(difflib.unified_diff(expected, api(), "tests/api.txt", "the package", lineterm="", n=0))
    assert not difference, f"the public API has changed; if that is meant, run python tests/test_api.py\n{difference}"


def functions(value) -> Iterator[object]:
    """What can be called of a function or class, with a signature of its own."""
    if inspect.isclass(value):
        yield from (getattr(inner, "__func__", inner) for _, inner in members(value))
        value = value.__init__
    if callable(value):
        yield value


def changed(whole: inspect.Signature, parameter: inspect.Parameter) -> Iterator[inspect.Signature]:
    """The signature without a parameter, with another name or another default for it."""
    others = list(whole.parameters.values())
    place = others.index(parameter)
    yield whole.replace(parameters=others[:place] + others[place + 1 :])
    others[place] = parameter.replace(name=f"{parameter.name}_renamed")
    yield whole.replace(parameters=others)
    if parameter.default is not parameter.empty:
        others[place] = parameter.replace(default="another")
        yield whole.replace(parameters=others)


def test_a_changed_parameter_of_any_function_is_noticed(monkeypatch):
    count = 0
    for name, value in public():
        before = list(described(name, value))
        for function in filter(inspect.isfunction, functions(value)):
            whole = inspect.signature(function)
            for parameter in whole.parameters.values():
                if parameter.name in ("self", "cls"):
                    continue
                for other in changed(whole, parameter):
                    with monkeypatch.context() as patch:
                        patch.setattr(function, "__signature__", other, raising=False)
                        assert list(described(name, value)) != before, f"{name}: {whole} as {other}"
                count += 1
    assert count > 200


def test_the_file_names_a_removed_parameter(monkeypatch):
    whole = inspect.signature(ringnet_ext.FLAME.forward)
    fewer = [parameter for name, parameter in whole.parameters.items() if name != "eyelids"]
    monkeypatch.setattr(ringnet_ext.FLAME.forward, "__signature__", whole.replace(parameters=fewer), raising=False)
    with pytest.raises(AssertionError, match=r"-ringnet_ext\.FLAME\.forward.*eyelids"):
        test_the_api_is_what_the_file_says()


if __name__ == "__main__":
    FILE.write_text("\n".join(api()) + "\n")
    print(f"wrote {FILE}: {len(api())} lines")
