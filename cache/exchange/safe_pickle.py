"""Read a NumPy array out of a pickle without unpickling it: no name in the file is ever looked up or called.

The features that come with Hume-Vidmimic2 are pickles, and unpickling runs code. Answering `find_class` strictly is not
enough: on Python 3.11 a `pickle.Unpickler` that admits nothing still takes 4 GB for a file of seven bytes (an index of
its memo), overflows the C stack on a dict key of 200,000 nested tuples, and lets BUILD set attributes of whatever
`find_class` answers; and NumPy trusts the flags in a pickled dtype. So `pickletools` only parses the file, and a small
machine follows the few opcodes with which NumPy 1 and 2 write a numeric array, in protocols 0 to 5.
"""

import enum
import io
import math
import os
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheError

CODES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())
"""Type codes that are read; all of them mean the same on every machine."""
MAX_OPCODES = 1000
"""NumPy needs under 200 even for 32 dimensions; this bounds time, nesting, and what a file can make of its bytes."""
MAX_DIMENSIONS = 32
SHOWN = 80  # characters of a hostile file that an error may repeat


class UnsafePickleError(CacheError, ValueError):
    """A pickle that is damaged, or that asks for anything but one array of numbers; nothing of it was run."""


class _Name(enum.Enum):
    """What a name in a pickle stands for: a mark for the machine, never the function itself."""

    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    RECONSTRUCT = enum.auto()
    FROMBUFFER = enum.auto()
    ENCODE = enum.auto()
    BYTES = enum.auto()


_NAMES = {
    ("numpy", "ndarray"): _Name.NDARRAY,
    ("numpy", "dtype"): _Name.DTYPE,
    ("numpy.core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _Name.FROMBUFFER,  # protocol 5
    ("numpy._core.numeric", "_frombuffer"): _Name.FROMBUFFER,
    ("_codecs", "encode"): _Name.ENCODE,  # protocols 0 to 2 have no bytes: they are Latin-1 text, to be encoded
    ("__builtin__", "bytes"): _Name.BYTES,  # … or a call without arguments, where there are none
    ("builtins", "bytes"): _Name.BYTES,
}
_PUSH = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_MARK = object()


@dataclass(slots=True, eq=False)
class _DType:
    """A dtype: known by its code until BUILD brings the byte order."""

    code: str
    dtype: np.dtype[Any] | None = None


@dataclass(slots=True, eq=False)
class _Array:
    """An array: empty until BUILD brings shape, dtype and bytes."""

    values: NDArray[Any] | None = None


class _RefusedError(Exception):
    """Why a pickle is not read."""


def load_array(file: str | os.PathLike[str] | BinaryIO) -> NDArray[Any]:
    """Read the one array that a pickle of any protocol holds.

    Every byte of the array has to be in the file, so memory is bounded by two or three times its size.

    Args:
        file: a path, or a binary file, which is read to its end.

    Returns:
        An array of one to 32 dimensions of integers, floats or booleans in the byte and memory order of the file;
        it may be read-only.

    Raises:
        UnsafePickleError: damaged, or anything but one array of numbers; names the file and what it asked for.
        OSError: the file cannot be opened or read.
    """
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return _load(opened, os.fstat(opened.fileno()).st_size, os.fspath(file))
    content = file.read()
    return _load(io.BytesIO(content), len(content), str(getattr(file, "name", "the pickle")))


def _load(file: BinaryIO, size: int, where: str) -> NDArray[Any]:
    machine = _Machine(size)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(_Bounded(file, size))):  # type: ignore[arg-type]
            if count == MAX_OPCODES:
                raise _RefusedError(f"it has more than {MAX_OPCODES} steps, and an array has not")
            machine.step(opcode.name, argument)
        if file.read(1):
            raise _RefusedError("more data follow its first object")
        return machine.result()
    except _RefusedError as error:
        raise UnsafePickleError(
            f"{where}: {error}; nothing of it was run. Save the array itself with `numpy.save` and import that"
        ) from None
    except (ValueError, TypeError, LookupError, OverflowError, MemoryError, Warning) as error:
        # of pickletools and NumPy; of an escape that is none, pickletools warns, which Python may be told to raise
        raise UnsafePickleError(
            f"{where}: not an intact pickle of an array ({_shown(error)}); nothing of it was run. Copy it again"
        ) from None


