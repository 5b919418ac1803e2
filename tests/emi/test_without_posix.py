"""Everything is imported, and caches are written, where the modules and functions of POSIX are missing."""

import subprocess
import sys

CODE = """
import importlib, os, pkgutil, signal, sys, tempfile, warnings

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for name in dir(signal):
    if name in ("SIGALRM", "SIGKILL", "SIGHUP", "SIGCHLD", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"):
        delattr(signal, name)
for name in ("alarm", "setitimer", "getitimer", "ITIMER_REAL", "pause", "pthread_kill", "pthread_sigmask", "sigwait"):
    delattr(signal, name)
for name in dir(os):
    if name.startswith(("fork", "posix_", "pread", "pwrite", "sched_", "getuid", "geteuid", "fchmod", "killpg")):
        delattr(os, name)
for name in ("O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "setsid", "major", "minor"):
    delattr(os, name)
warnings.simplefilter("ignore")

packages = [importlib.import_module(name) for name in ("cache", "extract", "train_head", "emi")]
for package in packages:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name != "emi.__main__":
            importlib.import_module(module.name)

import numpy as np
from cache import CacheLockedError, CacheWriter, open_cache
from cache.format import Clip, Header
from cache.maintenance.rewrite import compact
from extract.failures import Failure, write_failures
from train_head.errors import RunFolderError
from train_head.runs.run_folder import locked, prepare_folder
from train_head.sweep.storage import JournalStudy

def refused(error, call):
    try:
        call()
    except error as found:
        return str(found)
    raise AssertionError(f"{error} was not raised")

folder = tempfile.mkdtemp()
header = Header(fingerprint={"dtype": "float16"}, dim=4)
for name in ("a.zarr", "a.h5"):
    path = os.path.join(folder, name)
    with CacheWriter(path, header) as writer:
        writer.add(Clip("x", np.ones((3, 4), np.float32), None, None, 1.0))
        writer.commit()
        refused(CacheLockedError, lambda: compact(path))
        if name == "a.h5":
            refused(CacheLockedError, lambda: CacheWriter(path, header))
        writer.add(Clip("y", np.ones((2, 4), np.float32), None, None, 1.0))
    compact(path)
    with open_cache(path) as store:
        assert [store[i].frames.shape for i in store] == [(3, 4), (2, 4)]
write_failures(path, [Failure("z", "z.wav", "is empty")], {"z"})
run = __import__("pathlib").Path(folder, "run")
prepare_folder(run, {"a": 1})
with locked(run):
    refused(RunFolderError, lambda: locked(run).__enter__())
study = JournalStudy(run / "sweep", "s")
refused(RunFolderError, lambda: JournalStudy(run / "sweep", "s"))
study.study.add_trial(__import__("optuna").create_trial(value=1.0))
study.close()
print("fine")
"""


def test_as_on_windows():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert result.stdout == "fine\n", result.stderr
