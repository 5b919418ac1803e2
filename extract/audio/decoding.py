"""A pool of decoders: threads that decode themselves, or each through a process of its own (`decoder`)."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from cache.paths import readable
from cache.sources import medium_of
from extract.audio.decoder import Decoder, DecoderUnavailableError
from extract.audio.media import Waveform, decode
from extract.errors import MediaError
from extract.failures import Failure
from extract.settings import DEFAULT, DecodeOptions
from extract.sources import Source


class Decoders:
    """Threads that turn sources into waveforms. A context manager: leaving it ends the threads and their processes.

    Args:
        workers: threads.
        max_seconds: cut of each clip.
        options: what of each file is decoded.
        describe: whether each waveform says which medium it is of; taken before it is decoded, so that a file that is
            replaced meanwhile passes for changed.
        in_processes: whether each thread has a process decode for it; until that has started, and where none can be
            started, the thread decodes itself. Resampling, which frees Python's lock, stays with the thread.
    """

    def __init__(
        self,
        workers: int,
        max_seconds: float,
        options: DecodeOptions | None = None,
        *,
        in_processes: bool,
        describe: bool = False,
    ) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._workers, self._max_seconds, self._in_processes = workers, max_seconds, in_processes
        self._options = [] if options in (None, DEFAULT) else [options]
        self._describe = describe
        self._own = threading.local()
        self._processes: list[Decoder] = []

    def submit(self, source: Source) -> "Future[Waveform | Failure]":
        """Decode in turn; a clip that cannot be decoded is a `Failure`, whatever went wrong."""
        return self._threads.submit(self._decode, source)

    def _decode(self, source: Source) -> "Waveform | Failure":
        medium = medium_of(source.path) if self._describe else None
        decoded = self._decode_undescribed(source)
        return replace(decoded, medium=medium) if isinstance(decoded, Waveform) else decoded

    def _decode_undescribed(self, source: Source) -> "Waveform | Failure":
        path = readable(str(source.path))
        if source.problem:
            return Failure(source.id, path, source.problem)
        try:
            if self._in_processes:
                try:
                    if (decoder := self._decoder()).ready():
                        recording = decoder.read(source.path, self._max_seconds, *self._options)
                        return recording.waveform(self._max_seconds)
                except (DecoderUnavailableError, OSError):  # no processes to be had here
                    self._in_processes = False
            return decode(source.path, self._max_seconds, *self._options)
        except MediaError as error:
            return Failure(source.id, path, readable(str(error)))
        except Exception as error:  # whatever one file does, the others go on
            return Failure(source.id, path, readable(f"broke its decoder ({type(error).__name__}: {error})"))

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
