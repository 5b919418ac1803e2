"""Settings of streams, and training on several of them and on labels per frame."""

import re
import shutil
import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.format import Clip, Header
from cache.writer import CacheWriter
from train_head.data.frame_labels import read_frame_labels
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.protocols import train
from train_head.runs.changes import Changes
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.load import load_head
from train_head.runs.train import train_run
from train_head.training.loop import Reporter
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer, predict
from train_head.validation import Validation

SMALL = {"epochs": 3, "batch_size": 4, "hidden": 8, "precision": "fp32", "device": "cpu"}
NAMES = ("audio", "face")


def write_caches(folder, clips: int = 12, rows: int = 24):
    """`audio` has a row per label row and holds the second target, `face` one per three and holds the first."""
    rng = np.random.default_rng(0)
    signals = {f"{i:05d}": np.cumsum(rng.normal(size=(rows + i, 2)), axis=0) / 6 for i in range(clips)}
    for name, dim, step, hop in (("audio", 3, 1, 0.1), ("face", 4, 3, 0.3)):
        header = Header(fingerprint={"backbone": name, "dtype": "float32"}, dim=dim, hop_seconds=hop)
        with CacheWriter(folder / f"{name}.zarr", header) as writer:
            for clip, signal in signals.items():
                frames = rng.normal(size=(-(-len(signal) // step), dim)).astype(np.float32)
                frames[:, 0] += 2 * signal[::step, 1 if name == "audio" else 0]
                writer.add(Clip(clip, frames, None, None, len(frames) * hop))
    return signals


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    signals = write_caches(folder)
    for split, part in (("train", list(signals)[:8]), ("valid", list(signals)[8:])):
        lines = [f"{clip},{0.5 + 0.1 * signals[clip][:, 0].mean():.4f},0.5" for clip in part]
        (folder / f"{split}.csv").write_text("Filename,Joy,Calm\n" + "\n".join(lines) + "\n")
        (folder / split).mkdir()
        for clip in part:
            values = np.tanh(signals[clip])
            values[3:5] = -5
            text = "\n".join(f"{a:.5f},{b:.5f}" for a, b in values)
            (folder / split / f"{clip}.txt").write_text(f"valence,arousal\n{text}\n")
    return folder


def inputs(data, *, frames: bool, names=NAMES, **options):
    settings = resolve_settings(**(SMALL | ({"label_range": (-1, 1), "label_fps": 10.0} if frames else {}) | options))
    caches = {name: data / f"{name}.zarr" for name in names} if names else data / "audio.zarr"
    suffix = "" if frames else ".csv"
    files = LabelFiles.named(data / f"train{suffix}", data / f"valid{suffix}", format=settings.label_format())
    return gather_inputs(caches, files), settings


def test_a_stream_has_its_own_settings_or_those_of_all(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'head = "lstm"\n[lstm]\nhidden = 7\n[streams.face]\nhead = "mean"\nstandardise = true\n[streams.face.mean]\n'
        'dropout = 0.3\n[streams.audio.lstm]\nlayers = 1\n[fusion]\nname = "concat"\nhidden = 16\n'
    )
    settings = resolve_settings(config)
    face, audio, text = (settings.stream(name) for name in ("face", "audio", "text"))
    assert (face.head, face.head_options["dropout"], face.standardise) == ("mean", 0.3, True)
    assert (audio.head, audio.head_options["hidden"], audio.head_options["layers"]) == ("lstm", 7, 1)
    assert (text.head, text.head_options["hidden"], text.standardise) == ("lstm", 7, False)
    assert (settings.fusion, settings.fusion_options["hidden"]) == ("concat", 16)
    given = resolve_settings(
        config,
        **{"face.head": "mlp", "face.hidden": 5, "audio.hidden": 3, "fusion.hidden": 9, "face.standardise": False},
    )
    face, audio = given.stream("face"), given.stream("audio")
    assert (face.head, face.head_options["hidden"], face.standardise) == ("mlp", 5, False)
    assert (audio.head_options["hidden"], given.fusion_options["hidden"]) == (3, 9)


def test_what_a_run_records_gives_the_same_settings(tmp_path):
    import tomli_w

    settings = resolve_settings(head="gru", **{"face.head": "mean", "fusion.hidden": 9, "window": 5})
    (tmp_path / "config.toml").write_text(tomli_w.dumps(settings.for_streams(NAMES).to_toml()))
    again = resolve_settings(tmp_path / "config.toml")
    assert again == settings.for_streams(NAMES)
    assert "streams" not in resolve_settings().to_toml()
    assert "window" not in resolve_settings().to_toml()


def test_what_is_given_for_all_beside_the_settings_of_a_run_holds_for_the_streams_that_had_none(tmp_path):
    import tomli_w

    given = {"face.head": "mean", "face.dropout": 0.3, "slow.layers": 3, "text.standardise": True}
    ran = resolve_settings(hidden=8, **given).for_streams(["audio", "face", "slow", "text"])
    (tmp_path / "config.toml").write_text(tomli_w.dumps(ran.to_toml()))
    again = resolve_settings(tmp_path / "config.toml", hidden=16, standardise=True)
    assert [again.stream(name).head_options.get("hidden") for name in ran.streams] == [16, None, 16, 16]
    assert [again.stream(name).standardise for name in ran.streams] == [True] * 4
    assert again.stream("face").head_options["dropout"] == 0.3
    assert again.stream("slow").head_options["layers"] == 3
    other = resolve_settings(tmp_path / "config.toml", head="gru", hidden=16)
    assert [other.stream(name).head for name in ran.streams] == ["gru", "mean", "gru", "gru"]
    assert other.stream("audio").head_options["hidden"] == 16
    assert [other.stream(name).standardise for name in ran.streams] == [False, False, False, True]


def test_a_run_that_recorded_all_settings_of_every_stream_opens_and_resumes(data, tmp_path):
    import tomli_w

    sources, settings = inputs(data, frames=False, **{"face.head": "mean"})
    train_run(sources, tmp_path / "run", settings)
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["streams"] == {"audio": {}, "face": {"head": "mean", "mean": {"dropout": 0.0, "output": "linear"}}}
    config["streams"]["audio"] = {"head": "lstm", "standardise": False, "lstm": config["lstm"]}
    config["streams"]["face"]["standardise"] = False
    (tmp_path / "run" / "config.toml").write_text(tomli_w.dumps(config))
    assert load_head(tmp_path / "run").names == ("Joy", "Calm")
    assert train_run(sources, tmp_path / "run", settings).resumed_at == 3
    with pytest.raises(RunFolderError, match=r"another run: --hidden \(there 8, now 9\). To resume") as error:
        train_run(sources, tmp_path / "run", resolve_settings(**(SMALL | {"face.head": "mean", "hidden": 9})))
    assert "audio" not in str(error.value)
    with pytest.raises(RunFolderError, match=r"another run: --set audio\.hidden \(there none, now 9\)\. Choose a new"):
        train_run(sources, tmp_path / "run", resolve_settings(**(SMALL | {"face.head": "mean", "audio.hidden": 9})))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"face.heda": "mean"}, r"unknown option of head 'lstm' 'heda'"),
        ({"face.head": "men"}, r"unknown head 'men'; did you mean 'mean'"),
        ({"face.standardise": 3}, r"streams\.face\.standardise must be true or false"),
        ({"fusion": "concatt"}, r"unknown fusion 'concatt'; did you mean 'concat'"),
        ({"fusion.hiden": 3}, r"unknown option of fusion 'concat' 'hiden'"),
        ({"overlap": "sum"}, r"unknown overlap 'sum'"),
        ({"window": -1}, r"window must not be negative"),
    ],
)
def test_wrong_settings_of_streams_are_named(given, message):
    with pytest.raises(TrainSettingsError, match=message):
        resolve_settings(**given)


