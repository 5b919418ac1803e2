"""Decode in a process of its own: Python's lock is not shared, and a file that crashes FFmpeg takes nothing along.

Each frame that PyAV decodes takes and lets go of the lock; two threads that decode mp3 are slower than one (measured).
"""

import contextlib
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from extract.child import how_it_ended, start_child
from extract.errors import MediaError
from extract.media import Recording, read


class Decoder:
    """The parent's side of one decoding process, started when first used and again after it died. Not thread-safe."""

    def __init__(self) -> None:
        self._child, self._connection = start_child("extract.decoder")
        self._ready = False

    def ready(self) -> bool:
        """Whether the process has started, which takes 0.3 s; `read` waits for it."""
        if not self._ready and self._connection.poll():
            self._await_start()
        return self._ready

    def _await_start(self) -> None:
        with contextlib.suppress(EOFError, ConnectionError):  # `read` reports a process that died
            self._connection.recv()
        self._ready = True

    def read(self, path: Path, max_seconds: float) -> Recording:
        """As `extract.media.read`.

        Raises:
            MediaError: the file cannot be read, or the process died over it.
        """
        if not self._ready:
            self._await_start()
        try:
            self._connection.send((path, max_seconds))
            reply = self._connection.recv()
            if isinstance(reply, Exception):
                raise reply
            count, rate, seconds = reply
            samples = np.empty(count, np.float32)
            self._connection.recv_bytes_into(samples.view(np.uint8).data)
        except (EOFError, ConnectionError):
            ended = how_it_ended(self._child.wait())
            self.close()
            self.__init__()  # type: ignore[misc]
            raise MediaError(f"was being decoded when its process {ended}") from None
        return Recording(samples, rate, seconds)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._child.kill()
        self._child.wait()


def main() -> None:
    """The child's side: read files until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says when to end
    connection = Connection(int(sys.argv[1]))
    connection.send("ready")
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            path, max_seconds = connection.recv()
            try:
                recording = read(path, max_seconds)
            except Exception as error:  # whatever one file does, the next can be read
                connection.send(error)
                continue
            connection.send((len(recording.samples), recording.rate, recording.seconds))
            connection.send_bytes(recording.samples.view(np.uint8).data)


if __name__ == "__main__":
    main()
