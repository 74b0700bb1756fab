"""smplx's body models on the fused operators: the same modules, faster."""

import functools
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import ops
from .ops._cache import Cache, constant

_joined = Cache(lambda *tensors: torch.cat(tensors, dim=-1))


def _cat(tensors, dim=0, **options) -> Tensor:
    """torch.cat that joins directions (V, 3, n) once. It joins them anew when they change, and when autograd follows
    them."""
    if dim != -1 or options or tensors[0].ndim != 3 or torch.compiler.is_compiling() or not all(map(constant, tensors)):
        return torch.cat(tensors, dim=dim, **options)
    return _joined(tuple(tensors))


def _forward_by_name(cls: type) -> Callable | None:
    """The class's own forward, where it calls `lbs`, looked up by this name when it is called."""
    forward = cls.__dict__.get("forward")
    return forward if "lbs" in getattr(getattr(forward, "__code__", None), "co_names", ()) else None


def _base(module: nn.Module) -> type | None:
    """The class whose forward poses this module, if it is one of smplx's or made like them."""
    if not all(
        isinstance(getattr(module, name, None), Tensor)
        for name in ("posedirs", "J_regressor", "parents", "lbs_weights")
    ):
        return None
    return next((cls for cls in type(module).__mro__ if _forward_by_name(cls)), None)


@functools.cache
def _accelerated(cls: type, base: type) -> type[nn.Module]:
    """A subclass of cls in which base's forward finds this package's functions under the names that it looks up."""
    forward = base.__dict__["forward"]
    own_torch = types.ModuleType("torch")
    vars(own_torch).update(vars(torch), cat=_cat)
    names = {
        **forward.__globals__,
        "torch": own_torch,
        "lbs": ops.flame_lbs,
        "vertices2landmarks": ops.vertices2landmarks,
    }
    ours = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    ours.__kwdefaults__, ours.__doc__ = forward.__kwdefaults__, forward.__doc__
    described = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce,
    }
    if base is cls:
        return type(cls)(cls.__name__, (cls,), {**described, "forward": ours, "_slow_class": cls})
    # A class between cls and base: cls calls base's forward by super().
    between = type(base)(base.__name__, (base,), {"__module__": base.__module__, "forward": ours})
    return type(cls)(cls.__name__, (cls, between), {**described, "_slow_class": cls})


def _new(cls: type) -> nn.Module:
    """An accelerated instance without values. Copies and pickles of accelerated modules begin with one."""
    base = next(c for c in cls.__mro__ if _forward_by_name(c))
    made = _accelerated(cls, base)
    return made.__new__(made)


def _reduce(self, protocol):
    _, _, *rest = object.__reduce_ex__(self, max(protocol, 2))
    return (_new, (self._slow_class,), *rest)


class Acceleration:
    """What :func:`accelerate` did; ``str()`` says it in words."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules

    def undo(self) -> None:
        """Makes the modules what they were."""
        for module in self.modules.values():
            module.__class__ = getattr(module, "_slow_class", type(module))

    def __str__(self) -> str:
        lines = []
        for name, module in self.modules.items():
            joined = [n for n in ("shapedirs", "expr_dirs") if isinstance(getattr(module, n, None), Tensor)]
            line = f"{name or 'the module'} ({type(module).__name__}): lbs and vertices2landmarks are ringnet_ext's"
            lines.append(line + (f"; {' and '.join(joined)} are joined once" if len(joined) > 1 else ""))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Acceleration of {', '.join(name or 'the module' for name in self.modules)}>"


def accelerate(module: nn.Module) -> Acceleration:
    """Lets smplx's body models compute with this package's operators, in place. Results are the same to rounding;
    gradients, names and files are as before.

    Accelerates smplx's SMPL, SMPLH, SMPLX, MANO and FLAME, their layers, and classes derived from them: the module
    itself and those inside it. Changed buffers are noticed as the operators notice them (:mod:`ringnet_ext.ops`).
    Copies and pickles of an accelerated module are accelerated too. smplx itself, and other modules of its classes,
    stay as they are.

    Args:
        module: a body model, or a module with body models in it.

    Returns:
        what was done, in words and with :meth:`Acceleration.undo`.

    Raises:
        ValueError: there is no body model.
    """
    found = {name: (part, base) for name, part in module.named_modules() if (base := _base(part))}
    if not found:
        raise ValueError(
            "module: expected one of smplx's body models (SMPL, SMPLH, SMPLX, MANO, FLAME), or a module that has one, "
            f"got {type(module).__name__}"
        )
    for part, base in found.values():
        if not hasattr(part, "_slow_class"):
            cls: type = type(part)
            part.__class__ = _accelerated(cls, base)
    return Acceleration({name: part for name, (part, _) in found.items()})