@pytest.mark.parametrize("text", ["streams = 3", "streams = [1]", "[streams]\nface = 3"])
def test_what_is_no_table_of_streams_is_named(tmp_path, text):
    (tmp_path / "c.toml").write_text(text + "\n")
    with pytest.raises(TrainSettingsError, match=r"streams(\.face)? must be a table of options, got (3|\[1\])"):
        resolve_settings(tmp_path / "c.toml")


@pytest.mark.parametrize("name", ["training", "get", "copy", "keys", "items", "forward", "float", "setdefault"])
def test_a_stream_cannot_have_the_name_of_an_attribute_of_torchs_modules(data, tmp_path, name):
    settings = resolve_settings(**SMALL)
    files = LabelFiles.named(data / "train.csv", data / "valid.csv")
    sources = gather_inputs({"audio": data / "audio.zarr", name: data / "face.zarr"}, files)
    with pytest.raises(TrainSettingsError, match=f"'{name}' cannot name a stream: it is a name that torch uses"):
        train_run(sources, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["lstm", "concat", "lr", "augment", "features", "Face", "a b", "1a"])
def test_a_stream_cannot_have_the_name_of_something_else(name):
    with pytest.raises(TrainSettingsError, match="cannot name a stream"):
        resolve_settings().for_streams(["audio", name])


