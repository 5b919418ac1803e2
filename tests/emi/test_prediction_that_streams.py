"""Prediction clip by clip: killed and resumed, failures as rows, sound in memory, each medium decoded once."""

import csv
import os
import signal
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import emi
import extract.plan
from emi.cli import app
from emi.prediction import Model
from extract.errors import MediaListError
from extract.modality.decoding import Decoders


@pytest.fixture(scope="module")
def run(labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    emi.train_head(labelled_cache, labelled / "train.csv", labelled / "valid.csv", folder, epochs=1, hidden=8)
    return folder


@pytest.fixture(scope="module")
def two_streams(labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two caches of the same sound: as it is, and with pooled frames."""
    folder = tmp_path_factory.mktemp("two")
    from cache.derive.derived import derive

    derive(labelled_cache, folder / "slow.zarr", pool=5)
    caches = {"audio": labelled_cache, "slow": folder / "slow.zarr"}
    emi.train_head(caches, labelled / "train.csv", labelled / "valid.csv", folder / "run", epochs=1, hidden=8)
    return folder / "run"


def predict(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert result.exit_code in (0, 1), result.output
    return result.output


@pytest.mark.parametrize("streams", [1, 2])
def test_a_run_that_was_stopped_predicts_the_others_and_writes_the_same_file(
    run, two_streams, labelled, tmp_path, monkeypatch, streams
):
    model = run if streams == 1 else two_streams
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 8)
    predict(labelled / "audio", "--model", model, "--csv", tmp_path / "whole.csv")
    predicted: list[str] = []
    stored_of = Model._stored

    def stopped(self, clips):
        if len(predicted) == 13:
            raise KeyboardInterrupt
        predicted.append(next(iter(clips.values())).id)
        return stored_of(self, clips)

    monkeypatch.setattr(Model, "_stored", stopped)
    CliRunner().invoke(
        app, ["predict", str(labelled / "audio"), "--model", str(model), "--csv", str(tmp_path / "a.csv")]
    )
    assert (len(predicted), (tmp_path / "a.csv").exists()) == (13, False)
    assert (tmp_path / "a.csv.partial").exists()
    again: list[str] = []
    monkeypatch.setattr(Model, "_stored", lambda self, clips: again.append(1) or stored_of(self, clips))
    output = predict(labelled / "audio", "--model", model, "--csv", tmp_path / "a.csv")
    assert "13 of 40 clips were predicted before" in output
    assert len(again) == 27
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "a.csv.partial").exists()


def test_a_killed_process_leaves_a_file_that_the_next_continues(run, labelled, tmp_path):
    predict(labelled / "audio", "--model", run, "--csv", tmp_path / "whole.csv")
    code = (
        "import os, signal, sys; from emi.prediction_log import PredictionLog as L; add = L.add\n"
        "def dies(self, record):\n"
        "    add(self, record)\n"
        "    if len(self.records) == 5:\n"
        "        self._file.write('[[\"half a li'); self._file.flush(); os.kill(os.getpid(), 9)\n"
        "L.add = dies; from emi.cli import main; sys.argv = ['emi', *sys.argv[1:]]; main()"
    )
    command = ["predict", labelled / "audio", "--model", run, "--csv", tmp_path / "a.csv"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert "5 of 40 clips were predicted before" in predict(*command[1:])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_clip_that_fails_is_an_empty_row_and_alone_is_tried_again(run, labelled, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    for name in ("00001", "00002"):
        os.link(labelled / "audio" / f"{name}.wav", media / f"{name}.wav")
    (media / "00003.wav").write_bytes(b"no sound")
    output = predict(media, "--model", run, "--csv", tmp_path / "a.csv")
    assert "wrote 2 predictions" in output
    with (tmp_path / "a.csv").open() as file:
        rows = {row["Filename"]: row["Joy"] for row in csv.DictReader(file)}
    assert [bool(value) for value in rows.values()] == [True, True, False]
    assert "00003" in (tmp_path / "failures.csv").read_text()
    (media / "00003.wav").unlink()
    os.link(labelled / "audio" / "00004.wav", media / "00003.wav")
    assert "2 of 3 clips were predicted before" in predict(media, "--model", run, "--csv", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        assert all(row["Joy"] for row in csv.DictReader(file))
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.csv", "media"]


def test_changed_media_and_another_model_are_predicted_anew(run, two_streams, labelled, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    for name in ("00001", "00002"):
        (media / f"{name}.wav").write_bytes((labelled / "audio" / f"{name}.wav").read_bytes())
    (media / "x.wav").write_bytes(b"no sound")
    command = media, "--csv", tmp_path / "a.csv", "--model"
    predict(*command, run)
    assert "2 of 3 clips were predicted before" in predict(*command, run)
    (media / "00001.wav").write_bytes((labelled / "audio" / "00005.wav").read_bytes())
    assert "1 of 3 clips were predicted before" in predict(*command, run)
    assert "predicted before" not in predict(*command, two_streams)


def test_sound_in_memory_and_bytes_of_files_predict_as_the_files(run, labelled):
    model = emi.load(run)
    file = labelled / "audio" / "00007.wav"
    with wave.open(str(file)) as sound:
        rate, samples = sound.getframerate(), np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
        samples = samples.reshape(-1, sound.getnchannels()).T
    (expected,) = model.predict(file)
    found = model.predict([file.read_bytes(), (samples, rate), (samples / np.float32(32768), rate)])
    assert [record.pop("Filename") for record in found] == ["00000", "00001", "00002"]
    for record in found:
        assert record == pytest.approx({name: expected[name] for name in model.names}, abs=1e-6)
    assert model.predict((samples[0], rate))[0]["Filename"] == "00000"


@pytest.mark.parametrize("media", [(np.zeros((2, 3, 4)), 16_000), (np.zeros(3, complex), 16_000), (np.zeros(0), 8_000)])
def test_what_is_no_sound_is_refused(run, media):
    with pytest.raises(MediaListError, match="sound is an array"):
        emi.load(run).predict(media)


@pytest.mark.parametrize("shape", [(16_000, 1), (16_000, 2), (65, 64)])
def test_samples_by_channels_are_refused_with_what_to_do(run, shape):
    with pytest.raises(MediaListError, match=r"looks like \(samples, channels\), .*: give its transpose, array\.T"):
        emi.load(run).predict([(np.zeros(shape), 16_000)])


def test_streams_that_read_the_same_of_a_file_decode_it_once(two_streams, labelled, monkeypatch):
    decoded = []
    decode = Decoders._decode
    monkeypatch.setattr(Decoders, "_decode", lambda self, source: decoded.append(source.id) or decode(self, source))
    assert len(emi.load(two_streams).predict(labelled / "audio")) == 40
    assert len(decoded) == len(set(decoded)) == 40


def test_the_places_of_backbones_are_given_by_stream(two_streams, labelled, tmp_path):
    clip = labelled / "audio" / "00001.wav"
    places = "--backbone", "audio=silero", "--backbone", "slow=silero"
    predict(clip, "--model", two_streams, "--csv", tmp_path / "a.csv")
    predict(clip, "--model", two_streams, *places, "--csv", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    result = CliRunner().invoke(app, ["predict", str(clip), "--model", str(two_streams), "--backbone", "face=silero"])
    assert "--backbone face=" in str(result.exception)


def test_torch_has_its_threads_again_after_predicting_from_several_streams(two_streams, labelled):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        emi.load(two_streams).predict(labelled / "audio" / "00001.wav")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
