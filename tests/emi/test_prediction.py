"""The Python façade: extract, open_cache, train_head, load, predict."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from cache import StaleCacheError
from emi.cli import app
from emi.prediction import UnreadableMediaError
from extract.errors import MediaListError
from train_head.data.labels import read_labels
from train_head.errors import RunFolderError


@pytest.fixture(scope="module")
def run(labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    emi.train_head(labelled_cache, labelled / "train.csv", labelled / "valid.csv", folder, epochs=2, hidden=16, lr=3e-3)
    return folder


def test_predictions_from_media_equal_those_from_the_cache(run, labelled):
    records = emi.load(run).predict(labelled / "audio")
    assert [list(record) for record in records] == [["Filename", "Joy", "Calm"]] * 40
    expected = read_labels(run / "predictions_valid.csv", check_range=False)
    values = {record["Filename"]: [record["Joy"], record["Calm"]] for record in records}
    np.testing.assert_allclose([values[clip] for clip in expected.ids], expected.values, atol=1e-5)


def test_one_file_gives_one_record_and_the_same_numbers(run, labelled):
    model = emi.load(run)
    alone = model.predict([labelled / "audio" / "00030.wav"])
    among = {record["Filename"]: record for record in model.predict(labelled / "audio")}
    assert len(alone) == 1
    assert alone[0]["Joy"] == pytest.approx(among["00030"]["Joy"], abs=1e-5)


def test_unreadable_media_raise_with_the_first_name(run, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"")
    with pytest.raises(UnreadableMediaError, match=r"1 of 1 files .*x\.wav, is empty"):
        emi.load(run).predict(tmp_path / "x.wav")


def test_a_run_made_with_other_weights_is_refused(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    text = config.read_text()
    digest = next(line for line in text.splitlines() if line.startswith("weights_sha256"))
    config.write_text(text.replace(digest, f'weights_sha256 = "{"0" * 64}"'))
    with pytest.raises(StaleCacheError, match="weights_sha256"):
        emi.load(tmp_path / "run")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        emi.load(tmp_path)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trainhead'"):
        _ = emi.trainhead


def test_a_list_that_lies_elsewhere_is_predicted_with_its_media_root(run, labelled, tmp_path):
    (tmp_path / "list.csv").write_text("Filename\n30\n31.wav\n")
    (tmp_path / "list.txt").write_text("00032.wav\n")
    model = emi.load(run)
    places = [tmp_path / "list.csv", tmp_path / "list.txt", labelled / "audio/00033.wav"]
    records = model.predict(places, media_root=labelled / "audio")
    assert [record["Filename"] for record in records] == ["00030", "00031", "00032", "00033"]
    with pytest.raises(MediaListError, match=r"--media-root .* goes with a CSV or a text list"):
        model.predict(labelled / "audio", media_root=tmp_path)


def test_predict_takes_a_media_root(run, labelled, tmp_path):
    (tmp_path / "list.csv").write_text("Filename\n30\n")
    arguments = ["predict", tmp_path / "list.csv", "--model", run, "--media-root", labelled / "audio"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--csv", str(tmp_path / "p.csv")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.csv").read_text().splitlines()[1].startswith("00030,")


def test_a_run_from_before_the_decoder_had_a_version_predicts_and_says_so(run, labelled, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    text = config.read_text()
    assert "decoder = 2\n" in text
    config.write_text(text.replace("decoder = 2\n", ""))
    model = emi.load(tmp_path / "run")
    (note,) = model.notes
    assert "version 1 of emi's decoder, and this is version 2" in note
    clip = labelled / "audio" / "00030.wav"
    assert model.predict(clip) == emi.load(run).predict(clip)
    assert emi.load(run).notes == []


def test_predict_takes_a_track_and_files_in_part(run, labelled, tmp_path):
    from typer.testing import CliRunner

    from emi.cli import app
    from extract.settings import DecodeOptions

    content = (labelled / "audio" / "00030.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(content[: len(content) // 2])
    arguments = ["predict", str(tmp_path / "half.wav"), "--model", str(run)]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    shown = CliRunner().invoke(app, [*arguments, "--allow-truncated", "--csv", str(tmp_path / "p.csv")])
    assert shown.exit_code == 0
    assert "1 clip was used although cut off" in shown.output
    with pytest.raises(UnreadableMediaError, match="has 1 audio track, and --track 2"):
        emi.load(run, options=DecodeOptions(track=2)).predict(labelled / "audio" / "00030.wav")
