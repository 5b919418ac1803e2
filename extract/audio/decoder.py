"""Decode in a process of its own: Python's lock is not shared, and a file that crashes FFmpeg takes nothing along.

Each frame that PyAV decodes takes and lets go of the lock; two threads that decode mp3 are slower than one (measured).
"""

import contextlib
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cache.system.child_process import how_it_ended, parent_connection, start_child
from extract.audio.media import Recording, read
from extract.errors import MediaError
from extract.settings import DEFAULT, DecodeOptions


class DecoderUnavailableError(Exception):
    """The process cannot be started here; decode in this one."""


class Decoder:
    """The parent's side of one decoding process, replaced when it dies. Not thread-safe."""

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

    def read(self, path: Path, max_seconds: float, options: DecodeOptions = DEFAULT) -> Recording:
        """As `extract.audio.media.read`.

        Raises:
            MediaError: the file cannot be read, or the process died over it.
            DecoderUnavailableError: see `ready`.
        """
        self._await_start()
        try:
            self._connection.send((path, max_seconds, options))
        except ConnectionError:  # it died with nothing in hand
            self._restart()
            self._await_start()
            self._connection.send((path, max_seconds, options))
        samples = np.empty(0, np.float32)
        try:
            reply = self._connection.recv()
            if not isinstance(reply, Exception):
                samples = np.empty(reply[0], np.float32)
                self._connection.recv_bytes_into(samples.view(np.uint8).data)
        except (EOFError, ConnectionError):
            ended = how_it_ended(self._child.wait())
            self._restart()
            raise MediaError(f"was being decoded when its process {ended}") from None
        if isinstance(reply, Exception):
            raise reply
        return Recording(samples, *reply[1:])

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._child.kill()
        self._child.wait()

    def _start(self) -> None:
        self._child, self._connection = start_child("extract.audio.decoder")
        self._started = False

    def _restart(self) -> None:
        self.close()
        self._start()

    def _await_start(self) -> None:
        if self._started:
            return
        try:
            self._connection.recv()
        except (EOFError, ConnectionError):
            raise DecoderUnavailableError(how_it_ended(self._child.wait())) from None
        self._started = True


def main() -> None:
    """The child's side: read files until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says when to end
    connection = parent_connection()
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send("ready")
        while True:
            _answer(connection, *connection.recv())


def _answer(connection: Connection, path: Path, max_seconds: float, options: DecodeOptions) -> None:
    try:
        recording = read(path, max_seconds, options)
    except Exception as error:  # whatever one file does, the next can be read
        connection.send(error)
        return
    about = (recording.rate, recording.seconds, recording.track, recording.cut_off)
    connection.send((len(recording.samples), *about))
    connection.send_bytes(recording.samples.view(np.uint8).data)


if __name__ == "__main__":
    main()
