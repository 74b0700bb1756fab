"""What all operators share: their schemas, checks and derivatives, and the two paths to their kernels.

An operator has three kinds of arguments. Moving tensors change from call to call, and can be differentiated by.
Constants are a model's tensors: a model may be prepared from them. Settings are numbers and flags. The dispatcher knows
an operator as two functions:

    NAME_forward(moving, constants, settings, keep) -> (results, states)
    NAME_backward(gradients of the results, moving, constants, settings, states, wanted) -> gradients of moving tensors

A state is private to the core: scratch memory, and with ``keep`` what the backward function needs. A gradient that
isn't wanted is an empty tensor.

There are two paths to a kernel. The dispatcher path calls these two functions. It checks every argument, and compilers,
transforms, modes and tracers see its calls. At batch 1 it takes longer than a kernel. The fast path calls the kernel
past the dispatcher, where nothing watches, the model is prepared and unchanged, and the moving tensors are as the
kernel wants them. For autograd the two are the same.
"""

from collections.abc import Callable
from typing import Any

import _ringnet_core as core
import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _checks as checks
from ._cache import in_backward
from ._prepared import gradient_like

_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)  # not the public interface

try:
    from torch._C._functorch import peek_interpreter_stack
    from torch._functorch.utils import enable_single_level_autograd_function
    from torch.autograd.forward_ad import _set_fwd_grad_enabled
except ImportError:  # not the public interface: torch.func.grad raises without it
    _in_transform = None
else:

    def _in_transform() -> bool:
        return peek_interpreter_stack() is not None


try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._autograd import _profiler_enabled
    from torch._C._functorch import peek_interpreter_stack

    forward_ad._current_level  # noqa: B018
except (ImportError, AttributeError):  # not the public interface: a PyTorch without them takes the dispatcher path
    _len_torch_dispatch_stack = lambda: 1


def watched() -> bool:
    """Whether a compiler, transform, mode, tracer or profiler wants to see the calls of operators."""
    return bool(
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or peek_interpreter_stack() is not None
        or _get_tracing_state() is not None
        or _profiler_enabled()
        or forward_ad._current_level >= 0
    )


def differentiated(values) -> bool:
    """Whether reverse-mode autograd follows one of the values."""
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


def _has_tangent(values) -> bool:
    """Whether one of the values carries a forward-mode derivative."""
    return any(isinstance(v, Tensor) and forward_ad.unpack_dual(v).tangent is not None for v in values)


def _versions(tensors) -> list[int | None]:
    try:
        return [t._version for t in tensors if t is not None] if tensors else []
    except RuntimeError:  # inference tensors have none
        return [None if t.is_inference() else t._version for t in tensors if t is not None]


def _tuple(outputs) -> tuple:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _unpacked(outputs: tuple):
    """The outputs as the dispatcher wants them: one tensor alone, several as a tuple."""
    return outputs[0] if len(outputs) == 1 else outputs


class _Call(torch.autograd.Function):
    """A call of an operator as autograd sees it. fast: (model, widths, like) on the fast path, None on the dispatcher
    path."""

    @staticmethod
    def forward(ctx, operator, fast, constants, settings, *moving):
        if fast is None:
            returned = _tuple(_at_lower_levels(operator.forward_below, *moving, *constants, *settings, *operator.keep))
            states = returned[len(operator.results) :]
            ctx.mark_non_differentiable(*states)
            states = tuple([s if s.shape[1] else None for s in states])  # as the core has them
        else:
            returned, states = fast[0].forward(*moving, *settings[-1:], True)
        saved, unsaved = operator.to_save(moving)
        ctx.save_for_backward(*saved, *states)
        ctx.set_materialize_grads(False)
        constants = (*unsaved, *constants)
        state_shapes = tuple([s if s is None else s.shape for s in states]) if states else ()
        ctx.call = operator, fast, constants, _versions(constants), settings, len(saved), state_shapes
        return returned

    @staticmethod
    def backward(ctx, *gradients):
        operator, fast, constants, versions, settings, num_saved, state_shapes = ctx.call
        if _versions(constants) != versions:
            raise RuntimeError(
                f"a constant of {operator.function} that is needed for its gradients has been modified by an inplace "
                "operation"
            )
        kept = ctx.saved_tensors  # read once: checkpointing gives them only once
        gradients, saved, states = gradients[: len(operator.results)], kept[:num_saved], kept[num_saved:]
        wanted = ctx.needs_input_grad[4:]
        if fast is not None and not torch.is_grad_enabled() and not watched():
            model, widths, like = fast
            # Gradients, and saved tensors that went through hooks, may have any shape, dtype and device.
            B = core.batch_size(saved, widths, like)
            if (
                B >= 0
                and core.shaped_like(gradients, model.shapes(B), like)
                and (not states or core.shaped_like(states, state_shapes, like, True))
            ):
                return None, None, None, None, *model.backward(gradients, *saved, states, *settings[-1:], wanted)
        states = [saved[0].new_empty((saved[0].shape[0], 0)) if s is None else s for s in states]
        all_wanted = [*wanted, *[False] * (len(operator.moving) - len(wanted))]
        results = _tuple(operator.backward(*gradients, *saved, *constants, *settings, *states, all_wanted))
        return None, None, None, None, *[r if w else None for r, w in zip(results, wanted, strict=False)]


