"""CSVs of other tools become clips with the times, marks and columns that the tool meant."""

import re

import numpy as np
import pytest

from cache import StaleCacheError, open_cache
from cache.errors import TableError
from cache.exchange.csv_features import read_csv
from cache.exchange.features import FeatureFileError
from cache.exchange.importing import import_features

SMILEXTRACT = """name;frameTime;F0semitoneFrom27.5Hz_sma3nz;loudness_sma3
'clip';0.000000;0.000000e+00;1.250000e-01
'clip';0.010000;2.731250e+01;2.500000e-01
'clip';0.020000;2.750000e+01;-1.000000e+00
"""
OPENSMILE_PYTHON = """file,start,end,F0final_sma,"mfcc_sma[1]"
/data/a b.wav,0 days 00:00:00,0 days 00:00:00.060000,0.0,-12.5
/data/a b.wav,0 days 00:00:00.010000,0 days 00:00:00.070000,110.25,-13.0
/data/a b.wav,0 days 00:01:00.500000,1 days 00:01:00.560000,0.5,3.0
"""
OPENFACE = """frame, face_id, timestamp, confidence, success, gaze_0_x, AU01_r, AU12_r, AU01_c
1, 0, 0.000, 0.98, 1, 0.5, 0.25, 1.50, 1.00
2, 0, 0.040, 0.02, 0, 0, 0, 0, 0
3, 0, 0.080, 0.03, 0, -nan(ind), 0, nan, 0
4, 0, 0.120, 0.98, 1, -0.5, 0.75, 2.00, 0.00
"""
PYFEAT = """,frame,FaceRectX,FaceScore,AU01,AU12,happiness,input,FrameHeight,FrameWidth,approx_time,Identity
0,0,196.5,0.9996811,0.5,0.25,0.125,/videos/clip.mp4,360,640,00:00,Person_0
1,24,,,,,,/videos/clip.mp4,360,640,00:00,
2,48,197.5,0.98,0.75,0.5,0.25,/videos/clip.mp4,360,640,00:01,Person_0
"""
TEXTS = {"smilextract": SMILEXTRACT, "opensmile-python": OPENSMILE_PYTHON, "openface": OPENFACE, "pyfeat": PYFEAT}


@pytest.fixture
def read(tmp_path):
    """Read the text of a CSV."""

    def read(text, columns=None, hop_seconds=None, encoding="utf-8"):
        (tmp_path / "clip.csv").write_bytes(text.encode(encoding))
        return read_csv(tmp_path / "clip.csv", columns and re.compile(columns), hop_seconds)

    return read


def test_rows_of_smilextract_last_until_the_next_and_the_last_as_long_as_the_median(read):
    found = read(SMILEXTRACT)
    assert (found.tool, found.columns) == ("openSMILE", ("F0semitoneFrom27.5Hz_sma3nz", "loudness_sma3"))
    np.testing.assert_array_equal(found.frames, [[0, 0.125], [27.3125, 0.25], [27.5, -1]])
    np.testing.assert_allclose(found.times, [[0, 0.01], [0.01, 0.02], [0.02, 0.03]], rtol=1e-12)
    assert found.valid is None


def test_rows_of_opensmile_python_have_starts_and_ends_as_pandas_writes_them(read):
    found = read(OPENSMILE_PYTHON)
    assert (found.tool, found.columns) == ("opensmile-python", ("F0final_sma", "mfcc_sma[1]"))
    np.testing.assert_allclose(found.times, [[0, 0.06], [0.01, 0.07], [60.5, 86460.56]], rtol=1e-12)
    np.testing.assert_array_equal(found.frames, [[0, -12.5], [110.25, -13], [0.5, 3]])
    seconds = OPENSMILE_PYTHON.replace("0 days 00:00:00", "0").replace("0 days 00:01:00", "60")
    np.testing.assert_allclose(read(seconds.replace("1 days 00:01:00", "86460")).times, found.times, rtol=1e-12)


def test_frames_of_openface_without_success_are_not_valid_and_may_hold_no_numbers(read):
    found = read(OPENFACE)
    assert (found.tool, found.columns) == ("OpenFace", ("gaze_0_x", "AU01_r", "AU12_r", "AU01_c"))
    assert found.valid.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(found.frames[found.valid], [[0.5, 0.25, 1.5, 1], [-0.5, 0.75, 2, 0]])
    np.testing.assert_allclose(found.times, [[0, 0.04], [0.04, 0.08], [0.08, 0.12], [0.12, 0.16]], rtol=1e-12)
    assert found.faces == 1
    assert read(OPENFACE, "^AU.*_r$").columns == ("AU01_r", "AU12_r")
    older = re.sub(r"^([^,]*,)[^,]*,", r"\1", OPENFACE, flags=re.MULTILINE)  # without face_id
    np.testing.assert_array_equal(read(older).frames[0], found.frames[0])


def test_of_several_faces_the_one_that_is_found_in_most_frames_is_taken(read):
    rows = ["1, 0, 0.0, 0.9, 1, 10", "1, 1, 0.0, 0.9, 1, 20", "2, 0, 0.5, 0.1, 0, 0", "2, 1, 0.5, 0.9, 1, 21"]
    rows += ["3, 0, 1.0, 0.9, 1, 12", "4, 1, 1.5, 0.9, 1, 23", "5, 0, 2.0, 0.9, 0, 0"]
    found = read("\n".join(["frame, face_id, timestamp, confidence, success, AU01_r", *rows]))
    assert found.faces == 2
    assert found.valid.tolist() == [True, True, False, True, False]
    assert found.frames[found.valid, 0].tolist() == [20, 21, 23]
    np.testing.assert_allclose(found.times[:, 0], [0, 0.5, 1, 1.5, 2])


def test_frames_of_pyfeat_are_timed_by_their_number_and_invalid_without_a_score(read):
    found = read(PYFEAT, hop_seconds=0.04)
    assert (found.tool, found.columns) == ("py-feat", ("FaceRectX", "AU01", "AU12", "happiness"))
    assert (found.valid.tolist(), found.by_frame) == ([True, False, True], True)
    np.testing.assert_allclose(found.times, [[0, 0.96], [0.96, 1.92], [1.92, 2.88]], rtol=1e-12)
    np.testing.assert_array_equal(found.frames[2], [197.5, 0.75, 0.5, 0.25])
    with pytest.raises(FeatureFileError, match="py-feat, which numbers frames: give the seconds of one with --hop"):
        read(PYFEAT)
    single = read("".join(PYFEAT.splitlines(keepends=True)[:2]), hop_seconds=0.04)
    np.testing.assert_allclose(single.times, [[0, 0.04]])


def test_without_identities_the_first_face_of_a_frame_counts(read):
    found = read("frame,FaceScore,AU01\n0,0.9,1\n0,0.8,2\n1,0.7,3\n", hop_seconds=1)
    assert found.frames[:, 0].tolist() == [1, 3]


def test_a_frame_whose_features_are_all_missing_is_not_valid_whatever_its_score(read):
    found = read("frame,FaceScore,AU01,AU02\n0,0.9,1,2\n1,0.9,,NaN\n", hop_seconds=1)
    assert found.valid.tolist() == [True, False]


