"""Read a NumPy array out of a pickle; no name in the file is ever looked up, so nothing in it can run.

The features that come with Hume-Vidmimic2 are pickles, and unpickling runs code. Answering `find_class` strictly is not
enough: on Python 3.11 a `pickle.Unpickler` that admits nothing still takes 4 GB for a file of seven bytes (an index of
its memo), overflows the C stack on a dict key of 200,000 nested tuples, and lets BUILD set attributes of whatever
`find_class` answers; and NumPy trusts the flags in a pickled dtype. So the opcodes are checked first: only those with
which NumPy 1 and 2 write a numeric array in protocols 0 to 5, and few of them; they make no dict, so BUILD can set no
attribute. Then the file is unpickled with stand-ins for NumPy's functions, which check what they are given.
"""

import io
import math
import os
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheError
from cache.paths import StrPath

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
MAX_DIMENSIONS = 32
SHOWN = 80  # characters of a hostile file that an error may repeat


class UnsafePickleError(CacheError, ValueError):
    """A pickle that is damaged, or that asks for anything but one array of numbers; nothing of it was run."""


class _RefusedError(Exception):
    """Why a pickle is not read."""


def load_array(file: StrPath) -> NDArray[Any]:
    """Read the one array that a pickle of any protocol holds.

    Every byte of the array has to be in the file, so memory is bounded by two or three times its size.

    Returns:
        An array of one to 32 dimensions of integers, floats or booleans in the byte and memory order of the file;
        it may be read-only.

    Raises:
        UnsafePickleError: damaged, or anything but one array of numbers; names the file and what it asked for.
        OSError: the file cannot be opened or read.
    """
    return array_in(Path(file).read_bytes(), os.fspath(file))


def array_in(content: bytes, where: str) -> NDArray[Any]:
    """`load_array` of the content of a file; `where` names it in errors."""
    try:
        at, why = _first_refused(content)
        if why:  # a name that the file asks for before says more
            _Unpickler(io.BytesIO(content[:at] + b"N." + content[at:])).load()
            raise _RefusedError(why)
        match _Unpickler(io.BytesIO(content)).load():
            case _Array() as array:
                return array.values()
        raise _RefusedError("it does not hold one array")
    except _RefusedError as error:
        raise UnsafePickleError(
            f"{where}: {error}; nothing of it was run. Save the array itself with `numpy.save` and import that"
        ) from None
    except Exception as error:  # pickle, pickletools and NumPy raise anything over damaged bytes
        raise UnsafePickleError(
            f"{where}: not an intact pickle of an array ({_shown(error)}); nothing of it was run. Copy it again"
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

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; never the function itself."""
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if known not in _STAND_INS:
            raise _RefusedError(f"it asks for {_shown(f'{module}.{name}')}, which no array of numbers needs")
        return _STAND_INS[known]


class _DType:
    """Stands in for a `numpy.dtype`, which is known by its code until BUILD brings the byte order."""

    dtype: np.dtype[Any] | None = None

    def __init__(self, code: object, align: object, copy: object) -> None:
        if not isinstance(code, str) or (align, copy) != (False, True):
            raise _RefusedError("it makes a dtype as NumPy does not")
        if code not in CODES:
            raise _RefusedError(f"its dtype {_shown(code)} is not one of numbers")
        self._code = code

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, "<" | ">" | "|" as order, None, None, None, -1, -1, 0) if self.dtype is None and (
                order == "|"
            ) == self._code.endswith("1"):
                self.dtype = np.dtype(order + self._code)
            case _:
                raise _RefusedError("the state of its dtype is not one that NumPy writes for numbers")


@dataclass(eq=False)
class _Array:
    """Stands in for an array, and is called in the place of `_frombuffer`, which protocol 5 uses.

    The other protocols make an empty one, for which BUILD brings the rest. Nothing is checked, nor is text made bytes,
    before the array is known to be the one that is asked for: a file must not multiply its own bytes.
    """

    data: Any = None
    dtype: Any = None
    shape: Any = None
    order: Any = "C"
    axes: Any = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, shape, dtype, 0 | 1 as fortran, data) if self.shape is None:
                self.data, self.dtype, self.shape, self.order = data, dtype, shape, "F" if fortran else "C"
            case _:
                raise _RefusedError("the state of its array is not one that NumPy writes for numbers")

    def values(self) -> NDArray[Any]:
        """The array itself, where its bytes are what its dtype and shape need."""
        match self.data:
            case str(text), "latin1":
                data: bytes | bytearray = text.encode("latin1")
            case bytes() | bytearray() as data:
                pass
            case _:
                raise _RefusedError("its array has no bytes")
        match self.dtype, self.shape:
            case _DType(dtype=np.dtype() as dtype), tuple(shape):
                pass
            case _:
                raise _RefusedError("its array has no dtype or no shape")
        if not 1 <= len(shape) <= MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
            raise _RefusedError(f"its array has {len(shape)} dimensions or a size that none can have")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise _RefusedError(
                f"its array claims the shape {_shown(shape)} of {dtype}, and {len(data)} bytes are there"
            )
        values: NDArray[Any] = np.frombuffer(data, dtype)
        if dtype.kind == "b" and (values.view(np.uint8) > 1).any():
            raise _RefusedError("its booleans are neither 0 nor 1")
        match self.order, self.axes:
            case "C" | "F" as order, None:
                return values.reshape(shape, order=order)
            case "K", tuple(axes):
                return values.reshape(shape).transpose(axes)  # raises ValueError unless they are a permutation
        raise _RefusedError("its array has an order of memory or axes that NumPy does not write")


def _reconstruct(kind: object, shape: object, _code: object) -> _Array:
    if (kind, shape) != ("ndarray", (0,)):
        raise _RefusedError("it makes an array as NumPy does not")
    return _Array()


_STAND_INS: dict[str, Any] = {
    "numpy.ndarray": "ndarray",  # passed to `_reconstruct`, and never called
    "numpy.dtype": _DType,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _Array,
    # Protocols 0 to 2 have no bytes: they are Latin-1 text, to be encoded, or a call without arguments.
    "_codecs.encode": lambda text, codec: (text, codec),
    "__builtin__.bytes": lambda: b"",
    "builtins.bytes": lambda: b"",
}


def _shown(text: object) -> str:
    """Without control characters, and short."""
    return ascii(str(text)[:SHOWN])[1:-1]
