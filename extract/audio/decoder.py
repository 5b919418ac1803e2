"""Decode in a separate process, which does not share Python's lock, and which a file may crash.

PyAV takes and releases the lock for each frame; two threads that decode MP3 are slower than one (measured).
"""

import contextlib
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cache.system.child_process import how_it_ended, parent_connection, start_child
from extract.audio.media import Waveform, read
from extract.errors import MediaError
from extract.settings import DEFAULT, DecodeOptions


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
        self._child, self._connection = start_child("extract.audio.decoder")
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
