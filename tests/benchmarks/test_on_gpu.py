"""The GPU's benchmark runs on a CPU, and a part that goes wrong costs itself alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAMILIES = [
    "audEERING's shape",
    *(f"{family}, {norm}" for family in ("wav2vec 2.0", "HuBERT", "WavLM") for norm in ("group", "layer")),
]


@pytest.mark.timeout(1200)
def test_every_part_passes_on_a_cpu_with_tiny_models(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "on_gpu.py"), "--device", "cpu", "--quick", "--patience", "6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # many small processes, often more than cores
    done = subprocess.run(
        [*command, "--json", "gpu.json"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    parts = {part["name"]: part for part in json.loads((tmp_path / "gpu.json").read_text())}
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "10 of 10 parts passed; all passed; gpu.json"
    assert {part["status"] for part in parts.values()} == {"passed"}
    rows = {name: {row["name"]: row for row in part["rows"]} for name, part in parts.items()}
    before = "machine parity resume extraction frames finetuning heads".split()
    assert list(rows) == [*before, "va training", "sweep", "one device"]
    wanted = [f"{family}, {mode}" for family in FAMILIES for mode in ("fp32", "bf16", "fp16")] + ["silero, fp32"]
    assert list(rows["parity"]) == wanted
    for name, row in rows["parity"].items():
        assert row["passed"], name
        assert row["relative_error_max"] <= row["tolerance"] < 0.05
        assert row["frames"] > 0
    for row in rows["resume"].values():
        assert row["exit_codes"] == {"one": 0, "two": 0, "killed": -9, "resumed": 0}
        assert row["same_bytes"]
    assert list(rows["frames"]) == ["VGGish, fp32", "IResNet-50, fp32"]
    assert len(rows["finetuning"]) == 5
    assert len(rows["heads"]) == 2
    assert rows["va training"]["configs/va.toml, fp32"]["rows_per_second"] > 0
    assert rows["machine"]["machine"]["torch"]
    assert {"decoding only, threads", "writing only", "computing only, fp32"} < set(rows["extraction"])
    assert rows["sweep"]["sweep, 1 processes on one device"]["trials"] == 2
    assert rows["one device"]["extraction, two processes on one device"]["differ_by"] == 0


SCRIPT = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from benchmarks.gpu_parts import harness
from benchmarks.gpu_parts.harness import Part, Setup, run_parts, write_atomically

def hangs(setup, tell):
    tell({"name": "before", "value": 1})
    if os.fork() == 0:
        (setup.folder / "child").write_text(str(os.getpid()))
    time.sleep(600)

def crashes(setup, tell):
    os.kill(os.getpid(), signal.SIGSEGV)

def raises(setup, tell):
    raise ValueError("out of ideas")

def misses(setup, tell):
    tell({"name": "a check", "passed": False})

def works(setup, tell):
    tell({"name": "a check", "passed": True})
    tell({"name": "a figure", "value": 2.0})

def never(setup, tell):
    raise AssertionError

harness._context = lambda setup: (multiprocessing.get_context("fork"), setup)
harness.LEAST_SECONDS = 0.5
every = (hangs, crashes, raises, misses, works)
parts = [Part(name=f.__name__, measure=f, seconds=3 if f is hangs else 60) for f in every]
file = Path(sys.argv[1]) / "gpu.json"
setup = Setup(device="cpu", quick=True, folder=Path(sys.argv[1]), start="fork")
run_parts(parts, setup, 100, lambda records: write_atomically(file, records))
setup.folder.joinpath("rest").mkdir()
late = Setup(device="cpu", quick=True, folder=setup.folder / "rest", start="fork")
write_atomically(setup.folder / "late.json", run_parts([Part(name="never", measure=never, seconds=9)], late, 0.1, len))
"""


def test_a_part_that_hangs_or_crashes_or_raises_costs_itself_alone(tmp_path):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, timeout=120, env={"PYTHONPATH": str(ROOT)}
    )
    parts = {part["name"]: part for part in json.loads((tmp_path / "gpu.json").read_text())}
    assert {name: part["status"] for name, part in parts.items()} == {
        "hangs": "timed out",
        "crashes": "failed",
        "raises": "failed",
        "misses": "failed",
        "works": "passed",
    }
    assert parts["hangs"]["rows"] == [{"name": "before", "value": 1}]
    assert parts["crashes"]["error"] == "its process ended with exit code -11"
    assert parts["raises"]["error"] == "ValueError: out of ideas"
    assert [row["name"] for row in parts["works"]["rows"]] == ["a check", "a figure"]
    state = Path("/proc", (tmp_path / "hangs" / "child").read_text(), "stat")
    assert not state.exists() or ") Z " in state.read_text()  # its children end with it
    (late,) = json.loads((tmp_path / "late.json").read_text())
    assert late["status"] == "not started"
