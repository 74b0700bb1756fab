"""A stack machine that reads pickles and calls nothing: what a pickle asks to import or to call becomes a record."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass

_MAX_OPCODES = 2**20  # real files have some thousand; each takes up to a hundred bytes of memory


@dataclass(eq=False)
class Global:
    """A function or class that a pickle asks for."""

    name: str


@dataclass(eq=False)
class Call:
    """A function with arguments, or an object with a state, that a pickle asks for."""

    function: Global
    args: tuple
    state: object = None
    built: bool = False


@dataclass(eq=False)
class Persistent:
    """What a pickle refers to and does not hold."""

    key: object


class Machine:
    """Runs the pickle that begins at `position` of `data`; :meth:`run` leaves the value in `result`, as plain values
    and records.

    Args:
        allowed: whether a pickle may ask for a name. Raises ValueError for one that asks for any other.
    """

    def __init__(self, data: memoryview, position: int, allowed: Callable[[str], bool]):
        self.data, self.position, self.allowed = data, position, allowed
        self.stack: list = []
        self.below: list[list] = []  # stacks under the marks
        self.memo: dict = {}
        self.result = None

    def run(self):
        for _ in range(_MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == _STOP:
                self.result = self.stack.pop()
                return
            step = _STEPS.get(opcode)
            if step is None:
                raise ValueError(f"refused: opcode {bytes([opcode])!r}")
            step(self)
        raise ValueError(f"refused: more than {_MAX_OPCODES} opcodes")

    def take(self, count):
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise ValueError("it ends too early")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, code):
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self):
        end = self.position
        while True:  # memoryview has no find; search the copy of a growing piece
            piece = bytes(self.data[end : end + 4096])
            if not piece:
                raise ValueError("it ends too early")
            if (at := piece.find(b"\n")) >= 0:
                end += at
                break
            end += len(piece)
        text = bytes(self.take(end - self.position))
        self.position += 1
        return text

    def text(self, code, encoding):
        return str(self.take(self.number(code)), encoding, "surrogatepass" if encoding == "utf-8" else "strict")

    def remember(self, index):
        if not 0 <= index < 4 * _MAX_OPCODES:
            raise ValueError("a memo index out of range")
        self.memo[index] = self.stack[-1]

    def push(self, value):
        self.stack.append(value)

    def marked(self):
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self):
        self.below.append(self.stack)
        self.stack = []

    def extend(self, items):
        if not isinstance(self.stack[-1], list):
            raise ValueError("appends to something that is no list")
        self.stack[-1].extend(items)

    def fill(self, items):
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Large integers can be chosen so that they collide in a dictionary and make it slow.
            if not isinstance(key, (str, bytes)) and not (isinstance(key, int) and abs(key) < 2**31):
                raise ValueError(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def named(self, module, name):
        if not self.allowed(f"{module}.{name}"):
            asked = f"{module}.{name}"[:200]
            raise ValueError(f"refused: it asks for {asked!r}, which is not among the array types allowed")
        return Global(f"{module}.{name}")

    def call(self, function, args):
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise ValueError("calls something that is no function")
        self.push({} if function.name == "collections.OrderedDict" and not args else Call(function, args))

    def build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, dict) and isinstance(state, dict):
            return  # a module's state dict, which has the versions of its parts as an attribute
        if not isinstance(target, Call) or target.built:
            raise ValueError("sets the state of something that has none")
        target.state, target.built = state, True

    # One method per opcode that needs more than a line

    def op_string(self):
        text = self.line().strip()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"'\"":
            raise ValueError("a string without quotes")
        self.push(codecs.escape_decode(text[1:-1])[0].decode("latin1"))

    def op_integer(self):
        text = self.line()
        self.push(text == b"01" if text in (b"00", b"01") else int(text))

    def op_stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a name that is no text")
        self.push(self.named(module, name))

    def op_inst(self):
        function = self.named(self.line().decode(), self.line().decode())
        self.call(function, tuple(self.marked()))

    def op_obj(self):
        function, *args = self.marked()
        self.call(function, tuple(args))

    def op_reduce(self):
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    def op_newobj_ex(self):
        keywords, args = self.stack.pop(), self.stack.pop()
        if keywords:
            raise ValueError("calls with keywords")
        self.call(self.stack.pop(), args)

    def op_append(self):
        value = self.stack.pop()
        self.extend([value])

    def op_set_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.fill([key, value])

    def op_tuple(self, count):
        if count > len(self.stack):
            raise ValueError("takes more than there is")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(items)

    def op_dict(self):
        items = self.marked()
        self.push({})
        self.fill(items)


_STOP = ord(".")


def _little(piece):
    return int.from_bytes(piece, "little", signed=True)


_STEPS = {
    ord(code): step
    for code, step in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME: its length is of no use here
        "(": lambda m: m.mark(),
        "0": lambda m: m.stack.pop() if m.stack else m.marked(),
        "1": lambda m: m.marked(),
        "2": lambda m: m.push(m.stack[-1]),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": Machine.op_integer,
        "L": lambda m: m.push(int(m.line().rstrip(b"L"))),
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.number("<B")),
        "M": lambda m: m.push(m.number("<H")),
        "\x8a": lambda m: m.push(_little(m.take(m.number("<B")))),
        "\x8b": lambda m: m.push(_little(m.take(m.number("<i")))),
        "F": lambda m: m.push(float(m.line())),
        "G": lambda m: m.push(m.number(">d")),
        "S": Machine.op_string,
        "T": lambda m: m.push(m.text("<i", "latin1")),
        "U": lambda m: m.push(m.text("<B", "latin1")),
        "B": lambda m: m.push(bytes(m.take(m.number("<I")))),
        "C": lambda m: m.push(bytes(m.take(m.number("<B")))),
        "\x8e": lambda m: m.push(bytes(m.take(m.number("<Q")))),
        "\x96": lambda m: m.push(bytes(m.take(m.number("<Q")))),  # a bytearray
        "V": lambda m: m.push(str(m.line(), "raw-unicode-escape")),
        "X": lambda m: m.push(m.text("<I", "utf-8")),
        "\x8c": lambda m: m.push(m.text("<B", "utf-8")),
        "\x8d": lambda m: m.push(m.text("<Q", "utf-8")),
        "]": lambda m: m.push([]),
        "\x8f": lambda m: m.push([]),  # a set, kept as a list
        "a": Machine.op_append,
        "e": lambda m: m.extend(m.marked()),
        "\x90": lambda m: m.extend(m.marked()),
        "l": lambda m: m.push(m.marked()),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.marked())),
        "\x91": lambda m: m.push(tuple(m.marked())),  # a frozen set
        "\x85": lambda m: m.op_tuple(1),
        "\x86": lambda m: m.op_tuple(2),
        "\x87": lambda m: m.op_tuple(3),
        "}": lambda m: m.push({}),
        "d": Machine.op_dict,
        "s": Machine.op_set_item,
        "u": lambda m: m.fill(m.marked()),
        "p": lambda m: m.remember(int(m.line())),
        "q": lambda m: m.remember(m.number("<B")),
        "r": lambda m: m.remember(m.number("<I")),
        "\x94": lambda m: m.remember(len(m.memo)),
        "g": lambda m: m.push(m.memo[int(m.line())]),
        "h": lambda m: m.push(m.memo[m.number("<B")]),
        "j": lambda m: m.push(m.memo[m.number("<I")]),
        "c": lambda m: m.push(m.named(m.line().decode(), m.line().decode())),
        "\x93": Machine.op_stack_global,
        "i": Machine.op_inst,
        "o": Machine.op_obj,
        "R": Machine.op_reduce,
        "\x81": Machine.op_reduce,  # NEWOBJ
        "\x92": Machine.op_newobj_ex,
        "b": Machine.build,
        "P": lambda m: m.push(Persistent(m.line().decode())),
        "Q": lambda m: m.push(Persistent(m.stack.pop())),
    }.items()
}
