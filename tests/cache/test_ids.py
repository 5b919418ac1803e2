"""Names as people write them, and the clips that they stand for."""

import unicodedata

import pytest

from cache.errors import ClipNameError
from cache.ids import MEDIA_SUFFIXES, match_ids, without_suffix

NFC, NFD = (unicodedata.normalize(form, "josé") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("1", "1"),
        *(("1", padded) for padded in ("01", "001", "00001", "0000001")),
        *((padded, "1") for padded in ("01", "00001")),
        ("001", "00001"),
        ("0", "000"),
        ("000", "0"),
        ("spk/1", "spk/001"),
        ("01/1", "1/01"),
        (NFC, NFD),
        (NFD, NFC),
        (f"{NFD}/1.wav", f"{NFC}/001"),
        ("a\\b", "a/b"),
        ("a\\1.WAV", "a/00001"),
        ("./a/b", "a/b"),
        (".\\a", "a"),
        (".//a", "a"),
        *((f"a{suffix}", "a") for suffix in (".flac", ".WAV", ".mp4", ".3gp", ".Opus")),
        ("7.mp3", "00007"),
        ("a", "a.wav"),
        ("a.mp4", "a.wav"),
        ("clip.v2", "clip.v2"),
        ("clip.v2.wav", "clip.v2"),
        ("clip.v2", "clip.v2.mp3"),
        ("03-01-08", "03-01-08"),
    ],
)
def test_a_name_finds_its_clip(name, known):
    assert match_ids([name], [known, "else"]) == [known]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("A", "a"),
        ("clip", "clip.v2"),
        ("clip.v2", "clip"),
        ("a.b", "a"),
        ("b", "a/b"),
        ("a1", "a01"),
        ("10", "1"),
        ("1", "10"),
        ("²", "2"),
        (".wav", ""),
        ("", "0"),
    ],
)
def test_another_name_finds_nothing(name, known):
    assert match_ids([name], [known]) == [None]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("1", ("1", "01", "00001")),
        ("01", ("1", "01")),
        ("a.wav", ("a.wav", "a")),
        ("a", ("a.wav", "a")),
        ("a.mp3", ("a", "a.mp3")),
        (NFC, (NFC, NFD)),
        (NFD, (NFC, NFD)),
        ("a\\b", ("a\\b", "a/b")),
        ("1.wav", ("1", "01")),
    ],
)
def test_the_nearest_form_wins(name, known):
    assert match_ids([name], known) == [name if name in known else without_suffix(name)]


def test_a_name_that_may_be_two_clips_is_refused_with_both():
    with pytest.raises(ClipNameError, match=r"'001' may be any of '1', '01'"):
        match_ids(["001"], ["1", "01", "2"])
    with pytest.raises(ClipNameError, match=r"'jos\\xe9', 'jose\\u0301'"):
        match_ids([f"{NFC}.wav"], [NFC, NFD])


def test_two_names_for_one_clip_are_refused_with_both():
    with pytest.raises(ClipNameError, match=r"clip '00001' is listed twice, as '1' and as '001'"):
        match_ids(["1", "2", "001"], ["00001", "00002"])
    with pytest.raises(ClipNameError, match=r"as 'jos\\xe9' and as 'jose\\u0301'"):
        match_ids([NFC, NFD], [NFC])


def test_what_is_called_by_its_id_is_not_taken_by_another_name():
    assert match_ids(["1", "01"], ["1", "01"]) == ["1", "01"]


def test_the_order_of_the_names_stays():
    assert match_ids(["c", "2", "a.wav"], {"a": 0, "002": 0, "c": 0}) == ["c", "002", "a"]
