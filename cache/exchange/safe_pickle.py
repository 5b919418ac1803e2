"""Read a NumPy array out of a pickle; no name in the file is ever looked up, so nothing in it can run.

The features that come with Hume-Vidmimic2 are pickles, and unpickling runs code. Answering `find_class` strictly is not
enough: on Python 3.11 a `pickle.Unpickler` that admits nothing still takes 4 GB for a file of seven bytes (an index of
its memo), overflows the C stack on a dict key of 200,000 nested tuples, and lets BUILD set attributes of whatever
`find_class` answers; and NumPy trusts the flags in a pickled dtype. So the opcodes are checked first: only those with
which NumPy 1 and 2 write a numeric array in protocols 0 to 5, and few of them; they make no dict, so BUILD can set no
attribute. Then the file is unpickled with stand-ins for NumPy's functions, which only record how they are called, and
the one record that is left is read as an array.
"""

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheError

CODES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())
"""Type codes that are read; all of them mean the same on every machine."""
MAX_OPCODES = 1000
"""NumPy needs under 200 even for 32 dimensions; this bounds time, nesting, and what a file can make of its bytes."""
OPCODES = frozenset(
    "PROTO FRAME STOP MARK TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE NONE NEWTRUE NEWFALSE "
    "INT BININT BININT1 BININT2 LONG LONG1 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 GLOBAL STACK_GLOBAL REDUCE BUILD "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
RECONSTRUCT, FROM_BUFFER = "numpy.core.multiarray._reconstruct", "numpy.core.numeric._frombuffer"
"""What makes an array, whose state follows; what makes one at once, in protocol 5."""
NAMES = frozenset(
    (RECONSTRUCT, FROM_BUFFER, "numpy.ndarray", "numpy.dtype", "_codecs.encode", "builtins.bytes", "__builtin__.bytes")
)
"""All that a file may ask for. Protocols 0 to 2 have no bytes: they are encoded text, or a call without arguments."""
MAX_DIMENSIONS = 32
SHOWN = 80  # characters of a hostile file that an error may repeat


class UnsafePickleError(CacheError, ValueError):
    """A pickle that is damaged, or that asks for anything but one array of numbers; nothing of it was run."""


class _RefusedError(Exception):
    """Why a pickle is not read."""


def load_array(file: Path) -> NDArray[Any]:
    """Read the one array that a pickle of any protocol holds.

    Every byte of the array has to be in the file, so memory is bounded by two or three times its size.

    Returns:
        An array of one to 32 dimensions of integers, floats or booleans in the byte and memory order of the file;
        it may be read-only.

    Raises:
        UnsafePickleError: damaged, or anything but one array of numbers; names the file and what it asked for.
        OSError: the file cannot be opened or read.
    """
    content = file.read_bytes()
    try:
        at, why = _first_refused(content)
        if why:  # a name that the file asks for before says more
            _Unpickler(io.BytesIO(content[:at] + b"N." + content[at:])).load()
            raise _RefusedError(why)
        return _array(_Unpickler(io.BytesIO(content)).load())
    except _RefusedError as error:
        raise UnsafePickleError(
            f"{file}: {error}; nothing of it was run. Save the array itself with `numpy.save` and import that"
        ) from None
    except Exception as error:  # pickle, pickletools and NumPy raise anything over damaged bytes
        raise UnsafePickleError(
            f"{file}: not an intact pickle of an array ({_shown(error)}); nothing of it was run. Copy it again"
        ) from None


def _first_refused(content: bytes) -> tuple[int, str]:
    """Where an opcode is that NumPy does not need for one array, and why it is refused; "" where there is none.

    Raises:
        ValueError: a length is that of more than there is, or the like; see `pickletools`.
    """
    at, depth, marks = 0, 0, list[int]()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content)):
        at = position or 0
        if count == MAX_OPCODES:
            return at, f"it has more than {MAX_OPCODES} steps, and an array has not"
        if opcode.name not in OPCODES:
            return at, f"it holds something that is no array of numbers (opcode {opcode.name})"
        if "PUT" in opcode.name and (argument or 0) > MAX_OPCODES:
            return at, "it numbers its values higher than it has steps"
        if opcode.name == "MARK":
            marks.append(depth)
        elif opcode.name == "TUPLE":
            depth = marks.pop() + 1
        else:
            depth += len(opcode.stack_after) - len(opcode.stack_before)
    if depth:
        return at, "it does not hold one array"
    return at, "more data follow its first object" if at + 1 < len(content) else ""


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows stand-ins only."""

    def find_class(self, module: str, name: str) -> "_Recorded":
        """A stand-in for a name; never the function itself."""
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if known not in NAMES:
            raise _RefusedError(f"it asks for {_shown(f'{module}.{name}')}, which no array of numbers needs")
        return _Recorded(known)


@dataclass(eq=False)
class _Recorded:
    """Stands in for a function, and for what it returns: how it was called, and the state that BUILD brought."""

    name: str
    arguments: tuple[object, ...] | None = None
    state: object = None

    def __call__(self, *arguments: object) -> "_Recorded":
        match self.name, arguments:
            case "numpy.dtype", (str(code), *_) if code not in CODES:
                raise _RefusedError(f"its dtype {_shown(code)} is not one of numbers")
        return _Recorded(self.name, arguments)

    def __setstate__(self, state: object) -> None:
        if self.state is not None:
            raise _RefusedError("it gives a dtype or an array two states")
        self.state = state


def _array(found: object) -> NDArray[Any]:
    """The array that was recorded, as NumPy writes one."""
    axes: tuple[Any, ...] | None = None
    match found:
        case _Recorded(
            name, (_Recorded("numpy.ndarray", None), (0,), _), (1, shape, dtype, 0 | 1 as fortran, data)
        ) if name == RECONSTRUCT:
            order: Any = "F" if fortran else "C"
        case _Recorded(name, (data, dtype, shape, "C" | "F" as order), None) if name == FROM_BUFFER:
            pass
        case _Recorded(name, (data, dtype, shape, "K", tuple(axes)), None) if name == FROM_BUFFER:
            order = "C"
        case _:
            raise _RefusedError("it does not hold one array")
    match dtype:
        case _Recorded(
            "numpy.dtype", (str(code), 0, 1), (3, "<" | ">" | "|" as byte_order, None, None, None, -1, -1, 0)
        ) if (byte_order == "|") == code.endswith("1"):  # False and True: not to align, but to copy
            kind = np.dtype(byte_order + code)
        case _:
            raise _RefusedError("its dtype is not one that NumPy writes for numbers")
    match data:
        case _Recorded("_codecs.encode", (str(text), "latin1"), None):
            content: bytes | bytearray = text.encode("latin1")
        case _Recorded("builtins.bytes" | "__builtin__.bytes", (), None):
            content = b""
        case bytes() | bytearray():
            content = data
        case _:
            raise _RefusedError("its array has no bytes")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise _RefusedError("its array has no shape, or a size that none can have")
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise _RefusedError(f"its array has {len(shape)} dimensions, expected 1 to {MAX_DIMENSIONS}")
    if math.prod(shape) * kind.itemsize != len(content):
        raise _RefusedError(f"its array claims the shape {_shown(shape)} of {kind}, and {len(content)} bytes are there")
    values: NDArray[Any] = np.frombuffer(content, kind)
    if kind.kind == "b" and (values.view(np.uint8) > 1).any():
        raise _RefusedError("its booleans are neither 0 nor 1")
    values = values.reshape(shape, order=order)
    return values if axes is None else values.transpose(axes)  # raises ValueError unless they are a permutation


def _shown(text: object) -> str:
    """Without control characters, and short."""
    return ascii(str(text)[:SHOWN])[1:-1]
