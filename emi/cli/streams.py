"""The standard streams of a command: opened where the caller closed them; how failures to write are reported."""

import contextlib
import errno
import os
import sys

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
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for the whole process
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
    """Return a sentence that says that a disk or the standard output is full; None where the error is another."""
    full = next((one for one in _causes(error) if _is_full(one)), None)
    if full is None:
        return None
    try:
        write_out()
    except StandardOutputError as error:
        return str(error)
    place, reason = getattr(full, "filename", None), getattr(full, "strerror", None)
    return (
        f"{place or 'a file, or the standard output,'} could not be written ({reason or 'No space left on device'}); "
        "make room, then run the same command again"
    )


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(text in str(error) for text in _FULL_TEXTS)


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error, and those that led to it."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain
