"""Which clips a folder, a CSV or a list names, and under which ids."""

import os
from pathlib import Path

import pytest

from extract.errors import MediaListError
from extract.sources import Source, find_media


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(*args) -> list[str]:
    return [source.id for source in find_media(*args)]


def refused(*args) -> str:
    with pytest.raises(MediaListError) as caught:
        find_media(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def table(tmp_path):
    """Write a CSV or a list beside the media."""

    def write(text: str, name: str = "labels.csv") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_a_folder_is_searched_recursively_and_ids_are_paths_without_suffix(tmp_path):
    touch(tmp_path, "b.wav", "a/c.mp3", "a/b/d.e.mp4", "notes.txt", "a/Thumbs.db")
    assert find_media(tmp_path) == [
        Source("a/b/d.e", tmp_path / "a/b/d.e.mp4"),
        Source("a/c", tmp_path / "a/c.mp3"),
        Source("b", tmp_path / "b.wav"),
    ]


def test_suffixes_in_upper_case_count(tmp_path):
    assert ids(touch(tmp_path, "A.WAV", "b.Mp3")) == ["A", "b"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    assert ids(touch(tmp_path, "a.wav", "._a.wav", ".trash/b.wav")) == ["a"]


def test_a_link_to_a_parent_folder_is_not_followed(tmp_path):
    touch(tmp_path, "a/x.wav")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    assert ids(tmp_path) == ["a/x"]


def test_a_linked_folder_is_searched(tmp_path):
    touch(tmp_path, "elsewhere/x.wav")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "linked").symlink_to(tmp_path / "elsewhere")
    assert ids(tmp_path / "media") == ["linked/x"]


def test_ids_do_not_depend_on_the_order_in_which_the_disk_lists_folders(tmp_path, monkeypatch):
    touch(tmp_path, "m/x.wav")
    (tmp_path / "a").symlink_to(tmp_path / "m")
    (tmp_path / "z").symlink_to(tmp_path / "m")
    found, walk = [], os.walk
    for backwards in (False, True):

        def listed(*args, backwards=backwards, **options):
            for folder, folders, files in walk(*args, **options):
                folders.sort(reverse=backwards)
                yield folder, folders, files

        monkeypatch.setattr(os, "walk", listed)
        found.append(ids(tmp_path))
    assert found == [["a/x"], ["a/x"]]


def test_a_folder_named_like_a_clip_is_listed_so_that_it_is_reported(tmp_path):
    touch(tmp_path, "x.wav/inside.wav")
    assert find_media(tmp_path) == [Source("x", tmp_path / "x.wav")]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "a.wav", "locked/b.wav")
    scan = os.scandir

    def guarded(place):
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", guarded)
    assert f"{tmp_path / 'locked'} cannot be read (Permission denied)" in refused(tmp_path)


def test_one_file_is_one_clip(tmp_path):
    touch(tmp_path, "x.wav")
    assert find_media(tmp_path / "x.wav") == [Source("x", tmp_path / "x.wav")]


@pytest.mark.parametrize("name", ["7", "00007", "00007.mp3"])
def test_integer_names_of_a_csv_find_their_five_digit_file(tmp_path, table, name):
    touch(tmp_path, "00007.mp3")
    assert find_media(table(f"Filename,Joy\n{name},0.5\n")) == [Source("00007", tmp_path / "00007.mp3")]


@pytest.mark.parametrize("name", ["a/b", "a/b.wav"])
def test_other_names_of_a_csv_match_an_id_exactly(tmp_path, table, name):
    touch(tmp_path, "a/b.wav")
    assert find_media(table(f"Filename\n{name}\n")) == [Source("a/b", tmp_path / "a/b.wav")]


def test_the_media_of_a_csv_may_lie_elsewhere(tmp_path, table):
    touch(tmp_path, "audio/00001.wav")
    assert find_media(table("Filename\n1\n"), tmp_path / "audio") == [Source("00001", tmp_path / "audio/00001.wav")]


def test_a_csv_may_have_a_byte_order_mark_and_another_spelling_of_the_column(tmp_path, table):
    touch(tmp_path, "00001.wav")
    assert ids(table("\ufeffJoy, filename\n0.5,1\n")) == ["00001"]


def test_a_clip_of_a_csv_that_is_missing_is_kept_to_be_reported(tmp_path, table):
    touch(tmp_path, "00001.wav")
    assert ids(table("Filename\n1\n2\n3.wav\n")) == ["00001", "00002", "3"]


def test_a_csv_of_which_no_clip_is_found_suggests_media_root(tmp_path, table):
    place = table("Filename\n1\n2\n")
    message = refused(place)
    assert str(place) in message
    assert "none of the 2 clips" in message
    assert "--media-root" in message


def test_a_csv_without_filename_shows_its_header(table):
    assert "no Filename column; its header is Clip, Joy" in refused(table("Clip,Joy\n1,0.5\n"))
    assert "no Filename column" in refused(table(""))


def test_a_csv_as_a_spreadsheet_saves_it_is_read(tmp_path, table):
    touch(tmp_path, "00001.wav")
    place = table("")
    place.write_bytes("filename;Joy\n1;0,5\n".encode("utf-16"))
    assert [source.id for source in find_media(place)] == ["00001"]


def test_an_empty_filename_is_refused_with_its_line(tmp_path, table):
    touch(tmp_path, "00001.wav")
    assert "line 3" in refused(table("Filename,Joy\n1,0.5\n,0.5\n"))


def test_a_row_listed_twice_is_refused(tmp_path, table):
    touch(tmp_path, "00001.wav")
    assert "'00001' is listed twice, as '1' and as '00001'" in refused(table("Filename\n1\n00001\n"))


def test_two_files_with_one_id_are_refused_with_both_names(tmp_path, table):
    touch(tmp_path, "m/a.wav", "m/a.mp3")
    message = refused(tmp_path / "m")
    assert str(tmp_path / "m/a.wav") in message
    assert str(tmp_path / "m/a.mp3") in message
    assert "'a'" in refused(table("Filename\na\n"), tmp_path / "m")


def test_a_text_list_has_one_path_a_line_and_comments(tmp_path, table):
    touch(tmp_path, "a.wav", "b/c.mp3")
    assert ids(table("# my clips\n\na.wav\n  b/c.mp3  \n", "clips.txt")) == ["a", "b/c"]


@pytest.mark.parametrize("from_here", [False, True])
def test_a_text_list_may_name_absolute_paths(tmp_path, table, monkeypatch, from_here):
    touch(tmp_path, "here/a.wav", "there/b.wav")
    place = table(f"here/a.wav\n{tmp_path}/there/b.wav\n", "clips.txt")
    monkeypatch.chdir(tmp_path)
    assert ids("clips.txt" if from_here else place) == ["here/a", "there/b"]


def test_absolute_paths_outside_the_lists_folder_are_named_from_what_they_share(tmp_path, table):
    touch(tmp_path, "lists/x", "data/here/a.wav", "data/there/b.wav")
    place = table(f"{tmp_path}/data/here/a.wav\n{tmp_path}/data/there/b.wav\n", "lists/clips.txt")
    assert ids(place) == ["here/a", "there/b"]


def test_an_absolute_name_in_a_csv_outside_the_media_root_is_refused(tmp_path, table):
    touch(tmp_path, "root/a.wav", "other/b.wav")
    assert "media-root" in refused(table(f"Filename\n{tmp_path}/other/b.wav\n"), tmp_path / "root")


def test_nothing_found_names_the_suffixes(tmp_path):
    touch(tmp_path, "notes.pdf")
    assert "holds no media (looked for" in refused(tmp_path)
    assert ".mp3" in refused(tmp_path)


def test_an_empty_list_or_csv_is_refused(table):
    assert "holds no media" in refused(table("# nothing\n", "clips.txt"))
    assert "holds no media" in refused(table("Filename\n"))


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    assert f"there is nothing at {tmp_path / 'gone'}" in refused(tmp_path / "gone")


def test_a_media_root_must_be_a_folder_and_go_with_a_list(tmp_path, table):
    assert "is not a folder" in refused(table("Filename\n1\n"), tmp_path / "gone")
    assert "leave it out" in refused(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["clips.csv", "clips.txt"])
