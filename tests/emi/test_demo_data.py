"""The demo data: layout, labels, splits, repeatability, and what happens where something is already."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import emi.demo.espeak
from cache.errors import EmiError
from emi.demo.espeak import Speaker
from emi.demo.labels import ACTIVE_SHARE, EMOTIONS, draw_intensities
from emi.demo.layout import DemoSummary
from emi.demo.make import make_demo
from emi.demo.plan import HIGH_VOICES, LOW_VOICES, plan_clips
from emi.demo.settings import DemoDependencyError, DemoFolderError, DemoSettingsError, SpeechError

REPOSITORY = Path(__file__).parents[2]
HEADER = "Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy"
CLIPS = 24


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return make_demo(tmp_path_factory.mktemp("data") / "demo", clips=CLIPS, seed=7, faces=False)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(folder: Path, split: str) -> list[dict[str, str]]:
    with (folder / f"{split}_split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_layout_is_that_of_hume_vidmimic2(demo: DemoSummary) -> None:
    names = sorted(path.relative_to(demo.folder).as_posix() for path in demo.folder.rglob("*") if path.is_file())
    sounds = [f"audio/{number:05d}.mp3" for number in range(CLIPS)]
    tables = ["README.md", "demo.json", "speakers.csv", "train_split.csv", "valid_split.csv"]
    assert names == sorted([*sounds, *tables])


def test_the_tables_have_the_exact_header_and_plain_integers(demo: DemoSummary) -> None:
    for split in ("train", "valid"):
        lines = (demo.folder / f"{split}_split.csv").read_text().splitlines()
        assert lines[0] == HEADER
        assert all(line.split(",")[0] == str(int(line.split(",")[0])) for line in lines[1:])


def test_every_clip_is_in_exactly_one_split_and_the_summary_counts_them(demo: DemoSummary) -> None:
    train, valid = rows(demo.folder, "train"), rows(demo.folder, "valid")
    assert sorted(int(row["Filename"]) for row in train + valid) == list(range(CLIPS))
    assert (demo.clips, demo.train, demo.valid, demo.videos) == (CLIPS, len(train), len(valid), 0)
    assert demo.made
    assert demo.seconds > CLIPS * 0.5


def test_validation_voices_are_never_in_train(demo: DemoSummary) -> None:
    with (demo.folder / "speakers.csv").open(newline="") as file:
        voice = {row["Filename"]: row["Voice"] for row in csv.DictReader(file)}
    train, valid = ({voice[row["Filename"]] for row in rows(demo.folder, split)} for split in ("train", "valid"))
    assert train
    assert valid
    assert not train & valid
    assert len(train | valid) == demo.voices


def test_no_voice_variant_is_used_by_two_speakers() -> None:
    variants = [name.split("+")[1] for name in LOW_VOICES + HIGH_VOICES]
    assert len(variants) == len(set(variants)) >= 20


@pytest.mark.parametrize("seed", range(5))
def test_intensities_are_quantised_mostly_zero_and_hardly_correlated(seed: int) -> None:
    drawn = draw_intensities(150, np.random.default_rng(seed))
    assert drawn.shape == (150, len(EMOTIONS))
    np.testing.assert_allclose((drawn > 0).mean(axis=0), ACTIVE_SHARE, atol=0.005)
    zeros = (drawn == 0).mean(axis=0)
    assert ((zeros >= 0.55) & (zeros <= 0.9)).all()
    np.testing.assert_allclose(drawn * 6, np.rint(drawn * 6), atol=1e-5)
    assert np.abs(np.corrcoef(drawn, rowvar=False) - np.eye(6)).max() < 0.23


def test_no_emotion_is_constant_even_in_the_smallest_split() -> None:
    assert (draw_intensities(2, np.random.default_rng(0)).std(axis=0) > 0).all()


def test_another_process_makes_the_same_bytes(demo: DemoSummary, tmp_path: Path) -> None:
    code = "import sys; from emi.demo.make import make_demo; make_demo(sys.argv[1], clips=24, seed=7, faces=False)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, cwd=REPOSITORY)
    assert digests(tmp_path / "again") == digests(demo.folder)


def test_the_same_process_makes_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_demo(tmp_path / name, clips=5, seed=1)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_another_seed_says_other_things(demo: DemoSummary, tmp_path: Path) -> None:
    other = digests(make_demo(tmp_path / "other", clips=5, seed=2, faces=False).folder)
    same = digests(demo.folder)
    assert all(same[name] != other[name] for name in other if name.startswith("audio"))
    assert not np.array_equal(
        [clip.intensities for clip in plan_clips(20, 1)], [clip.intensities for clip in plan_clips(20, 2)]
    )


def test_every_sound_decodes_and_is_neither_silent_nor_clipped(demo: DemoSummary) -> None:
    total = 0.0
    for path in (demo.folder / "audio").iterdir():
        with av.open(str(path)) as mp3:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in mp3.decode(audio=0)])
        assert 0.003 < sound.std() < 0.5
        assert np.abs(sound).max() < 1.1
        total += len(sound) / 22050
    assert total == pytest.approx(demo.seconds, abs=0.1 * CLIPS)  # the encoder pads to its 26 ms frames


def test_a_second_call_does_nothing(demo: DemoSummary) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.folder.rglob("*")}
    calls: list[tuple[int, int]] = []

    def count(done: int, total: int) -> None:
        calls.append((done, total))

    again = make_demo(demo.folder, clips=CLIPS, seed=7, faces=False, on_progress=count)
    assert again == demo
    assert not again.made
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in demo.folder.rglob("*")} == before


def test_progress_counts_every_clip_once(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    (tmp_path / "empty").mkdir()
    make_demo(tmp_path / "empty", clips=4, faces=False, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DemoFolderError, match=r"not empty and holds no demo") as caught:
        make_demo(tmp_path, clips=4)
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, EmiError)
    assert isinstance(caught.value, FileExistsError)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(DemoFolderError, match="not a folder"):
        make_demo(tmp_path / "demo", clips=4)


def test_another_demo_in_the_place_is_refused_naming_both_settings(demo: DemoSummary) -> None:
    with pytest.raises(DemoFolderError, match=r"clips=24, seed=7, .* wanted .*clips=24, seed=8"):
        make_demo(demo.folder, clips=CLIPS, seed=8, faces=False)


def test_a_demo_with_a_missing_clip_is_refused(tmp_path: Path) -> None:
    folder = make_demo(tmp_path / "demo", clips=4, faces=False).folder
    (folder / "audio" / "00002.mp3").unlink()
    with pytest.raises(DemoFolderError, match=r"3 of 4 audio/\*\.mp3"):
        make_demo(folder, clips=4, faces=False)


def test_a_failure_leaves_no_folder_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "demo", clips=4, faces=False, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("clips", "seed"), [(3, 0), (100_001, 0), (4, -1)])
def test_settings_out_of_range_are_refused(tmp_path: Path, clips: int, seed: int) -> None:
    with pytest.raises(DemoSettingsError, match=r"got (clips|seed)=") as caught:
        make_demo(tmp_path / "demo", clips=clips, seed=seed)
    assert isinstance(caught.value, ValueError)


def test_a_missing_speech_package_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DemoDependencyError, match=r"pip install 'emi-mimicry\[demo\]'") as caught:
        make_demo(tmp_path / "demo", clips=4)
    assert isinstance(caught.value, ImportError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("voice", ["xx-nowhere", "en+nobody"])
def test_an_unknown_voice_or_variant_is_named(voice: str) -> None:
    with Speaker() as speaker, pytest.raises(SpeechError, match=r"nowhere|nobody"):
        speaker.say(voice, "Hello.")


def test_a_dead_espeak_is_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emi.demo.espeak, "_find_espeak", lambda: ("no-such-library.so", "."))
    with Speaker() as speaker, pytest.raises(SpeechError, match="exit code 1"):
        speaker.say("en", "Hello.")


def test_the_command_loads_neither_torch_nor_av_nor_espeak_before_it_runs() -> None:
    code = "import emi.cli.demo_data, sys; print(sorted({'torch', 'av', 'espeakng_loader'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_says_that_nobody_is_heard(demo: DemoSummary) -> None:
    text = (demo.folder / "README.md").read_text(encoding="utf-8")
    assert "These are not people" in text
    assert "seed 7" in text
    assert "Excitement +" in text
