"""Standard streams that are closed, full or left by their reader, and full disks: a sentence at most, no traceback."""

import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

import emi
from cache import open_cache
from emi.cli import _sentence
from emi.cli.streams import StandardOutputError, why_not_written

EMI = f"{sys.executable} -m emi"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, timeout=120, check=False, env=os.environ | environment
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_command_works_with_closed_streams(closed, tmp_path):
    done = shell(f"{EMI} --version {closed}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if ">&- " in f"{closed} " and closed != "2>&-" else shell(f"{EMI} --version").stdout)
    assert shell(f"{EMI} cache info {tmp_path}/none.zarr {closed}").returncode == 2


def test_what_is_printed_is_written_into_no_file_that_took_the_number_of_a_closed_stream(labelled, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a.wav").hardlink_to(labelled / "audio/00000.wav")
    (tmp_path / "m/bad.wav").touch()
    done = shell(f"cd {tmp_path} && {EMI} extract m --cache c.h5 <&- >&- 2>&-")
    assert done.returncode == 1  # for the clip that cannot be read
    assert open_cache(tmp_path / "c.h5").ids == ["a"]
    assert (tmp_path / "failures.csv").read_text().startswith("id,path,reason,cache\nbad,")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--version", "--help"])
def test_a_full_standard_output_is_one_sentence(command, unbuffered):
    done = shell(f"{EMI} {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("emi: ")
    assert "tandard output" in line
    assert "No space left on device" in line


def test_a_full_standard_error_hides_the_sentence_and_not_the_exit_code(tmp_path):
    assert shell(f"{EMI} cache info {tmp_path}/none.zarr 2> /dev/full").returncode == 2


def test_a_reader_that_leaves_is_no_error_to_speak_of():
    done = shell(f"{EMI} --help | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout in (b"0\n", b"1\n")
    assert done.stderr == b""


class DiskError(Exception):
    """Raised by a library that has errors of its own."""


def test_a_full_disk_is_recognised_behind_the_errors_of_libraries(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", "last.pt")
    assert str(why_not_written(full)).startswith("last.pt could not be written (No space left on device); make room")
    of_torch = RuntimeError("unexpected pos 640 vs 598")
    of_torch.__context__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert "(Disk quota exceeded)" in str(why_not_written(of_torch))
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert "(No space left on device)" in str(why_not_written(DiskError(text)))
    assert why_not_written(DiskError("something else")) is None


def test_an_error_of_the_system_without_a_file_is_a_sentence_and_a_fault_of_the_program_is_none():
    assert "(Input/output error)" in str(_sentence(OSError(errno.EIO, "Input/output error")))
    assert _sentence(ValueError("x")) is None
    assert _sentence(StandardOutputError("the standard output")) == "the standard output"


@pytest.mark.parametrize("room", [0, 20_000])
def test_training_on_a_full_disk_is_a_sentence_and_goes_on_once_there_is_room(
    tiny_disk, labelled, labelled_cache, room
):
    ballast, out = tiny_disk / "ballast", tiny_disk / "run"
    ballast.write_bytes(bytes((4 << 20) - room // 4096 * 4096))
    files = (labelled_cache, labelled / "train.csv", labelled / "valid.csv", out)
    settings = {"epochs": 1, "head": "mean"}
    with pytest.raises((OSError, RuntimeError, SafetensorError)) as caught:
        emi.train_head(*files, **settings)
    assert "No space left on device" in str(_sentence(caught.value))
    assert not list(tiny_disk.rglob("*.tmp"))
    ballast.unlink()
    assert emi.train_head(*files, **settings).best_epoch == 1