def test_a_list_that_is_not_utf_8_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes("Filename\nmüde.wav\n".encode("latin-1"))
    message = refused(tmp_path / name)
    assert name in message
    assert "UTF-8" in message


@pytest.mark.parametrize("odd", [b"mod\xe0.wav", b"mod\xe0/x.wav"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_name_that_is_not_utf_8_is_marked_and_the_others_are_found(tmp_path, table, odd, listed):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m/" + odd))
    try:
        touch(place.parent, place.name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    touch(tmp_path, "m/good.wav")
    found = find_media(table("Filename\ngood\n"), tmp_path / "m") if listed else find_media(tmp_path / "m")
    assert found[0] == Source("good", tmp_path / "m/good.wav")
    if not listed:
        (_, bad) = found
        assert bad.id == odd.decode("utf-8", "backslashreplace").removesuffix(".wav")
        assert "not UTF-8; rename it" in bad.problem
        assert find_media(place)[0].problem or b"/" in odd  # alone, only its own name counts


@pytest.mark.parametrize("file", ["1.flac", "001.flac", "00001.flac"])
@pytest.mark.parametrize("name", ["1", "01", "00001", "1.flac", "00001.FLAC", ".\\1.flac", "./1"])
def test_any_zero_padding_and_suffix_finds_its_file(tmp_path, table, file, name):
    touch(tmp_path, file, "2.flac")
    for listed in (table(f"Filename\n{name}\n"), table(f"{name}\n", "clips.txt")):
        assert find_media(listed) == [Source(Path(file).stem, tmp_path / file)]


def test_names_inside_folders_match_alike(tmp_path, table):
    touch(tmp_path, "spk/01.flac", "b/x.wav")
    assert ids(table("Filename\nspk\\1\nb\\x.wav\n")) == ["b/x", "spk/01"]


def test_a_suffix_decides_between_files_of_one_name(tmp_path, table):
    touch(tmp_path, "01.wav", "01.mp3")
    assert find_media(table("Filename\n1.mp3\n")) == [Source("01", tmp_path / "01.mp3")]
    assert "stands for two files" in refused(table("Filename\n1\n"))


def test_a_name_that_may_be_two_files_is_refused_with_both(tmp_path, table):
    touch(tmp_path, "1.wav", "01.wav")
    assert "'001' may be any of '01', '1'" in refused(table("Filename\n001\n")).replace("'1', '01'", "'01', '1'")
    assert ids(table("Filename\n1\n")) == ["1"]
    assert ids(table("Filename\n1\n01\n")) == ["01", "1"]


def test_ids_are_stored_in_one_unicode_form(tmp_path, table):
    nfd, nfc = "jose\u0301", "jos\xe9"
    touch(tmp_path, f"m/{nfd}.wav")
    assert ids(tmp_path / "m") == [nfc]
    for name in (nfc, nfd, f"{nfc}.wav"):
        for listed in (table(f"Filename\n{name}\n"), table(f"{name}\n", "clips.txt")):
            assert find_media(listed, tmp_path / "m") == [Source(nfc, tmp_path / f"m/{nfd}.wav")]
    touch(tmp_path, f"m/{nfc}.wav")
    if len(list((tmp_path / "m").iterdir())) == 2:  # on macOS it is the same file
        assert "stands for two files" in refused(tmp_path / "m")


def test_dots_in_names_are_kept(tmp_path, table):
    touch(tmp_path, "clip.v2.wav", "clip.wav")
    assert ids(table("Filename\nclip.v2\n")) == ["clip.v2"]
    assert ids(table("Filename\nclip\n")) == ["clip"]


def test_a_file_whose_name_starts_with_the_sign_of_the_home_folder_is_a_file(tmp_path, table, monkeypatch):
    touch(tmp_path, "~x.flac", "~/y.flac")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere")
    assert find_media("~x.flac") == [Source("~x", Path("~x.flac"))]
    assert ids(".") == ["~/y", "~x"]
    assert ids(table("Filename\n~x\n~/y.flac\n")) == ["~/y", "~x"]
    assert "there is nothing at /nowhere/m" in refused("~/m")
