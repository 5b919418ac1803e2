"""Pickled arrays are read as NumPy reads them, and a pickle with anything else does nothing but raise."""

import contextlib
import os
import pickle
import pickletools
import struct
import tempfile
import tracemalloc
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache import CacheError
from cache.exchange.safe_pickle import CODES, UnsafePickleError, load_array

PROTOCOLS = range(6)
CODE_LIST = sorted(CODES)
ARRAY = np.arange(12, dtype=np.float32).reshape(4, 3)


def read(content: bytes) -> np.ndarray:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return load_array(Path(file.name))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit; unpickling may turn a foreign byte order into this machine's."""
    native = [x.astype(x.dtype.newbyteorder("=")) for x in (a, b)]
    return native[0].dtype == native[1].dtype and a.shape == b.shape and native[0].tobytes() == native[1].tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("code", CODE_LIST)
def test_every_dtype_order_and_protocol_is_read_as_numpy_reads_it(code, protocol):
    for byte_order in "<>":
        array = (np.arange(24).reshape(4, 6) % 2).astype(byte_order + code)
        read_only = array.copy()
        read_only.flags.writeable = False
        for variant in (array, np.asfortranarray(array), array.T, array[::2], array[:0], array[0], read_only):
            content = pickle.dumps(variant, protocol)
            assert same(read(content), pickle.loads(content))


