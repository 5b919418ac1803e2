"""A pool of threads that decode clips of a modality by themselves, or each through a process of its own.

A process does not share Python's lock, and a file may crash it. PyAV takes and releases the lock for each frame; two
threads that decode MP3 are slower than one (measured).
"""

import contextlib
import pickle
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from cache.paths import readable
from cache.sources import medium_of
from cache.system.child_process import how_it_ended, parent_connection, start_child
from extract.errors import MediaError
from extract.failures import Failure
from extract.modality.protocol import Item, Modality, Read
from extract.modality.registry import MODALITIES
from extract.settings import DEFAULT, DecodeOptions
from extract.sources import Source


class Decoders:
    """Threads that decode clips to items. Leaving this context manager ends the threads and their processes.

    Args:
        modality: of the clips.
        workers: number of threads.
        max_seconds: cut of each clip; None keeps clips whole.
        options: which part of each file is decoded.
        in_processes: whether each thread has a process read for it. Until the process has started, and where none can
            be started, the thread reads. The thread also finishes what was read, which releases Python's lock.
        describe: whether each item names its medium. A medium is described before it is decoded, so that a file that
            is replaced in the meantime counts as changed.
    """

    def __init__(
        self,
        modality: Modality,
        workers: int,
        max_seconds: float | None,
        options: DecodeOptions = DEFAULT,
        *,
        in_processes: bool,
        describe: bool = False,
    ) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._modality, self._read_here = modality, modality.reader()
        self._workers, self._max_seconds, self._in_processes = workers, max_seconds, in_processes
        self._options, self._describe = options, describe
        self._of_thread = threading.local()
        self._processes: list[Decoder] = []

    def submit(self, source: Source) -> "Future[Any]":
        """Decode a clip when a thread is free; the result is an item, or a `Failure` for any error."""
        return self._threads.submit(self._decode, source)

    def _decode(self, source: Source) -> "Item | Failure":
        try:
            if source.problem:
                raise MediaError(source.problem)
            medium = medium_of(source.path) if self._describe else None
            item = self._modality.finish(self._read(source), self._max_seconds)
            return replace(item, medium=medium)
        except MediaError as error:
            reason = str(error)
        except Exception as error:  # no file may stop the others
            reason = f"broke its decoder ({type(error).__name__}: {error})"
        return Failure(source.id, readable(str(source.path)), readable(reason))

    def _read(self, source: Source) -> Any:
        if self._in_processes:
            try:
                if not hasattr(self._of_thread, "decoder"):
                    self._of_thread.decoder = Decoder(self._modality.name)
                    self._processes.append(self._of_thread.decoder)
                decoder: Decoder = self._of_thread.decoder
                if decoder.ready():
                    return decoder.read(source, self._max_seconds, self._options)
            except (DecoderUnavailableError, OSError):  # no process can be started here
                self._in_processes = False
        return self._read_here(source, self._max_seconds, self._options)

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


class SharedDecoders:
    """Decoders for several pipelines over the same clips: each clip is decoded once, and kept until all have it.

    Args:
        decoders: that decode.
        uses: number of pipelines.
    """

    def __init__(self, decoders: Decoders, uses: int) -> None:
        self._decoders, self._uses = decoders, uses
        self._kept: dict[str, tuple[Future[Any], int]] = {}

    def submit(self, source: Source) -> "Future[Any]":
        """See `Decoders.submit`. All pipelines are run by one thread."""
        if source.id not in self._kept:
            self._kept[source.id] = self._decoders.submit(source), self._uses
        future, left = self._kept.pop(source.id)
        if left > 1:
            self._kept[source.id] = future, left - 1
        return future


class DecoderUnavailableError(Exception):
    """No process can be started here."""


class Decoder:
    """The parent's side of one decoding process, which is replaced when it dies. Not thread-safe.

    Args:
        modality: key in `MODALITIES`.
    """

    def __init__(self, modality: str = "audio") -> None:
        self._modality = modality
        self._start()

    def ready(self) -> bool:
        """Whether the process has started, which takes 0.3 s; `read` waits for it.

        Raises:
            DecoderUnavailableError: it died before it could read anything.
        """
        if not self._started and self._connection.poll():
            self._await_start()
        return self._started

    def read(self, source: Source, max_seconds: float | None, options: DecodeOptions = DEFAULT) -> Any:
        """Read a source as the modality's reader does.

        Raises:
            MediaError: the source cannot be read, or the process died while reading it.
            DecoderUnavailableError: see `ready`.
        """
        request = source, max_seconds, options
        self._await_start()
        try:
            self._connection.send(request)
        except ConnectionError:  # it died between two files
            self._restart()
            self._await_start()
            self._connection.send(request)
        try:
            reply = _receive(self._connection)
        except (EOFError, ConnectionError):
            ended = how_it_ended(self._child.wait())
            self._restart()
            raise MediaError(f"was being decoded when its process {ended}") from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._child.kill()
        self._child.wait()

    def _start(self) -> None:
        self._child, self._connection = start_child("extract.modality.decoding")
        self._started = False
        with contextlib.suppress(ConnectionError):  # it died: `_await_start` notices
            self._connection.send(self._modality)

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
    """Run in the child: read sources until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    connection = parent_connection()
    with contextlib.suppress(EOFError, ConnectionError):
        read = MODALITIES[connection.recv()].reader()
        connection.send("ready")
        while True:
            _send(connection, _answer(read, *connection.recv()))


def _answer(read: Read, source: Source, max_seconds: float | None, options: DecodeOptions) -> Any:
    try:
        return read(source, max_seconds, options)
    except Exception as error:  # no file may stop the others
        return error


def _send(connection: Connection, content: Any) -> None:
    """Send an object; the bytes of its arrays follow it, and are not copied."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    connection.send((head, [view.nbytes for view in views]))
    for view in views:
        if view.nbytes:
            connection.send_bytes(view)


def _receive(connection: Connection) -> Any:
    """Receive what `_send` sent."""
    head, sizes = connection.recv()
    arrays = [np.empty(size, np.uint8) for size in sizes]
    for array in arrays:
        if len(array):
            connection.recv_bytes_into(array.data)
    return pickle.loads(head, buffers=arrays)


if __name__ == "__main__":
    main()