def test_settings_of_a_stream_that_is_not_there_are_refused(data):
    sources, settings = inputs(data, frames=False, **{"fase.head": "mean"})
    with pytest.raises(TrainSettingsError, match=r"unknown stream in the settings 'fase'; did you mean 'face'"):
        train_run(sources, data / "nowhere", settings)


class Killed(Reporter):
    """Stops a training after an epoch."""

    def epoch_finished(self, record):
        raise KeyboardInterrupt


@pytest.mark.parametrize("frames", [False, True])
def test_a_run_on_two_streams_that_was_killed_resumes_to_the_same_weights(data, tmp_path, frames):
    options = {"face.head": "mean"} if not frames else {"head": "gru", "face.head": "tcn", "window": 10, "hop": 6}
    sources, settings = inputs(data, frames=frames, standardise=True, **options)
    whole = train_run(sources, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train_run(sources, tmp_path / "killed", settings, reporter=Killed())
    again = train_run(sources, tmp_path / "killed", settings)
    assert again.resumed_at == 1
    one, other = (load_file(tmp_path / run / "best.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())
    np.testing.assert_array_equal(whole.predictions["valid"], again.predictions["valid"])
    finished = train_run(sources, tmp_path / "killed", settings)
    assert finished.resumed_at == 3
    changed = resolve_settings(
        **(SMALL | options | {"standardise": True, "face.hidden" if frames else "fusion.hidden": 5})
    )
    with pytest.raises(RunFolderError, match=r"--set (face|fusion)\.hidden|label"):
        train_run(sources, tmp_path / "killed", changed)


def test_a_run_folder_says_of_which_streams_it_was_made(data, tmp_path):
    sources, settings = inputs(data, frames=False)
    train_run(sources, tmp_path / "run", settings)
    trained = load_head(tmp_path / "run")
    assert list(trained.streams) == ["audio", "face"]
    assert trained.streams["face"].header.dim == 4
    card = (tmp_path / "run" / "README.md").read_text()
    assert "`audio`" in card
    assert "`face`" in card
    sources, settings = inputs(data, frames=False, names=("audio",))
    with pytest.raises(RunFolderError, match=r"--cache: streams \(there 'audio, face', now 'audio'\)"):
        train_run(sources, tmp_path / "run", settings)


def test_runs_on_all_clips_record_their_streams_and_fusion(data, tmp_path):
    sources, settings = inputs(data, frames=False, epochs=1, **{"fusion.hidden": 5})
    outcome = train(sources, tmp_path / "out", settings, Validation(seeds=1, on_all=True))
    assert load_head(outcome.on_all.folder / "../seed-0/all").streams.keys() == {"audio", "face"}
    for config in ("config.toml", "seed-0/config.toml", "seed-0/all/config.toml"):
        assert resolve_settings(tmp_path / "out" / config).fusion_options["hidden"] == 5
    path = tmp_path / "out" / "config.toml"  # older ones recorded neither
    stored = tomllib.loads(path.read_text())
    usual = {key: value for key, value in stored.items() if key not in ("streams", "fusion")}
    assert not Changes(usual, stored | {"fusion": {"name": "concat"}})
    assert Changes(usual, stored).named == ["--set fusion.hidden (there 256, now 5)"]


def test_streams_may_have_the_names_of_what_is_recorded_of_one(data, tmp_path):
    caches = {"fingerprint": data / "audio.zarr", "dim": data / "face.zarr"}
    sources = gather_inputs(caches, LabelFiles.named(data / "train.csv", data / "valid.csv"))
    settings = resolve_settings(**SMALL)
    train_run(sources, tmp_path / "run", settings)
    trained = load_head(tmp_path / "run")
    assert {name: stream.header.dim for name, stream in trained.streams.items()} == {"fingerprint": 3, "dim": 4}
    assert train_run(sources, tmp_path / "run", settings).resumed_at == 3
    changed = dict(caches, dim=data / "audio.zarr")
    sources = gather_inputs(changed, LabelFiles.named(data / "train.csv", data / "valid.csv"))
    with pytest.raises(RunFolderError, match=r"--cache \(dim=.*its features are others, backbone"):
        train_run(sources, tmp_path / "run", settings)


def test_the_loaded_head_predicts_what_the_run_predicted(data, tmp_path):
    import emi

    sources, settings = inputs(data, frames=False, head="gru")
    result = train_run(sources, tmp_path / "run", settings)
    trained = load_head(tmp_path / "run")
    stores = {name: emi.open_cache(data / f"{name}.zarr") for name in NAMES}
    for row, clip in enumerate(sources.splits["valid"].labels.ids):
        found = trained.predict({name: store[clip] for name, store in stores.items()})
        np.testing.assert_allclose(found, result.predictions["valid"][row], atol=1e-5)
    trained.predict({"audio": stores["audio"][clip], "face": None})  # a clip without the stream


def independent_ccc(predicted, labels):
    a, b = predicted.astype(np.float64), labels.astype(np.float64)
    return 2 * np.cov(a, b, bias=True)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)


@pytest.mark.parametrize("head", ["gru", "tcn"])
def test_the_score_of_frames_is_the_ccc_of_the_written_files(data, tmp_path, head):
    sources, settings = inputs(data, frames=True, names=None, head=head, window=12, hop=7, loss="ccc", lr=1e-2)
    result = train_run(sources, tmp_path / "run", settings)
    written = read_frame_labels(tmp_path / "run" / "predictions_valid", settings.label_format(), check_range=False)
    labels = sources.splits["valid"].labels
    assert written.offsets.tolist() == labels.offsets.tolist(), "a row per label row, unlabelled ones too"
    known = ~np.isnan(labels.values).any(axis=1)
    for k, found in enumerate(result.report.concordance):
        assert found == pytest.approx(independent_ccc(written.values[known, k], labels.values[known, k]), abs=1e-9)
    best = max(result.history, key=lambda record: record["valid_mean_ccc"])
    assert best["epoch"] == result.best_epoch
    assert "95 % interval" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("head", ["gru", "tcn", "transformer"])
def test_what_rows_hold_that_no_label_needs_changes_no_step(data, tmp_path, head):
    """Masked label rows give neither loss nor gradient: other numbers in them give the same weights."""
    other = tmp_path / "train"
    shutil.copytree(data / "train", other)
    for file in other.iterdir():  # a row with one missing value counts for neither target
        file.write_text(file.read_text().replace("-5.00000,-5.00000", "-5,0.77"))
    sources, settings = inputs(data, frames=True, head=head, window=10, hop=5)
    files = LabelFiles.named(other, data / "valid", format=settings.label_format())
    changed = gather_inputs({name: data / f"{name}.zarr" for name in NAMES}, files)
    weights = []
    for source in (sources, changed):
        trainer = Trainer(settings, source.splits["train"], None, None)
        trainer.run_epoch(1)
        weights.append(trainer.predictor.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("causal", [True, False])
def test_windows_that_saw_all_they_depend_on_equal_the_whole_clip(data, names, causal):
    window = 30 if names else 16  # a row of the face is three label rows: its reach is three times as many
    options = {"head": "tcn", "layers": 2, "causal": causal, "window": window, "hop": 2, "overlap": "valid"}
    sources, settings = inputs(data, frames=True, names=names, **options)
    trainer = Trainer(settings, sources.splits["train"], None, None)
    trainer.run_epoch(1)
    valid = sources.splits["valid"]
    windowed = valid.windowed(settings.window, settings.hop)
    whole = predict(trainer.predictor, valid)
    found = predict(trainer.predictor, windowed, overlap="valid")
    if names is None:
        np.testing.assert_allclose(found, whole, atol=1e-6)
    else:
        np.testing.assert_allclose(found, whole, atol=1e-5)
    assert not np.allclose(predict(trainer.predictor, windowed), whole, atol=1e-6), "averaged windows differ"


def test_a_head_that_sees_the_whole_clip_has_no_valid_overlap(data):
    sources, settings = inputs(data, frames=True, names=None, head="gru", window=8, hop=4, overlap="valid")
    with pytest.raises(TrainSettingsError, match="depends on the whole clip; take a tcn"):
        Trainer(settings, sources.splits["train"], None, None)


TCN = {"head": "tcn", "layers": 1, "kernel": 3, "window": 12}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"head": "gru", "window": 8, "hop": 9},
            "a hop of 9 label rows between windows of 8 .* give a --hop of 8 or less",
        ),
        (TCN | {"overlap": "valid"}, r"keeps (\d+) of the 12 rows .* every 12 rows: .* a --hop of \1 or less"),
        (TCN | {"overlap": "valid", "window": 2, "hop": 1}, "keeps 0 of the 2 rows .*; give a longer --window"),
    ],
)
def test_windows_that_leave_rows_without_a_prediction_are_refused_before_training(data, tmp_path, options, message):
    class Untrained(Reporter):
        def step_finished(self, *args):
            raise AssertionError("a step was trained")

    sources, settings = inputs(data, frames=True, names=None, **options)
    with pytest.raises(TrainSettingsError, match=message) as error:
        train_run(sources, tmp_path / "run", settings, reporter=Untrained())
    hop = re.search(r"--hop of (\d+)", str(error.value))
    if hop:
        sources, settings = inputs(data, frames=True, names=None, **(options | {"hop": int(hop[1]), "epochs": 1}))
        train_run(sources, tmp_path / "mended", settings)


