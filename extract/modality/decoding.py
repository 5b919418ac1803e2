"""A pool of threads that decode by themselves, or each through a process of its own.

A process does not share Python's lock, and a file may crash it. PyAV takes and releases the lock for each frame; two
threads that decode MP3 are slower than one (measured).
"""

import contextlib
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cache.paths import readable
from cache.sources import medium_of
from cache.system.child_process import how_it_ended, parent_connection, start_child
from extract.audio.media import Waveform, decode, read
from extract.errors import MediaError
from extract.failures import Failure
from extract.settings import DEFAULT, DecodeOptions
from extract.sources import Source


class Decoders:
    """Threads that decode clips to waveforms. Leaving this context manager ends the threads and their processes.

    Args:
        workers: number of threads.
        max_seconds: cut of each clip.
        options: which part of each file is decoded.
        in_processes: whether each thread has a process decode for it. Until the process has started, and where none can
            be started, the thread decodes. The thread also resamples, which releases Python's lock.
        describe: whether each waveform names its medium. A medium is described before it is decoded, so that a file
            that is replaced in the meantime counts as changed.
    """

    def __init__(
        self,
        workers: int,
        max_seconds: float,
        options: DecodeOptions = DEFAULT,
        *,
        in_processes: bool,
        describe: bool = False,
    ) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._workers, self._max_seconds, self._in_processes = workers, max_seconds, in_processes
        self._options, self._describe = options, describe
        self._of_thread = threading.local()
        self._processes: list[Decoder] = []

    def submit(self, source: Source) -> "Future[Waveform | Failure]":
        """Decode a clip when a thread is free; the result is a `Failure` for any error."""
        return self._threads.submit(self._decode, source)

    def _decode(self, source: Source) -> "Waveform | Failure":
        try:
            if source.problem:
                raise MediaError(source.problem)
            medium = medium_of(source.path) if self._describe else None
            return replace(self._read(source), medium=medium)
        except MediaError as error:
            reason = str(error)
        except Exception as error:  # no file may stop the others
            reason = f"broke its decoder ({type(error).__name__}: {error})"
        return Failure(source.id, readable(str(source.path)), readable(reason))

    def _read(self, source: Source) -> Waveform:
        if self._in_processes:
            try:
                if not hasattr(self._of_thread, "decoder"):
                    self._of_thread.decoder = Decoder()
                    self._processes.append(self._of_thread.decoder)
                decoder: Decoder = self._of_thread.decoder
                if decoder.ready():
                    return decoder.read(source.path, self._max_seconds, self._options).at_16_khz(self._max_seconds)
            except (DecoderUnavailableError, OSError):  # no process can be started here
                self._in_processes = False
        return decode(source.path, self._max_seconds, self._options)

    def started(self) -> bool:
        """Whether all processes have started."""
        return not self._in_processes or (
            len(self._processes) == self._workers and all(process.ready() for process in self._processes)
        )

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


class DecoderUnavailableError(Exception):
    """No process can be started here."""


class Decoder:
    """The parent's side of one decoding process, which is replaced when it dies. Not thread-safe."""

    def __init__(self) -> None:
        self._start()

    def ready(self) -> bool:
        """Whether the process has started, which takes 0.3 s; `read` waits for it.

        Raises:
            DecoderUnavailableError: it died before it could read anything.
        """
        if not self._started and self._connection.poll():
            self._await_start()
        return self._started

    def read(self, path: Path, max_seconds: float, options: DecodeOptions = DEFAULT) -> Waveform:
        """Read a file as `extract.audio.media.read` does.

        Raises:
            MediaError: the file cannot be read, or the process died while reading it.
            DecoderUnavailableError: see `ready`.
        """
        request = path, max_seconds, options
        self._await_start()
        try:
            self._connection.send(request)
        except ConnectionError:  # it died between two files
            self._restart()
            self._await_start()
            self._connection.send(request)
        try:
            reply, count = self._connection.recv()
            samples = np.empty(count, np.float32)
            if not isinstance(reply, Exception):
                self._connection.recv_bytes_into(samples.view(np.uint8).data)
        except (EOFError, ConnectionError):
            ended = how_it_ended(self._child.wait())
            self._restart()
            raise MediaError(f"was being decoded when its process {ended}") from None
        if isinstance(reply, Exception):
            raise reply
        return replace(reply, samples=samples)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._child.kill()
        self._child.wait()

    def _start(self) -> None:
        self._child, self._connection = start_child("extract.audio.decoding")
        self._started = False

    def _restart(self) -> None:
        self.close()
        self._start()

    def _await_start(self) -> None:
        if not self._started:
            try:
                self._connection.recv()
            except (EOFError, ConnectionError):
                raise DecoderUnavailableError(how_it_ended(self._child.wait())) from None
            self._started = True


def main() -> None:
    """Run in the child: read files until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    connection = parent_connection()
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send("ready")
        while True:
            _answer(connection, *connection.recv())


def _answer(connection: Connection, path: Path, max_seconds: float, options: DecodeOptions) -> None:
    try:
        waveform = read(path, max_seconds, options)
    except Exception as error:  # no file may stop the others
        connection.send((error, 0))
        return
    connection.send((replace(waveform, samples=waveform.samples[:0]), len(waveform.samples)))
    connection.send_bytes(waveform.samples.view(np.uint8).data)


if __name__ == "__main__":
    main()
