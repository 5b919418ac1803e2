"""What an extraction waited for. Apart from `extract.clips`, so that reading it imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class PipelineStats:
    """What an extraction waited for, and what its batches were; filled while it runs.

    Attributes:
        decode: seconds in which no batch was ready, because its clips were not decoded.
        device: seconds in which the next batch was being computed.
        write: seconds in which the caller had what was yielded.
        samples: samples that were computed.
        padding: samples that were computed beside them, as padding.
        halved_to: seconds of audio to which batches were halved because memory ran out, or None.
    """

    decode: float = 0.0
    device: float = 0.0
    write: float = 0.0
    samples: int = 0
    padding: int = 0
    halved_to: float | None = None

    def become_sum_of(self, parts: "Sequence[PipelineStats]") -> None:
        """Take the sums over several processes."""
        for name in ("decode", "device", "write", "samples", "padding"):
            setattr(self, name, sum(getattr(part, name) for part in parts))
        self.halved_to = min((part.halved_to for part in parts if part.halved_to is not None), default=None)

    def waiting(self) -> str:
        """For example "decode 12 % · device 85 % · write 3 %"."""
        whole = max(1e-9, self.decode + self.device + self.write)
        return " · ".join(f"{name} {100 * getattr(self, name) / whole:.0f} %" for name in ("decode", "device", "write"))