@settings(max_examples=100, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from(CODE_LIST).map(np.dtype), hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
    ),
    protocol=st.sampled_from(PROTOCOLS),
    data=st.data(),
)
def test_any_array_with_any_order_of_axes_comes_back(array, protocol, data):
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    content = pickle.dumps(array, protocol)
    assert same(read(content), pickle.loads(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_of_numpy_1_are_read(protocol):
    content = pickle.dumps(ARRAY, protocol)
    length = struct.pack("<Q", 0)
    if protocol >= 4:  # the names are counted, and so is the frame around them
        at = content.index(b"\x95") + 1
        length = struct.pack("<Q", struct.unpack_from("<Q", content, at)[0] - 1)
        content = content[:at] + length + content[at + 8 :]
        for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
            content = content.replace(
                bytes([len(name)]) + name, bytes([len(name) - 1]) + name.replace(b"_core", b"core")
            )
    else:
        content = content.replace(b"numpy._core", b"numpy.core")
    assert b"_core" not in content
    assert same(read(content), ARRAY)


def test_a_path_is_read_and_named(tmp_path):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(ARRAY))
    assert same(load_array(file), ARRAY)
    file.write_bytes(pickle.dumps("text"))
    with pytest.raises(UnsafePickleError, match=r"a\.pkl: .*nothing of it was run.*numpy\.save") as caught:
        load_array(file)
    assert isinstance(caught.value, CacheError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(FileNotFoundError):
        load_array(tmp_path / "none.pkl")


# An assembler: each function gives the opcodes that leave one value on the stack.


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    return f"L{value}L\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


NDARRAY, DTYPE = name("numpy", "ndarray"), name("numpy", "dtype")
RECONSTRUCT = name("numpy._core.multiarray", "_reconstruct")
FROMBUFFER = name("numpy._core.numeric", "_frombuffer")
FALSE, TRUE, NONE = b"\x89", b"\x88", b"N"


def dtype(code: str = "f4", order: str = "<", tail: bytes = NONE * 3 + number(-1) * 2 + number(0), version: int = 3):
    return call(DTYPE, text(code), FALSE, TRUE) + tuple_of(number(version), text(order), tail) + b"b"


def array(shape: bytes, kind: bytes, fortran: bytes, content: bytes) -> bytes:
    empty = call(RECONSTRUCT, NDARRAY, tuple_of(number(0)), data(b"b"))
    return empty + tuple_of(number(1), shape, kind, fortran, content) + b"b"


def shaped(*sizes: int) -> bytes:
    return tuple_of(*(number(size) for size in sizes))


EIGHT = data(bytes(8))


def test_the_assembler_writes_what_numpy_writes():
    content = array(shaped(2, 1), dtype(), FALSE, EIGHT) + b"."
    assert same(pickle.loads(content), np.zeros((2, 1), np.float32))
    assert same(read(content), np.zeros((2, 1), np.float32))
    content = call(FROMBUFFER, EIGHT, dtype(), shaped(2, 1), text("F")) + b"."
    assert same(pickle.loads(content), read(content))


class Attack:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(canary: str) -> dict[str, bytes]:
    """Pickles that make a file at `canary` when they are unpickled."""
    code = f"open({canary!r}, 'w').close()"
    system = call(name("os", "system"), text(f"touch {canary}"))
    getattr_ = name("builtins", "getattr")
    found = {f"os.system, protocol {p}": pickle.dumps(Attack(os.system, f"touch {canary}"), p) for p in PROTOCOLS}
    found |= {
        "eval": pickle.dumps(Attack(eval, code)),
        "exec of protocol 0": call(name("__builtin__", "exec"), text(code)) + b".",
        "in an object array": pickle.dumps(np.array([Attack(eval, code), None], dtype=object)),
        "in a list of arrays": pickle.dumps([ARRAY, Attack(eval, code)]),
        "in the shape": array(tuple_of(system), dtype(), FALSE, EIGHT) + b".",
        "in the bytes": array(shaped(2), dtype(), FALSE, system) + b".",
        "beside the array, and dropped": system + b"0" + array(shaped(2), dtype(), FALSE, EIGHT) + b".",
        "beside the array, and kept": system + array(shaped(2), dtype(), FALSE, EIGHT) + b".",
        "getattr": call(
            call(getattr_, call(name("builtins", "__import__"), text("os")), text("system")), text(f"touch {canary}")
        )
        + b".",
        "a dotted name": b"\x80\x04"
        + text("shutil")
        + text("os.system")
        + b"\x93"
        + tuple_of(text(f"touch {canary}"))
        + b"R.",
        "an instance": b"(" + text(f"touch {canary}") + b"ios\nsystem\n.",
        "an object": b"(" + name("os", "system") + text(f"touch {canary}") + b"o.",
        "numpy's runstring": call(name("numpy.testing._private.utils", "runstring"), text(code), b"}") + b".",
        "numpy.save": call(name("numpy", "save"), text(f"{canary}.npy"), number(1)) + b".",
        "ndarray.tofile": array(shaped(2), dtype(), FALSE, EIGHT)
        + b"0"
        + call(call(getattr_, call(name("numpy", "zeros"), number(1)), text("tofile")), text(canary))
        + b".",
    }
    return found


NAMES = list(attacks("x"))


@pytest.mark.parametrize("attack", NAMES)
def test_no_attack_does_anything(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match="nothing of it was run"):
        read(attacks("canary")[attack])
    assert list(tmp_path.iterdir()) == []


def test_every_attack_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for attack in NAMES:
        with contextlib.suppress(Exception):  # some fail, after they struck
            pickle.loads(attacks("canary")[attack])
        struck = list(tmp_path.iterdir())
        assert struck, attack
        struck[0].unlink()


FORGERIES = {
    "object dtype": array(shaped(1), dtype("O8", "|", NONE * 3 + number(-1) * 2 + number(63)), FALSE, EIGHT),
    "object dtype, and a list": array(shaped(1), call(DTYPE, text("O8"), FALSE, TRUE), FALSE, b"]" + NONE + b"a"),
    "flags of objects on a float": array(
        shaped(1), dtype("f8", "<", NONE * 3 + number(-1) * 2 + number(63)), FALSE, EIGHT
    ),
    "item size and alignment": array(
        shaped(1), dtype("f8", "<", NONE * 3 + number(64) + number(1) + number(0)), FALSE, EIGHT
    ),
    "fields": array(
        shaped(1), dtype("f8", "<", NONE + tuple_of(text("a")) + b"}" + number(-1) * 2 + number(0)), FALSE, EIGHT
    ),
    "a subarray": array(
        shaped(1), dtype("f8", "<", tuple_of(dtype(), shaped(9)) + NONE * 2 + number(-1) * 2 + number(0)), FALSE, EIGHT
    ),
    "metadata": array(shaped(1), dtype("f8", "<", NONE * 3 + number(-1) * 2 + number(0) + b"}", 4), FALSE, EIGHT),
    "void": array(shaped(1), dtype("V8", "|"), FALSE, EIGHT),
    "text": array(shaped(1), dtype("U2"), FALSE, EIGHT),
    "dates": array(shaped(1), dtype("M8"), FALSE, EIGHT),
    "complex": array(shaped(1), dtype("c8"), FALSE, EIGHT),
    "long double": array(shaped(1), dtype("f16"), FALSE, data(bytes(16))),
    "no byte order": array(shaped(2), dtype("f4", "|"), FALSE, EIGHT),
    "no state of the dtype": array(shaped(1), call(DTYPE, text("f8"), FALSE, TRUE), FALSE, EIGHT),
    "a dtype made of fields": array(shaped(1), call(DTYPE, tuple_of(tuple_of(text("a"), text("f8")))), FALSE, EIGHT),
    "a dtype built twice": array(
        shaped(1),
        dtype("f8") + tuple_of(number(3), text(">"), NONE * 3, number(-1) * 2, number(0)) + b"b",
        FALSE,
        EIGHT,
    ),
    "an array built twice": array(shaped(2), dtype(), FALSE, EIGHT)
    + tuple_of(number(1), shaped(2), dtype(), FALSE, EIGHT)
    + b"b",
    "an array never built": call(RECONSTRUCT, NDARRAY, tuple_of(number(0)), data(b"b")),
    "an array of another type": call(RECONSTRUCT, name("numpy", "dtype"), tuple_of(number(0)), data(b"b")),
    "an array that starts with a size": call(RECONSTRUCT, NDARRAY, tuple_of(number(1 << 40)), data(b"b")),
    "ndarray called": call(NDARRAY, shaped(1 << 40)),
    "ndarray made new": NDARRAY + shaped(2) + b"\x81",
    "ndarray made new with keywords": NDARRAY + shaped(2) + b"}\x92",
    "an attribute set on a function": RECONSTRUCT
    + tuple_of(NONE, b"}" + text("__defaults__") + shaped(1) + b"s")
    + b"b",
    "a dimension too many": array(shaped(3, 1), dtype(), FALSE, EIGHT),
    "bytes too many": array(shaped(1), dtype(), FALSE, EIGHT),
    "a huge shape": array(shaped(1 << 40, 1 << 20), dtype(), FALSE, EIGHT),
    "a shape that overflows to the right size": array(shaped(1 << 62, 8), dtype("f4"), FALSE, data(b"")),
    "a huge shape of nothing": array(shaped(0, 1 << 62), dtype(), FALSE, data(b"")),
    "negative sizes": array(shaped(-1, -2), dtype(), FALSE, EIGHT),
    "a size that is a boolean": array(tuple_of(TRUE, number(2)), dtype(), FALSE, EIGHT),
    "a size that is text": array(tuple_of(text("2")), dtype(), FALSE, EIGHT),
    "no dimension": array(b")", dtype("f8"), FALSE, EIGHT),
    "33 dimensions": array(shaped(*[1] * 33), dtype("f8"), FALSE, EIGHT),
    "no shape": array(NONE, dtype("f8"), FALSE, EIGHT),
    "text for bytes": array(shaped(2), dtype(), FALSE, text("12345678")),
    "booleans of another value": array(shaped(8), dtype("b1", "|"), FALSE, data(b"\0\1\2\3\4\5\6\7")),
    "another memory order": call(FROMBUFFER, EIGHT, dtype(), shaped(2), text("A")),
    "axes that are no permutation": call(FROMBUFFER, EIGHT, dtype(), shaped(2, 1), text("K"), shaped(0, 0)),
    "axes that are text": call(FROMBUFFER, EIGHT, dtype(), shaped(2, 1), text("K"), tuple_of(text("a"), text("b"))),
    "a buffer that is elsewhere": call(FROMBUFFER, b"\x97", dtype(), shaped(2), text("C")),
    "a persistent id": array(shaped(2), dtype(), FALSE, b"Pelsewhere\n"),
    "a binary persistent id": array(shaped(2), dtype(), FALSE, text("elsewhere") + b"Q"),
    "an extension": array(shaped(2), dtype(), FALSE, b"\x82\x01"),
    "another codec": array(shaped(2), dtype(), FALSE, call(name("_codecs", "encode"), text("a" * 8), text("rot13"))),
    "a codec from elsewhere": array(shaped(2), dtype(), FALSE, call(name("_codecs", "lookup"), text("a" * 8))),
    "text beyond Latin-1": array(shaped(2), dtype(), FALSE, call(name("_codecs", "encode"), text("ж"), text("latin1"))),
    "bytes of a size": array(shaped(2), dtype(), FALSE, call(name("builtins", "bytes"), number(8))),
    "a NumPy scalar": pickle.dumps(np.float32(1))[:-1],
    "a 0-d array": pickle.dumps(np.array(1.0))[:-1],
    "a record array": pickle.dumps(np.zeros(2, [("a", "f4")]))[:-1],
    "a masked array": pickle.dumps(np.ma.masked_array([1.0], [True]))[:-1],
    "a list": pickle.dumps([1.0])[:-1],
    "a dict of an array": pickle.dumps({"frames": ARRAY})[:-1],
    "a number": number(1),
    "nothing": b"",
    "two arrays": pickle.dumps(ARRAY)[:-1] * 2,
    "more after the end": pickle.dumps(ARRAY) + pickle.dumps(ARRAY)[:-1],
    "a value that was never stored": b"h\x07",
    "a call without a function": b")R",
    "a tuple without a mark": b"t",
    "no name": NONE + NONE + b"\x93",
    "an opcode that does not exist": b"\xff",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_numpy_does_not_write_for_numbers_is_refused(forgery):
    with pytest.raises(UnsafePickleError):
        read(FORGERIES[forgery] + b".")


BOMBS = {
    "an index of the memo": NONE + b"r\xff\xff\xff\x7f.",
    "a long index of the memo": NONE + b"p99999999999999999999\n.",
    "a key of nested tuples": b"})" + b"\x85" * 200_000 + b"Ns.",
    "nested tuples": b")" + b"\x85" * 1_000_000 + b".",
    "nested lists": b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "marks": b"(" * 1_000_000 + b".",
    "tuples that double": b")" + b"h\0h\0\x86q\0" * 1000 + b".",
    "text encoded again and again": text("a" * 1_000_000)
    + b"q\0"
    + (name("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R") * 200
    + b".",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 40) + b"...",
    "a bytearray that is not there": b"\x96" + struct.pack("<Q", 1 << 62) + b"...",
    "text that is not there": b"\x8d" + struct.pack("<Q", 1 << 62) + b"...",
    "a number that is not there": b"\x8b" + struct.pack("<i", 1 << 30) + b"...",
    "a number of many digits": b"L" + b"9" * 1_000_000 + b"L\n.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_takes_neither_memory_nor_the_stack(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(UnsafePickleError):
            read(BOMBS[bomb])
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()


def test_the_refused_name_is_told_without_what_it_would_do_to_a_terminal():
    with pytest.raises(UnsafePickleError, match=r"asks for os\.system, which") as caught:
        read(call(name("os", "system"), text("ls")) + b".")
    assert "\n" not in str(caught.value)
    with pytest.raises(UnsafePickleError) as caught:
        read(b"\x80\x04" + text("\x1b[2J" + "м" * 500) + text("x") + b"\x93.")
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_anywhere_is_refused(protocol):
    content = pickle.dumps(ARRAY, protocol)
    for length in range(len(content)):
        with pytest.raises(UnsafePickleError):
            read(content[:length])


@settings(max_examples=300, deadline=None)
@given(
    protocol=st.sampled_from(PROTOCOLS),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
)
@example(protocol=0, changes=[(1, 92)])  # a backslash before a letter that escapes nothing
def test_a_changed_byte_gives_an_array_or_a_clean_error(protocol, changes):
    content = bytearray(pickle.dumps(ARRAY, protocol))
    for at, value in changes:
        content[at % len(content)] = value
    try:
        array = read(bytes(content))
    except UnsafePickleError:
        return
    assert array.nbytes <= len(content)


OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(OPCODES), st.binary(max_size=8)), max_size=40).map(b"".join))
def test_any_row_of_opcodes_is_refused(content):
    with pytest.raises(UnsafePickleError):
        read(content)