def _no_second_derivative(function: str) -> NotImplementedError:
    return NotImplementedError(
        f"{function} has no second derivative; ringnet_ext.ops.reference.{function} can be differentiated any number "
        "of times"
    )


class _Gradient(torch.autograd.Function):
    """A call of an operator's backward function as autograd sees it. It can't be differentiated."""

    @staticmethod
    def forward(ctx, operator, *arguments):
        ctx.function = operator.function
        return _at_lower_levels(operator.backward_below, *arguments)

    @staticmethod
    def backward(ctx, *_):
        raise _no_second_derivative(ctx.function)


# Function.apply without its handling of torch.func: here the dispatcher handles each level of the transforms, as it
# does for PyTorch's own operators.
apply_call = super(torch.autograd.Function, _Call).apply
_apply_gradient = super(torch.autograd.Function, _Gradient).apply


def _at_this_level(apply, *arguments):
    """apply(...), which handles the current level of torch.func's transforms alone."""
    if _in_transform is None or not _in_transform():
        return apply(*arguments)
    with enable_single_level_autograd_function():
        return apply(*arguments)


def _at_lower_levels(operator, *arguments):
    """operator(...), called inside an autograd function. There autograd records nothing at the function's own level;
    lower levels of torch.func's transforms must record."""
    if _in_transform is None or not _in_transform():
        return operator(*arguments)
    with torch.enable_grad(), _set_fwd_grad_enabled(True):
        return operator(*arguments)


def _rows(state: Tensor) -> Tensor | None:
    """A state as the core left it: contiguous, and aligned like new memory."""
    if not state.shape[1]:
        return None
    state = state.contiguous()
    return state if state.is_cpu or state.data_ptr() % 64 == 0 else state.clone()


