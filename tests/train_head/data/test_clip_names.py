"""Label files name clips as people do, and meet those of a cache, of predictions and of a template."""

import numpy as np
import pytest

from cache.derive.derived import derive
from cache.errors import ClipNameError
from cache.format import Clip, Header
from cache.reader import open_cache
from cache.writer import CacheWriter
from emi.cli.cache.export import read_ids
from train_head.errors import LabelError
from train_head.evaluation.compare import compare
from train_head.evaluation.scoring import read_pair
from train_head.evaluation.submission import check_submission, write_submission
from train_head.runs.inputs import LabelFiles, gather_inputs

NFC, NFD = "jos\xe9", "jose\u0301"
IDS = ("1", "001a", "spk/02", NFC, "clip.v2", "00007")
WRITTEN = ("00001", "001a.wav", "spk\\2.WAV", NFD, "clip.v2", "./7")


@pytest.fixture
def write(tmp_path):
    def _write(names, name="l.csv", values=None):
        values = np.linspace(0, 1, len(names)) if values is None else values
        rows = "".join(f"{n},{v}\n" for n, v in zip(names, values, strict=True))
        (tmp_path / name).write_text(f"Filename,Joy\n{rows}", encoding="utf-8")
        return tmp_path / name

    return _write


@pytest.fixture
def cache(tmp_path):
    def make(ids=IDS, name="c.zarr"):
        header = Header(fingerprint={"backbone": "x", "dtype": "float32"}, dim=2, vad_names=(), hop_seconds=0.02)
        with CacheWriter(tmp_path / name, header) as writer:
            for number, clip in enumerate(ids):
                frames = np.full((2, 2), number, np.float32)
                writer.add(Clip(clip, frames, None, None, 0.04))
        return tmp_path / name

    return make


def gathered(cache, labels, **options):
    split = gather_inputs(cache, LabelFiles.named(labels, **options)).splits["train"]
    return split.labels.ids, [clip[0, 0].item() for clip in split.only.chunks()]


@pytest.mark.parametrize("names", [WRITTEN, IDS, tuple(f"{name}.flac" for name in IDS)])
def test_a_head_is_trained_on_the_clips_that_labels_name(cache, write, names):
    assert gathered(cache(), write(names)) == (IDS, [0, 1, 2, 3, 4, 5])


def test_the_clips_of_several_caches_are_matched_alike(cache, write):
    places = [cache(IDS[:3], "a.zarr"), cache(IDS[3:], "b.zarr")]
    assert gathered(places, write(WRITTEN))[0] == IDS


def test_clips_that_are_missing_are_named_as_written(cache, write):
    place, labels = cache(), write(["1", "2.wav"])
    with pytest.raises(LabelError, match=r"1 of the 2 clips of .* are not in .* \(first: 2.wav\)"):
        gathered(place, labels)
    assert gathered(place, labels, skip_missing=True)[0] == ("1",)


def test_two_rows_of_one_clip_are_refused_with_both(cache, write):
    labels = write(["1", "2", "01"])
    with pytest.raises(LabelError, match=r"l\.csv: clip '1' is listed twice, as '1' and as '01'"):
        gathered(cache(), labels)


def test_two_clips_that_a_row_may_name_are_both_named_unless_one_is_exact(cache, write):
    place = cache(("1", "01"))
    with pytest.raises(LabelError, match=r"'001' may be any of '1', '01'"):
        gathered(place, write(["001"]))
    assert gathered(place, write(["01"])) == (("01",), [1])
    assert gathered(place, write(["1", "01"])) == (("1", "01"), [0, 1])


def test_training_clips_are_validation_clips_however_they_are_written(cache, write):
    files = {"train": write(["1", "7"]), "valid": write(["1.wav"], "v.csv")}
    assert "1 of the 1 validation clips are training clips" in gather_inputs(cache(), LabelFiles(files=files)).overlap


def test_a_transform_is_fitted_on_the_clips_that_labels_name(cache, write, tmp_path):
    source = cache()
    named = derive(source, tmp_path / "a.zarr", standardise=True, train_ids=WRITTEN)
    exact = derive(source, tmp_path / "b.zarr", standardise=True, train_ids=IDS)
    assert named.header.fingerprint == exact.header.fingerprint
    with pytest.raises(ClipNameError, match="listed twice"):
        derive(source, tmp_path / "c.zarr", standardise=True, train_ids=["1", "01"])


def test_a_list_of_clips_to_export_names_them_alike(cache, tmp_path):
    (tmp_path / "ids.txt").write_text("\n".join(WRITTEN) + "\n\nelse\n", encoding="utf-8")
    with open_cache(cache()) as store:
        assert read_ids(tmp_path / "ids.txt", store) == [*IDS, "else"]


@pytest.mark.parametrize(("predicted", "labelled"), [(WRITTEN, IDS), (IDS, WRITTEN)])
def test_predictions_are_scored_and_compared_however_they_name_their_clips(write, predicted, labelled):
    labels, values = write(labelled), np.arange(6)[::-1] / 10
    guess = write(predicted[::-1], "p.csv", values)
    np.testing.assert_allclose(read_pair(guess, labels)[0][:, 0], values[::-1], rtol=1e-6)
    assert compare(guess, write(labelled, "q.csv"), labels=labels, resamples=10).difference.clips == 6


def test_a_prediction_file_that_has_a_clip_twice_or_one_too_many_is_refused(write):
    labels = write(["00001", "2"])
    with pytest.raises(LabelError, match=r"p\.csv beside .*l\.csv: clip '00001' is listed twice, as '1' and as '01'"):
        read_pair(write(["1", "01", "2"], "p.csv"), labels)
    with pytest.raises(LabelError, match=r"has 1 clips that are not in .* \(first: else\)"):
        read_pair(write(["1", "2.wav", "else"], "p.csv"), labels)


def test_a_template_takes_the_clips_that_it_names(write, tmp_path):
    template = write(WRITTEN)
    write_submission(tmp_path / "s.csv", IDS, ["Joy"], np.arange(6)[:, None] / 10, template)
    rows = (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1:] == [f"{name},{i / 10:.9g}" for i, name in enumerate(WRITTEN)]
    assert check_submission(tmp_path / "s.csv", template) == []
    assert check_submission(tmp_path / "s.csv", write(IDS))[0].startswith("5 Filenames are written otherwise")


def test_a_submission_of_names_that_differ_in_padding_takes_a_template(write, tmp_path):
    write_submission(tmp_path / "s.csv", ["1", "01"], ["Joy"], [[0], [1]], write(["01", "1"]))
    assert (tmp_path / "s.csv").read_text() == "Filename,Joy\n01,1\n1,0\n"
