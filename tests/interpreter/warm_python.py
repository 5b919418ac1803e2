"""A Python interpreter for tests that starts in milliseconds: it is forked from a process that has torch imported.

Importing torch and transformers takes several seconds of a core, and hundreds of tests start a command in a process of
its own. The server imports once and forks for each request; `warm_client` takes the place of `python`. It hands over
its arguments, environment, folder and open files, passes SIGINT and SIGTERM on, and ends as the forked process ends, by
the same signal where it was one; if it is killed, so is the forked process.

    [python(), "-m", "emi", "cache", "info", …]  in place of  [sys.executable, "-m", "emi", "cache", "info", …]

Processes that such a process starts with `sys.executable`, such as those of `torchrun`, are forked too. It understands
`-m MODULE`, `-c CODE`, a script, `-P` and `-W ACTION`, and passes over other options. Tests that are about starting an
interpreter, or about settings that are read while torch is imported, start a real one.
"""

import ast
import atexit
import contextlib
import importlib
import multiprocessing.spawn
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

from warm_client import ADDRESS, MESSAGE_BYTES, is_open

PRELOADED = """emi.api emi.cli emi.prediction emi.finetuning.trainer emi.finetuning.export emi.paper_table.run
    train_head.sweep.sweep train_head.reports.figures train_head.protocols extract.run extract.audio.media
    extract.backbones.speech.encoder extract.backbones.silero.encoder extract.backbones.speech.trainable_transformer
    cache.derive.derived cache.exchange.exporting cache.exchange.importing
    transformers.models.wav2vec2.modeling_wav2vec2
    transformers.models.hubert.modeling_hubert transformers.models.wavlm.modeling_wavlm torchaudio scipy.signal
    scipy.stats matplotlib.figure matplotlib.backends.backend_svg optuna peft accelerate zarr h5py av rich.progress
    rich.live"""
_FILES = 64
_HIGH = 500
"""File descriptors from here on are out of the way of those that a process is given."""


def python() -> str:
    """Return the program that takes the place of `sys.executable`; the first call starts the server.

    Beside it lies `emi`, for shell scripts: put the folder on the PATH.
    """
    if ADDRESS not in os.environ:
        _start()
    return str(Path(os.environ[ADDRESS]).with_name("python"))


def _start() -> None:
    here = Path(__file__).parent
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    for name, more in (("python", ""), ("emi", "-m emi ")):
        client = shlex.join([sys.executable, "-I", "-S", str(here / "warm_client.py")])
        (folder / name).write_text(f'#!/bin/sh\nexec {client} {more}"$@"\n')
        (folder / name).chmod(0o755)
    address, log = folder / "socket", folder / "log"
    places = [str(here), *sys.path]
    code = f"import sys; sys.path[:0] = {places!r}; import warm_python; warm_python.serve({str(address)!r})"
    with log.open("wb") as out:
        server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    end = time.monotonic() + 200
    while not address.exists():
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the warm interpreter did not start: {log.read_text()}")
        time.sleep(0.05)
    os.environ[ADDRESS] = str(address)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)


def serve(address: str) -> None:
    """Import what tests need, then fork for every connection until the parent process is gone."""
    parent = os.getppid()
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of OpenMP's threads would not survive the fork
    for name in PRELOADED.split():
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    torch.set_num_threads(threads)
    if threading.active_count() > 1:  # OpenBLAS's own threads survive a fork, Python's do not
        raise RuntimeError(f"a fork would lose the threads {threading.enumerate()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MESSAGE_BYTES)
    listener.bind(address)
    listener.listen(64)
    listener.settimeout(1.0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend to a connection
    while os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> NoReturn:
    """Fork the process that was asked for, tell its number and how it ended; kill it when the other side is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    message, files, *_ = socket.recv_fds(connection, MESSAGE_BYTES, _FILES)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(message, files)
    for file in files:
        os.close(file)
    connection.send(str(pid).encode())
    threading.Thread(target=_kill_when_left, args=(connection, pid), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(str(status).encode())
    os._exit(0)


def _kill_when_left(connection: socket.socket, pid: int) -> None:
    if not connection.recv(1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become(message: bytes, files: list[int]) -> NoReturn:
    """Take over arguments, environment, folder and open files, run, and exit as an interpreter would."""
    arguments, environment, folder, numbers = ast.literal_eval(message.decode())
    high = [os.dup2(file, _HIGH + i, inheritable=False) for i, file in enumerate(files)]
    os.closerange(0, _HIGH)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
    os.closerange(_HIGH, _HIGH + len(high))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin, sys.stdout, sys.stderr = (_stream(number) for number in range(3))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tempfile.tempdir = None  # TMPDIR may be another
    sys.executable = python()
    multiprocessing.spawn.set_executable(sys.executable)
    if threads := environment.get("OMP_NUM_THREADS"):  # which is read while torch is imported
        sys.modules["torch"].set_num_threads(int(threads))
    code = 1
    try:
        _run(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _exit(code)


def _stream(number: int) -> Any:
    if not is_open(number):
        return None
    lines = 1 if number == 2 or os.isatty(number) else -1
    return open(number, "r" if number == 0 else "w", buffering=lines, encoding="utf-8", closefd=False)


def _exit(code: int) -> NoReturn:
    """As an interpreter does: threads are waited for, exit functions run, streams are written out."""
    with contextlib.suppress(BaseException):
        threading._shutdown()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code)


def _run(arguments: list[str]) -> None:
    sys.orig_argv = ["python", *arguments]
    sys.path[:0] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place not in sys.path]
    if "-P" not in arguments[:3]:
        sys.path.insert(0, "")
    while arguments[0].startswith("-") and arguments[0] not in ("-m", "-c", "-"):
        option, *arguments = arguments
        if option == "-W":
            action, *arguments = arguments
            warnings.simplefilter(action)
            sys.warnoptions.append(action)
    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        if not hasattr(sys.modules.get(rest[0]), "__path__"):
            sys.modules.pop(rest[0], None)  # it was imported before the fork, and runs as `__main__` now
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind in ("-c", "-"):
        program, *rest = rest if kind == "-c" else [sys.stdin.read(), *rest]
        sys.argv = [kind, *rest]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")
