"""Arrays of arrays, as numpy saved them before there was another way: .npy files with `dtype=object` (sketch-rnn's).

Such a file holds a pickle, which may call any function of Python when it is read in the usual way. Here it is read by
the rules of the format alone (docs.python.org/3/library/pickletools.html): of its instructions those that numpy needs
to write an array, of functions none. What an instruction names is looked up in a table of four, and everything else is
refused before anything happens. Nothing is made that is larger than the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from gencli.errors import DataError
from gencli.escape import printable
from gencli.lazy import Lazy

if TYPE_CHECKING:
    import numpy as np
else:
    np = Lazy("numpy")

_MOST_STEPS = 2**23  # instructions; some thirty make an array
_MOST_HELD = 10_000  # values on the stack; numpy's own files hold some thousand
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
_KNOWN = {(f"numpy.{core}.multiarray", "_reconstruct"): "array" for core in ("core", "_core")} | {
    ("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype", ("_codecs", "encode"): "encode"}


def load_ragged(data: bytes, name: str) -> np.ndarray:
    """The array (N,) of arrays of numbers in the bytes of a .npy file, `dtype=object`. No code in it is ever run.

    Raises:
        DataError: the file is damaged, or holds anything but arrays of numbers.
    """
    file = BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
        raise DataError(f"{name} is damaged or cut short: its header cannot be read") from error
    if not dtype.hasobject or len(shape) != 1:
        raise DataError(f"{name} holds {dtype} values of the shape {shape}; expected a list of arrays")
    try:
        parts = _Machine(data, file.tell()).run()
    except _Foreign as error:
        raise DataError(f"{name} holds Python objects ({error}), which can run code when they are read; "
                        f"save plain numbers") from error
    except (_Damaged, AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{name} is damaged or cut short: its list of arrays cannot be read") from error
    if shape != (len(parts),):
        raise DataError(f"{name} holds {len(parts)} arrays, and says that it had {shape[0]}")
    arrays = np.empty(len(parts), object)
    for i, part in enumerate(parts):
        arrays[i] = part
    return arrays


class _Damaged(Exception):
    """Bytes that no array was ever written as."""


class _Foreign(Exception):
    """An object that is no array of numbers; the message names it."""


@dataclass
class _Named:
    """Something that the file names, of those in `_KNOWN`."""

    what: str


@dataclass
class _Type:
    """The type of numbers: a code such as "i2", or "O" for objects; byte order "<", ">" or "|"."""

    code: str
    order: str = "|"

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """An array that is made, and filled afterwards."""

    content: Any = None  # an array of numbers, or a list of `_Array`


class _Machine:
    """Carries out the instructions of a pickle from a place in the data on."""

    def __init__(self, data: bytes, start: int):
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.room = len(data)  # bytes that arrays may still have

    def run(self) -> list[np.ndarray]:
        for _ in range(_MOST_STEPS):
            code = self.data[self.at]
            self.at += 1
            if code == _STOP:
                return self._result()
            if code not in _STEPS:
                raise _Foreign(f"instruction 0x{code:02x}")
            _STEPS[code](self)
            if len(self.stack) > _MOST_HELD:
                break
        raise _Damaged

    def _result(self) -> list[np.ndarray]:
        whole = self.stack.pop()
        if not isinstance(whole, _Array) or not isinstance(whole.content, list):
            raise _Foreign("no list of arrays")
        for part in whole.content:
            if not isinstance(part, _Array) or not isinstance(part.content, np.ndarray):
                raise _Foreign("not all of them arrays of numbers")
        return [part.content for part in whole.content]

    # --- bytes

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise _Damaged
        part, self.at = self.data[self.at : end], end
        return part

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 100)
        return self.take(end + 1 - self.at)[:-1].decode("ascii")

    # --- instructions

    def push_name(self, module: Any, name: Any) -> None:
        if (module, name) not in _KNOWN:
            raise _Foreign(printable(f"{module}.{name}")[:80])
        self.stack.append(_Named(_KNOWN[module, name]))

    def named(self) -> None:
        self.push_name(self.line(), self.line())

    def named_on_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise _Damaged
        del self.stack[-count:]
        self.stack.append(items)

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Damaged
        self.stack[-1].extend(items)

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def call(self) -> None:
        """An array, a type of numbers, or bytes that were written as text: what is asked for, nothing is called."""
        arguments, asked = self.stack.pop(), self.stack.pop()
        what = asked.what if isinstance(asked, _Named) else ""
        if what == "array" and len(arguments) == 3 and arguments[0] == _Named("ndarray"):
            self.stack.append(_Array())
        elif what == "dtype" and len(arguments) == 3:
            code = _text(arguments[0])
            if not _NUMBERS.fullmatch(code) and code not in ("O", "O8", "O4"):
                raise _Foreign(f"values of type {printable(code)[:20]}")
            self.stack.append(_Type(code))
        elif what == "encode" and len(arguments) == 2 and arguments[1] == "latin1":
            self.spend(len(arguments[0]))
            self.stack.append(arguments[0].encode("latin-1"))
        else:
            raise _Foreign("a call")

    def build(self) -> None:
        """Fill the array, or say the byte order of the type, that is on the stack."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Type):
            made.order = _text(state[1])
            if made.order not in ("<", ">", "|", "="):
                raise _Damaged
        elif isinstance(made, _Array):
            _, shape, kind, by_column, content = state
            if not isinstance(kind, _Type):
                raise _Damaged
            if kind.code.startswith("O"):
                if not isinstance(content, list) or shape != (len(content),):
                    raise _Damaged
                made.content = content
            else:
                dtype = kind.dtype()
                content = content.encode("latin-1") if isinstance(content, str) else content
                if not all(type(side) is int and side >= 0 for side in shape) \
                        or len(content) != math.prod(shape) * dtype.itemsize:
                    raise _Damaged
                self.spend(len(content))
                made.content = np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")
        else:
            raise _Foreign("an object with a state")

    def spend(self, count: int) -> None:
        self.room -= count
        if self.room < 0:
            raise _Damaged


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _push(read: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(read(machine))


_STOP = ord(".")
_STEPS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("c"): _Machine.named,  # GLOBAL
    0x93: _Machine.named_on_stack,  # STACK_GLOBAL
    ord("R"): _Machine.call,  # REDUCE
    ord("b"): _Machine.build,  # BUILD
    ord("("): lambda m: m.marks.append(len(m.stack)),  # MARK
    ord("t"): _push(lambda m: tuple(m.since_mark())),  # TUPLE
    ord(")"): _push(lambda m: ()),  # EMPTY_TUPLE
    0x85: lambda m: m.last(1),  # TUPLE1
    0x86: lambda m: m.last(2),  # TUPLE2
    0x87: lambda m: m.last(3),  # TUPLE3
    ord("]"): _push(lambda m: []),  # EMPTY_LIST
    ord("a"): lambda m: m.append([m.stack.pop()]),  # APPEND
    ord("e"): lambda m: m.append(m.since_mark()),  # APPENDS
    ord("q"): lambda m: m.put(m.number(1)),  # BINPUT
    ord("r"): lambda m: m.put(m.number(4)),  # LONG_BINPUT
    0x94: lambda m: m.put(len(m.memo)),  # MEMOIZE
    ord("h"): lambda m: m.get(m.number(1)),  # BINGET
    ord("j"): lambda m: m.get(m.number(4)),  # LONG_BINGET
    ord("N"): _push(lambda m: None),  # NONE
    0x88: _push(lambda m: True),  # NEWTRUE
    0x89: _push(lambda m: False),  # NEWFALSE
    ord("K"): _push(lambda m: m.number(1)),  # BININT1
    ord("M"): _push(lambda m: m.number(2)),  # BININT2
    ord("J"): _push(lambda m: m.number(4, signed=True)),  # BININT
    ord("U"): _push(lambda m: m.take(m.number(1))),  # SHORT_BINSTRING
    ord("T"): _push(lambda m: m.take(m.number(4))),  # BINSTRING
    ord("C"): _push(lambda m: m.take(m.number(1))),  # SHORT_BINBYTES
    ord("B"): _push(lambda m: m.take(m.number(4))),  # BINBYTES
    0x8E: _push(lambda m: m.take(m.number(8))),  # BINBYTES8
    0x8C: _push(lambda m: m.take(m.number(1)).decode()),  # SHORT_BINUNICODE
    ord("X"): _push(lambda m: m.take(m.number(4)).decode()),  # BINUNICODE
}