@pytest.mark.parametrize(("text", "line", "column"), [(OPENFACE, 5, "AU01_r"), (SMILEXTRACT, 3, "loudness_sma3")])
@pytest.mark.parametrize("cell", ["nan", "inf", ""])
def test_no_number_where_something_was_found_is_an_error_with_its_place(read, text, line, column, cell):
    lines = text.splitlines()
    delimiter = ";" if ";" in text else ","
    cells = lines[line - 1].split(delimiter)
    cells[[name.strip() for name in lines[0].split(delimiter)].index(column)] = cell
    lines[line - 1] = delimiter.join(cells)
    with pytest.raises(FeatureFileError, match=f"line {line}, column '{column}' holds (nan|inf)"):
        read("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no CSV of a tool that is known.*OpenFace has frame, success, timestamp"),
        ("\n", "no CSV of a tool"),
        ("frameTime;name\n0;x\n", "has no column of features$"),
        ("frameTime;a;a\n0;1;2\n", "has 2 columns 'a'; keep one"),
        ("frameTime;a\n0;1;2\n", "line 2 has 3 cells, and the header 2"),
        ("frameTime;a\n0;1,5\n", "line 2, column 'a': '1,5' is no number; select the features with --columns"),
        ("frameTime;a\n0;'\x1b[31m'\n", r"\\x1b\[31m'\" is no number"),
        ("frameTime;a\n?;1\n", "line 2, column 'frameTime'"),
        ("frameTime;a\n0;1\n1;nan\n", "line 3, column 'a' holds nan"),
        ("name;frameTime;a\nx;0;1\ny;0;1\n", "line 3 is about another clip"),
        ("frameTime;a\n0;1\n0;2\n", "has 2 rows, and all are at 0 s"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(read, text, message):
    with pytest.raises(FeatureFileError, match=message):
        read(text)


def test_columns_that_match_nothing_are_an_error(read):
    with pytest.raises(FeatureFileError, match="no column of features that --columns selects"):
        read(OPENFACE, "^x")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_any_encoding_that_says_what_it_is_is_read(read, encoding):
    np.testing.assert_array_equal(read(SMILEXTRACT, encoding=encoding).frames, read(SMILEXTRACT).frames)


def test_other_encodings_are_refused(read):
    with pytest.raises(TableError, match="is not in UTF-8"):
        read("frameTime;ä\n0;1\n", encoding="latin-1")


def test_a_file_without_rows_has_no_frames(read):
    found = read(OPENFACE.splitlines()[0])
    assert found.frames.shape == (0, 4)
    assert (len(found.valid), found.times.shape) == (0, (0, 2))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "openface"
    root.mkdir()
    for name in ("1", "b"):
        (root / f"{name}.csv").write_text(OPENFACE)
    (root / "b_of_details.txt").write_text("Input:b.mp4")
    return root


def test_a_folder_of_csvs_becomes_a_cache_of_faces(folder, path):
    (folder / "nobody.csv").write_text(OPENFACE.splitlines()[0])
    summary = import_features(folder, path, modality="face", columns="_r$")
    assert (summary.written, summary.failures, summary.empty, summary.hop_seconds) == (3, [], 1, None)
    with open_cache(path) as store:
        assert list(store) == ["00001", "b", "nobody"]
        header, clip, nobody = store.header, store["b"], store["nobody"]
        assert (header.optional, header.modality, header.hop_seconds) == (("times", "valid"), "face", None)
        assert store.fingerprint.keys() == {"backbone", "columns", "columns_sha256", "dtype"}
        assert (store.fingerprint["columns"], header.provenance["tool"]) == ("_r$", "OpenFace")
    np.testing.assert_array_equal(clip.frames, np.float16([[0.25, 1.5], [0, 0], [0, 0], [0.75, 2]]))
    np.testing.assert_array_equal(clip.times, np.float32([[0, 0.04], [0.04, 0.08], [0.08, 0.12], [0.12, 0.16]]))
    assert clip.valid.tolist() == [True, False, False, True]
    assert clip.seconds == pytest.approx(0.16)
    assert (nobody.valid.tolist(), nobody.frames.tolist(), nobody.seconds) == ([False], [[0, 0]], 0)
    assert import_features(folder, path, modality="face", columns="_r$").present == 3
    with pytest.raises(StaleCacheError, match="columns_sha256"):
        import_features(folder, path, modality="face", columns="AU12|AU01_c")


def test_a_file_with_other_columns_is_a_failure(folder, path):
    (folder / "c.csv").write_text(OPENFACE.replace("AU12_r", "AU14_r"))
    (folder / "d.csv").write_text(SMILEXTRACT)
    (folder / "e.csv").write_bytes(b"frame, \xff")
    summary = import_features(folder, path)
    assert summary.written == 2
    assert {f.id: f.reason.split(" (")[0] for f in summary.failures} == {
        "c": "has other columns of features than the first file",
        "d": "has other columns of features than the first file",
        "e": f"{folder / 'e.csv'} is not in UTF-8",
    }


def test_a_file_that_comes_later_does_not_decide_even_where_it_sorts_first(folder, path):
    import_features(folder, path)
    (folder / "00000.csv").write_text(SMILEXTRACT)
    summary = import_features(folder, path)
    assert (summary.present, [failure.id for failure in summary.failures]) == (2, ["00000"])


def test_the_seconds_of_a_frame_are_part_of_what_pyfeats_cache_is_made_from(folder, path):
    for file in folder.glob("*.csv"):
        file.write_text(PYFEAT)
    assert "give the seconds of one with --hop" in import_features(folder, path).failures[0].reason
    import_features(folder, path, hop_seconds=0.04)
    with open_cache(path) as store:
        assert (store.hop_seconds, store.fingerprint["hop_seconds"]) == (None, 0.04)
    with pytest.raises(StaleCacheError, match="hop_seconds"):
        import_features(folder, path, hop_seconds=1 / 30)


def test_csvs_among_arrays_are_passed_over(folder, path):
    np.save(folder / "a.npy", np.ones((2, 3)))
    assert import_features(folder, path).ids == ["a"]
    with pytest.raises(FeatureFileError, match="--columns selects columns of CSVs"):
        import_features(folder, path, columns="AU")


def test_a_wrong_pattern_is_refused_before_any_work(folder, path):
    with pytest.raises(FeatureFileError, match=r"--columns '\(' is no regular expression"):
        import_features(folder, path, columns="(")
    assert not path.exists()


def test_several_people_are_told(folder, path):
    (folder / "b.csv").write_text(OPENFACE + "5, 1, 0.16, 0.9, 1, 0, 0, 0, 0\n")
    assert import_features(folder, path).several_faces == {"b": 2}
