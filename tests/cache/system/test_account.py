"""A user id without an account, and a home folder that cannot be written, as in `docker run --user 12345`."""

import os
import subprocess
import sys

import pytest

from cache.system.account import name_the_user

NAMELESS = """
import os, pwd, sys
def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = nobody
import emi
"""


@pytest.fixture
def nameless(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")


def test_a_user_without_an_account_is_given_a_name(nameless, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: {}["uid"])
    name_the_user()
    assert os.environ["USER"] == f"uid-{os.getuid()}"
    monkeypatch.delenv("USER")


def test_a_user_with_an_account_keeps_the_name(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.delenv("USER", raising=False)
    name_the_user()
    assert "USER" not in os.environ


def test_features_are_extracted_and_models_trained_without_an_account(nameless, labelled, tiny, tmp_path):
    tiny.model("wav2vec2").save_pretrained(tmp_path / "ck")
    code = f"""{NAMELESS}
emi.extract({str(labelled / "audio")!r}, "c.zarr", backbone="ck", device="cpu")
splits = [{str(labelled / "train.csv")!r}, {str(labelled / "valid.csv")!r}]
emi.train_head("c.zarr", *splits, "run", epochs=1, head="mean")
emi.finetune({str(labelled / "audio")!r}, *splits, "ft", backbone="ck", epochs=1, head="mean", max_seconds=0.3)
"""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "ft/README.md").is_file()
