"""The recipes in configs/ train on two streams."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import emi
from cache.format import Clip, Header
from cache.writer import CacheWriter
from train_head.errors import TrainSettingsError
from train_head.protocols import read_rows
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.run_folder import read_config_file
from train_head.runs.train import train_run
from train_head.training.predictor import Predictor
from train_head.training.settings import resolve_settings

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", ["concat", "frozen-streams"])
def test_a_recipe_for_several_streams_trains(tmp_path, name):
    rng = np.random.default_rng(0)
    for stream, dim in (("audio", 5), ("face", 3)):
        header = Header(fingerprint={"backbone": stream, "dtype": "float32"}, dim=dim, hop_seconds=0.1)
        with CacheWriter(tmp_path / f"{stream}.zarr", header) as writer:
            for i in range(24):
                writer.add(Clip(f"{i:05d}", rng.normal(size=(6, dim)).astype(np.float32), None, None, 0.6))
    for split, part in (("train", range(16)), ("valid", range(16, 24))):
        (tmp_path / f"{split}.csv").write_text("Filename,Joy\n" + "".join(f"{i},{i / 24:.3f}\n" for i in part))
    caches = {stream: tmp_path / f"{stream}.zarr" for stream in ("audio", "face")}
    settings = resolve_settings(CONFIGS / f"{name}.toml", epochs=2, device="cpu", precision="fp32")
    files = LabelFiles.named(tmp_path / "train.csv", tmp_path / "valid.csv")
    result = train_run(gather_inputs(caches, files), tmp_path / "run", settings)
    assert np.isfinite([record["train_loss"] for record in result.history]).all()


def test_the_recipes_have_the_shapes_that_were_published():
    concat = Predictor(resolve_settings(CONFIGS / "concat.toml"), {"audio": 1027, "face": 768}, 6)
    first, last = (layer for layer in concat.head.fusion.modules() if isinstance(layer, nn.Linear))
    assert (first.in_features, first.out_features, last.out_features) == (1795, 1795, 6)
    frozen = Predictor(resolve_settings(CONFIGS / "frozen-streams.toml"), {"audio": 1024, "face": 768}, 6)
    first, last = (layer for layer in frozen.head.fusion.modules() if isinstance(layer, nn.Linear))
    assert (first.in_features, first.out_features, last.out_features) == (1792, 256, 6)


def test_the_network_of_valence_and_arousal_has_the_sizes_that_its_settings_say():
    settings = resolve_settings(CONFIGS / "va.toml").for_streams(("audio", "visual"))
    head = Predictor(settings, {"audio": 128, "visual": 512}, 2, by_frame=True).head
    sizes = {name: parameter.shape for name, parameter in head.named_parameters()}
    v, g = "parametrizations.weight.original1", "parametrizations.weight.original0"
    for stream, dim, hidden in (("visual", 512, 128), ("audio", 128, 32)):
        blocks = head.encoders[stream].blocks
        assert [block.first[0].conv.dilation for block in blocks] == [(1,), (2,), (4,), (8,)]
        assert [len(block.first) for block in blocks] == [1, 1, 1, 1]
        assert head.encoders[stream].reach == (120, 0)
        assert sizes[f"encoders.{stream}.blocks.0.first.0.conv.{v}"] == (hidden, dim, 5)
        assert sizes[f"encoders.{stream}.blocks.0.first.0.conv.{g}"] == (hidden, 1, 1)
        assert sizes[f"encoders.{stream}.blocks.3.second.0.conv.{v}"] == (hidden, hidden, 5)
        assert sizes[f"encoders.{stream}.blocks.0.residual.weight"] == (hidden, dim)
        assert {block.dropout.p for block in blocks} == {0.1}
    project = [layer for layer in head.fusion.project if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in project] == [(160, 256), (256, 128)]
    layers = head.fusion.encoder.layers
    assert len(layers) == 4
    assert (layers[0].linear1.out_features, layers[0].self_attn.num_heads, layers[0].norm_first) == (128, 4, False)
    assert (layers[0].dropout.p, layers[0].self_attn.dropout) == (0.3, 0.3)
    rows = torch.nn.Module.state_dict(head.fusion.regressor)
    assert rows["1.weight"].shape == (2, 128)


def frames_of_two_streams(folder: Path, streams: dict[str, int]) -> None:
    """Six clips with labels per frame, of which the first three rows are not annotated."""
    rng = np.random.default_rng(0)
    values = {f"{i}": rng.uniform(-1, 1, (40, 2)) for i in range(6)}
    for stream, dim in streams.items():
        header = Header(fingerprint={"backbone": stream, "dtype": "float32"}, dim=dim, hop_seconds=0.04)
        with CacheWriter(folder / f"{stream}.zarr", header) as writer:
            for clip, value in values.items():
                rows = np.concatenate([value, rng.normal(size=(40, dim - 2))], axis=1)
                writer.add(Clip(clip, rows.astype(np.float32), None, None, 1.6))
    for split, clips in (("train", "0123"), ("valid", "45")):
        (folder / split).mkdir()
        for clip in clips:
            lines = ["-5,-5"] * 3 + [f"{v:.4f},{a:.4f}" for v, a in values[clip][3:]]
            (folder / split / f"{clip}.txt").write_text("\n".join(["valence,arousal", *lines, ""]))


def test_the_ablation_of_valence_and_arousal_reads_the_streams_of_each_row_and_resumes(tmp_path):
    frames_of_two_streams(tmp_path, {"plain": 4, "visual": 6, "audio": 5})
    caches = {name: tmp_path / f"{name}.zarr" for name in ("plain", "visual", "audio")}
    small = {"epochs": 1, "window": 20, "hop": 10, "label_fps": 25, "lr": 1e-3, "hidden": 4, "device": "cpu"}
    small |= {"fusion.hidden": 8, "precision": "fp32"}
    rows = read_rows(CONFIGS / "va-ablation.toml")
    rows = [
        replace(row, overrides={**row.overrides, **({} if "fusion" in row.overrides else {"fusion.width": 4})})
        for row in rows
    ]
    run = lambda: emi.ablate(  # noqa: E731
        caches,
        tmp_path / "train",
        tmp_path / "valid",
        tmp_path / "out",
        rows=rows,
        seeds=1,
        config=CONFIGS / "va.toml",
        **small,
    )
    found = run()
    streams = {
        name: set(read_config_file(result.folder / "seed-0")["streams"])
        for name, result in zip(found.names, found.results, strict=True)
    }
    assert list(streams.values()) == [{"plain"}, {"visual"}, *[{"visual", "audio"}] * (len(rows) - 2)]
    settings = [read_config_file(result.folder / "seed-0") for result in found.results]
    assert [(s["tcn"]["layers"], s["tcn"]["kernel"], s["fusion"]["name"]) for s in settings[:5]] == [
        *[(1, 1, "concat")] * 3,
        (4, 5, "concat"),
        (4, 5, "transformer"),
    ]
    assert [s.get("smooth") for s in settings] == [*[None] * 5, "mean"]
    assert all(difference is not None for difference in found.differences[1:])
    assert run().nothing_to_do


def test_the_recipe_for_a_film_predicts_runs_that_no_fold_saw_and_its_score_is_the_formula_on_the_files(tmp_path):
    frames_of_two_streams(tmp_path, {"visual": 6, "audio": 5})
    result = emi.train_head(
        {name: tmp_path / f"{name}.zarr" for name in ("visual", "audio")},
        tmp_path / "train",
        out=tmp_path / "out",
        test=tmp_path / "valid",
        config=CONFIGS / "studyforrest.toml",
        folds=2,
        epochs=2,
        stop_after=2,
        device="cpu",
    )
    scored = {"folds": (result.report, tmp_path / "train"), "test": (result.test_report, tmp_path / "valid")}
    for split, (report, labels) in scored.items():
        truth, found = (
            np.concatenate([np.loadtxt(file, delimiter=",", skiprows=1) for file in sorted(folder.glob("*.txt"))])
            for folder in (labels, tmp_path / "out" / f"predictions_{split}")
        )
        for k in range(2):
            y, x = truth[truth[:, k] != -5, k], found[truth[:, k] != -5, k]
            ccc = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
            assert report.concordance[k] == pytest.approx(ccc, abs=1e-6)  # the files hold float32's digits
    smoothing = tomllib.loads((tmp_path / "out" / "fold-0" / "smoothing.toml").read_text())
    assert (smoothing["chosen"], set(smoothing["half_widths"].values())) == (False, {125})


def test_a_row_of_an_ablation_names_a_stream_that_is_not_there(tmp_path):
    frames_of_two_streams(tmp_path, {"visual": 6, "audio": 5})
    (tmp_path / "rows.toml").write_text('[[row]]\nname = "faces"\nstreams = ["visaul"]\n')
    caches = {name: tmp_path / f"{name}.zarr" for name in ("visual", "audio")}
    given = {"head": "gru", "label_fps": 25, "label_range": (-1, 1)}
    with pytest.raises(TrainSettingsError, match=r"row 'faces': unknown stream 'visaul'; did you mean 'visual'"):
        emi.ablate(
            caches, tmp_path / "train", tmp_path / "valid", tmp_path / "out", rows=tmp_path / "rows.toml", **given
        )
    (tmp_path / "rows.toml").write_text('[[row]]\nname = "faces"\nstreams = [1]\n')
    with pytest.raises(TrainSettingsError, match="row 'faces': streams is a list of names or a table of settings"):
        read_rows(tmp_path / "rows.toml")