class _Bounded:
    """Refuses to read more than a file holds: no length that is only claimed gets memory."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.readline = file.readline
        self._read, self._size = file.read, size

    def read(self, count: int) -> bytes:
        if count > self._size:
            raise ValueError(f"{count} bytes are announced in a file of {self._size}")
        return self._read(count)


class _Machine:
    """The stack and the memo of a pickle, and what NumPy's handful of functions do with them."""

    def __init__(self, size: int) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._encodable = size  # text is encoded once: a file must not multiply its own bytes

    def step(self, opcode: str, argument: Any) -> None:
        """Follow one opcode."""
        stack = self._stack
        if opcode in _PUSH:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            stack.append(tuple(stack.pop() for _ in range(_TUPLES[opcode]))[::-1])
        elif opcode in _PUTS:
            self._memo[argument] = stack[-1]
        elif opcode in _GETS:
            stack.append(self._memo[argument])
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode == "TUPLE":
            mark = len(stack) - 1 - stack[::-1].index(_MARK)
            stack[mark:] = [tuple(stack[mark + 1 :])]
        elif opcode == "GLOBAL":
            stack.append(_named(*argument.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_named(module, name))
        elif opcode == "REDUCE":
            arguments = stack.pop()
            stack.append(self._call(stack.pop(), arguments))
        elif opcode == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise _RefusedError(f"it holds something that is no array of numbers (opcode {opcode})")

    def result(self) -> NDArray[Any]:
        """The array that was left on the stack."""
        match self._stack:
            case [_Array(values=np.ndarray() as values)]:
                return values
        raise _RefusedError("it does not hold one array")

    def _call(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case _Name.RECONSTRUCT, (_Name.NDARRAY, (0,), b"b"):
                return _Array()
            case _Name.DTYPE, (str(code), 0, 1) if code in CODES:  # False and True, not to align, to copy
                return _DType(code)
            case _Name.DTYPE, (str(code), *_):
                raise _RefusedError(f"its dtype {_shown(code)} is not one of numbers")
            case _Name.FROMBUFFER, (data, _DType(dtype=dtype), shape, "C" | "F" as order):
                return _Array(_array(data, dtype, shape, order))
            case _Name.FROMBUFFER, (data, _DType(dtype=dtype), shape, "K", tuple(axes)):
                values = _array(data, dtype, shape, "C")
                return _Array(values.transpose(axes))  # raises ValueError unless they are a permutation
            case _Name.ENCODE, (str(text), "latin1"):
                self._encodable -= len(text)
                if self._encodable < 0:
                    raise _RefusedError("it encodes more text than it has")
                return text.encode("latin1")
            case _Name.BYTES, ():
                return b""
        raise _RefusedError("it calls a function of NumPy as NumPy does not")


def _named(module: Any, name: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise _RefusedError("it asks for a name that is not text")
    if (module, name) not in _NAMES:
        raise _RefusedError(f"it asks for {_shown(f'{module}.{name}')}, which no array of numbers needs")
    return _NAMES[module, name]


def _build(target: Any, state: Any) -> None:
    match target, state:
        case _DType(code=code, dtype=None), (3, "<" | ">" | "|" as order, None, None, None, -1, -1, 0):
            if (order == "|") != code.endswith("1"):
                raise _RefusedError(f"its byte order {order} does not go with its dtype {code}")
            target.dtype = np.dtype(order + code)
        case _Array(values=None), (1, shape, _DType(dtype=dtype), 0 | 1 as fortran, data):
            target.values = _array(data, dtype, shape, "F" if fortran else "C")
        case _:
            raise _RefusedError("the state of its dtype or array is not one that NumPy writes for numbers")


def _array(data: Any, dtype: np.dtype[Any] | None, shape: Any, order: Any) -> NDArray[Any]:
    if dtype is None or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise _RefusedError("its array has no dtype, no bytes, or no shape")
    if not 1 <= len(shape) <= MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise _RefusedError(f"its array has {len(shape)} dimensions or a size that none can have")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise _RefusedError(f"its array claims the shape {_shown(shape)} of {dtype}, and {len(data)} bytes are there")
    values = np.frombuffer(data, dtype)
    if dtype.kind == "b" and (values.view(np.uint8) > 1).any():
        raise _RefusedError("its booleans are neither 0 nor 1")
    return values.reshape(shape, order=order)


def _shown(text: object) -> str:
    """Without control characters, and short."""
    return ascii(str(text)[:SHOWN])[1:-1]
