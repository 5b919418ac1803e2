"""A pool of decoders: threads that decode by themselves, or each through its own process (`decoder`)."""

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
