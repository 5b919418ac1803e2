"""Times of an extraction. A module of its own, because importing `extract.clips` imports torch."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class PipelineStats:
    """Time that an extraction waited for each stage, and the sizes of its batches; filled while it runs.

    Attributes:
        decode: seconds in which no batch was ready, because clips were being decoded.
        device: seconds in which the next batch was being computed.
        write: seconds in which the caller stored the results.
        computed: cost of the clips that were computed (`Modality.cost`: samples of audio).
        padding: cost of the padding that was computed.
        halved_to: seconds of clips in a batch after batches were halved because memory ran out, or None.
    """

    decode: float = 0.0
    device: float = 0.0
    write: float = 0.0
    computed: int = 0
    padding: int = 0
    halved_to: float | None = None

    @contextlib.contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time until the context is left to a stage: "decode", "device" or "write"."""
        started = time.monotonic()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.monotonic() - started)

    def become_sum_of(self, parts: "Sequence[PipelineStats]") -> None:
        """Become the sum over several processes."""
        for name in ("decode", "device", "write", "computed", "padding"):
            setattr(self, name, sum(getattr(part, name) for part in parts))
        self.halved_to = min((part.halved_to for part in parts if part.halved_to is not None), default=None)

    def waiting(self) -> str:
        """Return the stages' shares of the time, as in "decode 12 % · device 85 % · write 3 %"."""
        whole = max(1e-9, self.decode + self.device + self.write)
        return " · ".join(f"{name} {100 * getattr(self, name) / whole:.0f} %" for name in ("decode", "device", "write"))