@pytest.mark.parametrize("option", ["mixup", "frame_dropout"])
def test_augmentation_that_moves_rows_is_refused_for_labels_per_frame(data, option):
    sources, settings = inputs(data, frames=True, head="gru", **{option: 0.2})
    with pytest.raises(TrainSettingsError, match="move rows away from their labels"):
        Trainer(settings, sources.splits["train"], None, None)


@pytest.mark.parametrize("augment", [{"noise": 0.1}, {"time_masks": 2, "time_mask_frames": 4}])
def test_augmentation_leaves_rows_in_place(data, augment):
    sources, settings = inputs(data, frames=True, head="gru", **augment)
    trainer = Trainer(settings, sources.splits["train"], None, None)
    assert np.isfinite(trainer.run_epoch(1)["train_loss"])


def test_all_augmentation_works_on_several_streams_of_which_some_are_missing(data, tmp_path):
    with CacheWriter(tmp_path / "some.zarr", Header(fingerprint={"backbone": "some", "dtype": "float32"}, dim=2)) as w:
        for clip in ("00000", "00003", "00009"):
            w.add(Clip(clip, np.ones((4, 2), np.float32), None, None, 1.0))
    files = LabelFiles.named(data / "train.csv", data / "valid.csv")
    sources = gather_inputs({"audio": data / "audio.zarr", "some": tmp_path / "some.zarr"}, files)
    options = {"mixup": 0.4, "frame_dropout": 0.3, "noise": 0.2, "time_masks": 2, "standardise": True}
    result = train_run(sources, tmp_path / "run", resolve_settings(**(SMALL | options)))
    assert np.isfinite([record["train_loss"] for record in result.history]).all()