class Operator:
    """Base class of the operators. A subclass describes its operator by the attributes and methods below; there is one
    instance of each."""

    name: str  # with the dispatcher
    function: str  # the public function
    moving: tuple[str, ...]  # tensors, batch first
    constants: str  # as in a schema
    settings: str = ""  # of which the last is the call's, the others a prepared model's
    results: tuple[str, ...]
    states: tuple[str, ...] = ()
    batched: tuple[str, ...] = ()  # constants that have a batch
    reference: Callable[..., Any]  # the same in plain PyTorch
    cache: Any  # of prepared models, where there are some

    def check(self, *inputs) -> tuple:
        """Raises where shapes, dtypes or devices are wrong; returns the sizes, the batch size first. Takes fake tensors
        too."""
        raise NotImplementedError

    def check_values(self, *inputs) -> None:
        """Raises where indices are out of range."""

    def shapes(self, sizes: tuple) -> tuple[tuple, ...]:
        """The shapes of the results."""
        raise NotImplementedError

    def state_sizes(self, sizes: tuple, cuda: bool, dtype: torch.dtype, keep: bool) -> tuple[int, ...]:
        """The number of values of each state for one batch element."""
        return ()

    def prepared(self, *inputs) -> tuple:
        """The prepared model, and :meth:`check`'s sizes. Takes real tensors."""
        return None, self.check(*inputs)

    def forward_kernel(self, model, *inputs, keep: bool) -> tuple[tuple, tuple]:
        """The results and the states, None for a state of size 0."""
        raise NotImplementedError

    def backward_kernel(self, model, gradients: tuple, inputs: tuple, states: tuple, wanted: list[bool]) -> tuple:
        """The gradients of the moving tensors, None where not wanted."""
        raise NotImplementedError

    def to_save(self, moving: tuple) -> tuple[tuple, tuple]:
        """The moving tensors that autograd saves for backward, and those that backward reads like constants."""
        return moving, ()

    def __init__(self):
        inputs = [f"Tensor {name}" for name in self.moving] + [p for p in (self.constants, self.settings) if p]
        self.inputs = [parameter.rsplit(" ", 1) for parameter in ", ".join(inputs).split(", ")]
        self.names = [name for _, name in self.inputs]
        self.keep, self.num_settings = (
            (True,) if self.states else (),
            len(self.settings.split(", ")) if self.settings else 0,
        )
        given, states = ", ".join(inputs), [f"Tensor {name}" for name in self.states]
        outputs = ", ".join(["Tensor"] * (len(self.results) + len(states)))
        gradients = ", ".join([f"Tensor? grad_{name}" for name in self.results])
        moved = ", ".join(["Tensor"] * len(self.moving))
        self.forward, self.forward_below = _define(
            f"{self.name}_forward({given}{', bool keep' if states else ''}) -> ({outputs})",
            self._forward, self._forward_fake, self._forward_autograd, self._forward_vmap,
        )  # fmt: skip
        self.backward, self.backward_below = _define(
            f"{self.name}_backward({', '.join([gradients, given, *states, 'bool[] wanted'])}) -> ({moved})",
            self._backward, self._backward_fake, self._backward_autograd, self._backward_vmap,
        )  # fmt: skip

    # --- the dispatcher path ---

    def dispatch(self, *inputs) -> tuple[Tensor, ...]:
        """The results, by the dispatcher path."""
        keep = (False,) if self.states else ()
        return _tuple(self.forward(*inputs, *keep))[: len(self.results)]

    def require_types(self, *inputs) -> None:
        """Raises where an argument isn't of its type in the schema; shapes, dtypes and devices are checked later."""
        for (kind, name), value in zip(self.inputs, inputs, strict=False):
            if kind == "Tensor" or (kind == "Tensor?" and value is not None):
                checks.require_dense(name, value)
            elif kind == "int":
                checks.require_integer(name, value)
            elif kind == "bool":
                checks.require_boolean(name, value)

    def _split(self, arguments: tuple) -> tuple[tuple, tuple, tuple, list[bool]]:
        """The backward function's arguments as gradients, inputs, states, wanted."""
        g, n = len(self.results), len(self.results) + len(self.inputs)
        return arguments[:g], arguments[g:n], arguments[n:-1], arguments[-1]

    def _inputs(self, arguments: tuple) -> tuple[tuple, bool]:
        """The forward function's arguments as inputs, keep."""
        return (arguments[:-1], arguments[-1]) if self.states else (arguments, False)

    def _forward(self, *arguments):
        inputs, keep = self._inputs(arguments)
        model, (B, *_) = self.prepared(*inputs)
        results, states = self.forward_kernel(model, *inputs, keep=keep)
        return _unpacked((*results, *(inputs[0].new_empty((B, 0)) if s is None else s for s in states)))

    def _forward_fake(self, *arguments):
        inputs, keep = self._inputs(arguments)
        like, sizes = inputs[0], self.check(*inputs)
        cuda = checks.require_device(like, self.moving[0])
        states = [(sizes[0], size) for size in self.state_sizes(sizes, cuda, like.dtype, keep)]
        return _unpacked(tuple(like.new_empty(shape) for shape in (*self.shapes(sizes), *states)))

    def _backward(self, *arguments):
        gradients, inputs, states, wanted = self._split(arguments)
        with in_backward():
            model, sizes = self.prepared(*inputs)
        self._check_backward(gradients, inputs[0], states, sizes, wanted)
        results = self.backward_kernel(model, gradients, inputs, tuple(_rows(s) for s in states), wanted)
        return self._gradients(results, inputs[0])

    def _backward_fake(self, *arguments):
        gradients, inputs, states, wanted = self._split(arguments)
        self._check_backward(gradients, inputs[0], states, self.check(*inputs), wanted)
        return self._gradients([gradient_like(t, w) for t, w in zip(inputs, wanted, strict=False)], inputs[0])

    def _gradients(self, results, like: Tensor):
        return _unpacked(tuple(like.new_empty(0) if r is None else r for r in results))

    def _check_backward(self, gradients, like: Tensor, states, sizes: tuple, wanted: list[bool]) -> None:
        for name, gradient, shape in zip(self.results, gradients, self.shapes(sizes), strict=False):
            checks.kept(f"grad_{name}", gradient, shape, like)
        cuda = checks.require_device(like, self.moving[0])
        for name, state, size in zip(
            self.states, states, self.state_sizes(sizes, cuda, like.dtype, True), strict=False
        ):
            checks.kept(name, state, (sizes[0], size), like)
        n = len(self.moving)
        checks.require(len(wanted) == n, "wanted", f"one for each of {', '.join(self.moving)}", wanted)

    def _forward_autograd(self, *arguments):
        inputs, _ = self._inputs(arguments)
        n, m = len(self.moving), len(inputs) - self.num_settings
        moving, constants, settings = inputs[:n], inputs[n:m], inputs[m:]
        if _has_tangent(inputs) or differentiated(constants):  # the kernels can't: the reference does
            B, *_ = self.check(*inputs)
            if not watched():
                self.check_values(*inputs)
            with torch.autocast(inputs[0].device.type, enabled=False):
                results = _tuple(self.reference(*inputs))
            return _unpacked((*results, *(inputs[0].new_empty((B, 0)) for _ in self.states)))
        if differentiated(moving):
            return _unpacked(_at_this_level(apply_call, self, None, constants, settings, *moving))
        return self.forward_below(*arguments)

    def _backward_autograd(self, *arguments):
        if _has_tangent(arguments):
            raise _no_second_derivative(self.function)
        if differentiated(arguments):
            return _at_this_level(_apply_gradient, self, *arguments)
        return self.backward_below(*arguments)

    # --- torch.func.vmap: the vmapped dimension joins the batch ---

    def _folded(self, info, in_dims, inputs) -> tuple[list, int]:
        """The inputs with the vmapped dimension folded into the batch, and the size of the batch before."""
        N, moved = (
            info.batch_size,
            [None if d is None else t.movedim(d, 0) for t, d in zip(inputs, in_dims, strict=False)],
        )
        B = inputs[0].shape[0] if moved[0] is None else moved[0].shape[1]
        folded = []
        for (_, name), value, batched in zip(self.inputs, inputs, moved, strict=False):
            if name in self.moving or name in self.batched:
                if batched is None and name == "v_template" and value.ndim == 2:
                    folded.append(value)
                    continue
                batched = value.expand(N, *value.shape) if batched is None else batched
                if name == "v_template" and batched.ndim == 3:
                    batched = batched[:, None].expand(N, B, *batched.shape[1:])
                folded.append(batched.reshape(N * B, *batched.shape[2:]))
            elif batched is None:
                folded.append(value)
            else:
                raise NotImplementedError(
                    f"{name}: {self.function} can't be vectorised over it; ringnet_ext.ops.reference.{self.function} "
                    "can"
                )
        return folded, B

    def _forward_vmap(self, info, in_dims, *arguments):
        inputs, keep = self._inputs(arguments)
        folded, B = self._folded(info, in_dims, inputs)
        outputs = _tuple(self.forward(*folded, *((keep,) if self.states else ())))
        return _unpacked(tuple(o.unflatten(0, (info.batch_size, B)) for o in outputs)), _unpacked((0,) * len(outputs))

    def _backward_vmap(self, info, in_dims, *arguments):
        N, (gradients, inputs, states, wanted) = info.batch_size, self._split(arguments)
        dims_g, dims_i, dims_s, _ = self._split(in_dims)

        def fold(value, dim):
            if value is None:
                return None
            value = value.expand(N, *value.shape) if dim is None else value.movedim(dim, 0)
            return value.reshape(-1, *value.shape[2:]) if value.numel() else value.flatten(0, 1)

        folded, B = self._folded(info, dims_i, inputs)
        shared = [t is inputs[i] for i, t in enumerate(folded[: len(self.moving)])]
        for i, t in enumerate(folded[: len(self.moving)]):
            if shared[i] and wanted[i]:
                # A shared template's gradient is summed over the batch, not over the vmapped dimension.
                folded[i] = t.expand(N * B, *t.shape)
        gradients, states = (list(map(fold, values, dims)) for values, dims in ((gradients, dims_g), (states, dims_s)))
        if any(d is None for d in dims_s):
            # The forward call wasn't vmapped. A state's layout depends on the batch size, so it is computed anew.
            with torch.no_grad():
                states = _tuple(self.forward(*folded, True))[len(self.results) :]
        results = _tuple(self.backward(*gradients, *folded, *states, wanted))
        outputs, dims = [], []
        for i, (r, w) in enumerate(zip(results, wanted, strict=False)):
            r = r.unflatten(0, (N, B)) if w else r
            template = w and inputs[i].ndim - (dims_i[i] is not None) == 2 and self.moving[i] == "v_template"
            outputs.append(r.sum(1) if template else r)
            dims.append(0 if w else None)
        return _unpacked(tuple(outputs)), _unpacked(tuple(dims))


_library = torch.library.Library("ringnet_ext", "DEF")


def _define(schema: str, kernel, fake, autograd, vmap):
    """Defines an operator of the dispatcher. Returns it, and a function that calls it below autograd."""

    def define(schema):
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CPU", "CUDA"):
            _library.impl(name, kernel, key)
        torch.library.register_fake(f"ringnet_ext::{name}", fake, lib=_library)
        torch.library.register_vmap(f"ringnet_ext::{name}", vmap, lib=_library)
        return name, getattr(torch.ops.ringnet_ext, name).default

    name, operator = define(schema)
    if _below_autograd is None:  # a twin of the operator, without an autograd kernel
        below = torch.no_grad()(define(f"_{schema}")[1])
    else:

        def below(*arguments):
            with _below_autograd():
                return operator(*arguments)

    _library.impl(name, autograd, "Autograd")
    return operator, below
