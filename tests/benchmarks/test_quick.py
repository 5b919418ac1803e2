"""Every benchmark runs with --quick and writes rows with a name and figures; minutes long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ("onnx", "lhotse", "datasets", "pyarrow", "facenet_pytorch")
"""Packages of `emi-mimicry[bench]` that a row may lack, and one whose pins exclude this torch."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    sorted(path for path in (ROOT / "benchmarks").glob("[!_]*.py") if path.stem != "on_gpu"),  # which has its own
    ids=lambda path: path.stem,
)
def test_a_benchmark_runs_quickly_and_writes_its_rows(script, labelled, tmp_path):
    audio, train, valid = (str(labelled / name) for name in ("audio", "train.csv", "valid.csv"))
    given = {
        "precision": [audio],
        "extract": ["--hours", "0.01"],
        "unfrozen": ["--media", audio, "--train", train, "--valid", valid],
    }
    command = [sys.executable, str(script), *given.get(script.stem, []), "--quick", "--json", "rows.json"]
    subprocess.run(command, check=True, timeout=600, cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows
    for row in rows:
        assert row["name"]
        assert len(row) > 1
        if "error" in row:
            assert "No module named" in row["error"] or "not installed" in row["error"]
            assert any(name in row["error"] for name in EXTRAS), row
