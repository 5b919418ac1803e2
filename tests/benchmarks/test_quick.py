"""Every benchmark runs with --quick and writes rows with a name and figures; minutes long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ("onnx", "lhotse", "datasets", "pyarrow")
"""Packages of `emi[bench]` that a row may lack."""


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_benchmark_runs_quickly_and_writes_its_rows(script, labelled, tmp_path):
    clips = [str(labelled / "audio")] if script.stem == "precision" else []
    clips = ["--hours", "0.01"] if script.stem == "extract" else clips
    command = [sys.executable, str(script), *clips, "--quick", "--json", str(tmp_path / "rows.json")]
    subprocess.run(command, check=True, timeout=600)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows
    for row in rows:
        assert row["name"]
        assert len(row) > 1
        if "error" in row:
            assert "No module named" in row["error"] or "not installed" in row["error"]
            assert any(name in row["error"] for name in EXTRAS), row
