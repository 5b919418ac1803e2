"""`~` wherever a path enters, and names that are not UTF-8."""

import os
from pathlib import Path

import pytest

from cache import open_cache
from cache.errors import NoHomeError
from cache.paths import at_home, is_utf8, readable, takes_paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_folder_stands_for_its_sign(home):
    assert at_home("~") == str(home)
    assert at_home("~/a/b.wav") == f"{home}/a/b.wav"
    assert at_home("face=~/f.zarr") == f"face={home}/f.zarr"
    assert at_home(Path("~/a")) == home / "a"
    assert at_home(["~/a", Path("~/b"), 1]) == [f"{home}/a", home / "b", 1]
    assert at_home({"audio": "~/a"}) == {"audio": f"{home}/a"}


@pytest.mark.parametrize("text", ["~x.flac", "~root/x", "a/~/b", "s3://b/~/x", "./~/x", "--cache=~/x", "", "a~"])
def test_anything_else_stays(home, text):
    assert at_home(text) == text


def test_a_user_without_a_home_folder_is_told(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(NoHomeError, match="~/x: this user has no home folder"):
        at_home("~/x")


def test_every_argument_of_a_function_is_expanded_but_regular_expressions(home):
    @takes_paths
    def function(media, *, out=None, group_by=None, **more):
        return media, out, group_by, more

    given = function("~/m", out=Path("~/o"), group_by="~/(.)", config="~/c", seed=1)
    assert given == (f"{home}/m", home / "o", "~/(.)", {"config": f"{home}/c", "seed": 1})


def test_a_cache_is_found_in_the_home_folder(home, make_cache):
    make_cache(home / "a.zarr", "ab")
    assert open_cache("~/a.zarr").path == str(home / "a.zarr")
    assert open_cache(Path("~/a.zarr")).ids == ["a", "b"]


def test_a_name_that_is_not_utf_8_can_be_read():
    name = os.fsdecode(b"mod\xe0/\xc3\xa9.wav")
    assert readable(name) == "mod\\xe0/é.wav"
    assert not is_utf8(name)
    assert is_utf8("modé")
