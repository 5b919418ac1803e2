"""The parts of `benchmarks/on_gpu.py`, in the order in which they run: first whether results are right, then speed.

To add a part, write a function of a `Setup` and a `Tell` in a file of its own and add its line here. It tells a row
for each thing it measures; a row with "passed" false, or an exception, fails the part and no other.
"""

from benchmarks.gpu_parts import (
    extraction,
    finetuning,
    heads,
    machine,
    one_device,
    parity,
    resume,
    sweeping,
)
from benchmarks.gpu_parts.harness import Part, Setup, Tell

__all__ = ["PARTS", "Part", "Setup", "Tell"]

PARTS = (
    Part(name="machine", measure=machine.measure, seconds=45),
    Part(name="parity", measure=parity.measure, seconds=110),
    Part(name="resume", measure=resume.measure, seconds=90),
    Part(name="extraction", measure=extraction.measure, seconds=90),
    Part(name="finetuning", measure=finetuning.measure, seconds=70),
    Part(name="heads", measure=heads.measure, seconds=80),
    Part(name="sweep", measure=sweeping.measure, seconds=60),
    Part(name="one device", measure=one_device.measure, seconds=75),
)
"""Their time limits may add up to more than the whole has: each gets what the ones before it have left."""
