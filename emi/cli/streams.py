"""The standard streams of a command: there even where the caller closed them, and how their failures are reported."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from cache.errors import EmiError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
"""What libraries say of a full disk that raise errors of their own (safetensors, pyarrow)."""


class StandardOutputError(EmiError, OSError):
    """The standard output cannot be written."""


def open_closed_streams() -> None:
    """Connect closed standard streams to the null device.

    Python has None for a stream that was closed by the caller (`2>&-`). Worse, the next file to be opened would get its
    number, and what a library or a child process prints would be written into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole process
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are not UTF-8


def say(text: str) -> None:
    """Print a line to the standard error, which may be full or gone itself."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def write_out() -> None:
    """Flush the standard output; where that fails, what it still held is dropped.

    Raises:
        BrokenPipeError: nobody reads it any longer.
        StandardOutputError: it is full.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):
            os.dup2(null, sys.stdout.fileno())  # or Python tries again when it ends, and complains
        os.close(null)
        if isinstance(error, BrokenPipeError):
            raise
        raise StandardOutputError(
            f"the standard output cannot be written ({error.strerror}); send it elsewhere, and run the command again"
        ) from error


def why_not_written(error: BaseException) -> str | None:
    """Say in a sentence that a disk or the standard output is full; None where the error is another."""
    full = next((one for one in _causes(error) if _is_full(one)), None)
    if full is None:
        return None
    try:
        write_out()
    except StandardOutputError as error:
        return str(error)
    place = (full.filename if isinstance(full, OSError) else None) or "a file, or the standard output,"
    reason = (full.strerror if isinstance(full, OSError) else None) or "No space left on device"
    return f"{place} could not be written ({reason}); make room, then run the same command again"


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(text in str(error) for text in _FULL_TEXTS)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
