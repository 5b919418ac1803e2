"""Workers that cannot start: the script that calls a sweep is at fault, not its space."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from train_head.sweep.worker import Worker, WorkerStartError


def test_a_script_without_a_main_guard_is_told_so(labelled, labelled_cache, tmp_path):
    (tmp_path / "space.toml").write_text('head = ["mean"]\nlr = { log = [1e-3, 3e-2] }\nepochs = 1\n')
    places = (labelled_cache, labelled / "train.csv", labelled / "valid.csv", tmp_path / "out", tmp_path / "space.toml")
    script = tmp_path / "script.py"
    script.write_text(f"import emi\nemi.sweep(*{list(map(str, places))}, trials=2, jobs=1)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert "WorkerStartError: the script that calls emi.sweep does so again" in done.stderr
    assert 'put the call under `if __name__ == "__main__":`' in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert "space" not in done.stderr.splitlines()[-1]


def test_only_a_worker_that_ends_by_itself_before_its_work_is_an_error_of_the_script():
    def worker(exitcode, ready):
        return Worker(SimpleNamespace(join=lambda: None, exitcode=exitcode), None, ready=ready)

    with pytest.raises(WorkerStartError, match="ended with exit code 1 while it imported the script"):
        worker(1, False).check_start()
    for code, ready in ((1, True), (-9, False), (0, False)):
        worker(code, ready).check_start()
