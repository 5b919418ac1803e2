"""Memory does not grow with the number of clips; minutes long."""

import subprocess
import sys
import wave

import numpy as np
import pytest

EXTRACT = """
import sys, emi
emi.extract(sys.argv[1], sys.argv[2], backbone="silero")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_kb(tmp_path, count, container):
    folder = tmp_path / str(count)
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        with wave.open(str(folder / f"{i:05d}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((3000 * rng.standard_normal(8000)).astype("<i2").tobytes())
    command = [sys.executable, "-c", EXTRACT, str(folder), str(tmp_path / f"{count}.{container}")]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "h5"])
def test_ten_thousand_clips_need_the_memory_of_one_thousand(tmp_path, container):
    few, many = (peak_kb(tmp_path, count, container) for count in (1000, 10_000))
    print(f"peak memory, {container}: {few / 1024:.0f} MiB for 1,000 clips, {many / 1024:.0f} MiB for 10,000")
    assert many < 1.1 * few
