"""A pool of decoders: threads that decode themselves, or each through a process of its own (`extract.decoder`)."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from extract.decoder import Decoder, DecoderUnavailableError
from extract.errors import MediaError
from extract.failures import Failure
from extract.media import Waveform, decode
from extract.sources import Source


class Decoders:
    """Threads that turn sources into waveforms. A context manager: leaving it ends the threads and their processes.

    Args:
        workers: threads.
        max_seconds: cut of each clip.
        in_processes: whether each thread has a process decode for it; until that has started, and where none can be
            started, the thread decodes itself. Resampling, which frees Python's lock, stays with the thread.
    """

    def __init__(self, workers: int, max_seconds: float, *, in_processes: bool) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._workers, self._max_seconds, self._in_processes = workers, max_seconds, in_processes
        self._own = threading.local()
        self._processes: list[Decoder] = []

    def submit(self, source: Source) -> "Future[Waveform | Failure]":
        """Decode in turn; a clip that cannot be decoded is a `Failure`, whatever went wrong."""
        return self._threads.submit(self._decode, source)

    def _decode(self, source: Source) -> "Waveform | Failure":
        try:
            if self._in_processes:
                try:
                    if (decoder := self._decoder()).ready():
                        return decoder.read(source.path, self._max_seconds).waveform(self._max_seconds)
                except (DecoderUnavailableError, OSError):  # no processes to be had here
                    self._in_processes = False
            return decode(source.path, self._max_seconds)
        except MediaError as error:
            return Failure(source.id, str(source.path), str(error))
        except Exception as error:  # whatever one file does, the others go on
            return Failure(source.id, str(source.path), f"broke its decoder ({type(error).__name__}: {error})")

    def _decoder(self) -> Decoder:
        """This thread's own."""
        if not hasattr(self._own, "decoder"):
            self._own.decoder = Decoder()
            self._processes.append(self._own.decoder)
        decoder: Decoder = self._own.decoder
        return decoder

    def started(self) -> bool:
        """Whether every process that there will be has been started."""
        return not self._in_processes or (
            len(self._processes) == self._workers and all(process.ready() for process in self._processes)
        )

    def cancel(self) -> None:
        """Drop what has not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()
