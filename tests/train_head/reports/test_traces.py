"""The picture of labels and predictions over time: which clips, which lines, and what is shaded."""

import itertools
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import emi
from tests.train_head import affwild
from train_head.data.label_format import LabelFormat
from train_head.evaluation.labelled import reports_by_clip
from train_head.reports import traces as module
from train_head.reports.figures import save
from train_head.reports.traces import chosen_clips, draw_traces, traces
from train_head.runs.inputs import LabelFiles, gather_inputs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return affwild.make(tmp_path_factory.mktemp("affwild"), seconds=2.0)


@pytest.fixture(scope="module")
def split(data):
    files = LabelFiles.named(data.train, data.valid, format=LabelFormat(range=(-1, 1)), ids=("aff-wild2",))
    return gather_inputs(data.caches, files).splits["train"]


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were drawn, in order."""
    kept = []
    monkeypatch.setattr(module, "save", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def predictions_of(split, noise=0.3):
    """Predictions that agree with the labels of the first clip best, and of the last worst."""
    rng, labels = np.random.default_rng(0), split.labels
    weight = np.repeat(np.linspace(0, 1, len(labels)), labels.lengths)[:, None]
    return np.nan_to_num(labels.values) * (1 - 1.5 * weight) + noise * weight * rng.normal(size=labels.values.shape)


def test_labels_and_predictions_are_drawn_at_the_times_of_the_frames(data, split, tmp_path, drawn):
    predicted, labels = predictions_of(split), split.labels
    written = traces(predicted, split, 0.0, tmp_path / "traces_valid")
    assert [path.name for path in written] == ["traces_valid.svg", "traces_valid.png"]
    assert ElementTree.parse(written[0]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    with Image.open(written[1]) as image:
        assert image.size[0] > 1000
    clips = chosen_clips(list(reports_by_clip(predicted, labels).values()))
    panels = drawn[0].axes
    assert len(panels) == 2 * len(clips) == 12
    for axes, (clip, k) in zip(panels, itertools.product(clips, range(2)), strict=True):
        name, rows = labels.filenames[clip], labels.rows_of([clip])
        label, prediction = axes.lines
        fps, frames = affwild.TRAIN[name], len(data.truth[name])
        when = np.minimum(np.arange(len(rows)), frames - 1) / fps
        np.testing.assert_allclose(label.get_xdata(), when, atol=1e-3)
        np.testing.assert_array_equal(label.get_ydata(), labels.values[rows, k])
        np.testing.assert_array_equal(prediction.get_ydata(), predicted[rows, k])
        assert label.get_color() != prediction.get_color()
        score = reports_by_clip(predicted, labels)[name].concordance[k]
        shown = axes.get_title(loc="left")
        assert shown.startswith(name)
        assert shown.endswith(f"{labels.names[k]}, CCC {score:.3f}".replace("-", "−"))
        assert axes.get_ylim() == pytest.approx((-1.08, 1.08))


def test_rows_without_a_label_and_without_a_face_are_shaded_and_the_legend_says_so(split, tmp_path, drawn):
    clip = 0
    one = split.take([clip])
    traces(predictions_of(one), one, 0.0, tmp_path / "traces")
    fps = affwild.TRAIN[one.labels.filenames[0]]
    rows = len(one.labels.values)
    bars = [path.get_extents() for bars in drawn[0].axes[0].collections for path in bars.get_paths()]
    found = sorted([*bar.intervalx.tolist(), bar.height] for bar in bars)
    face = (rows // 3) / fps
    expected = sorted([[3 / fps, 7 / fps, 1.0], [face, face + 5 / fps, 0.12]])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["label", "prediction", "not annotated", "nothing found: face"]


def test_the_title_says_how_many_clips_were_left_out(split, tmp_path, drawn):
    for number in (len(split), 1):
        some = split.take(list(range(number)))
        traces(predictions_of(some), some, 0.0, tmp_path / "traces")
    assert [figure.get_suptitle() for figure in drawn] == [
        "6 of 9 clips, spread evenly over the ranking by mean CCC, the best first",
        "1 of 1 clips, ranked by mean CCC, the best first",
    ]


def test_a_labelled_row_between_two_without_labels_is_a_point(split, tmp_path, drawn):
    one = split.take([0])
    one.labels.values[:, 0] = np.nan
    one.labels.values[[0, 5, 10, 11], 0] = 0.5
    traces(predictions_of(one), one, 0.0, tmp_path / "traces")
    label, prediction = drawn[0].axes[0].lines
    assert (label.get_marker(), label.get_markevery()) == (".", [0, 5])
    assert prediction.get_marker() == "None"


def test_a_clip_of_one_row_is_drawn_as_points(split, tmp_path, drawn):
    one = split.take([0])
    labels = replace(one.labels, values=one.labels.values[:1], offsets=np.array([0, 1]))
    held = {name: rows[:1] for name, rows in one.at.items()}
    row = replace(one, labels=labels, targets=one.targets[:1], windows=None, at=held)
    traces(labels.values, row, 0.0, tmp_path / "traces")
    assert [line.get_markevery() for line in drawn[0].axes[0].lines] == [[0], [0]]


def test_six_clips_at_even_ranks_are_drawn_the_best_first(split):
    reports = list(reports_by_clip(predictions_of(split), split.labels).values())
    means = [report.mean_concordance for report in reports]
    chosen = chosen_clips(reports)
    ranked = sorted(range(9), key=lambda i: -means[i])
    assert chosen == [ranked[i] for i in (0, 2, 3, 5, 6, 8)]
    assert chosen_clips(reports[:3]) == sorted(range(3), key=lambda i: -means[i])


def test_a_clip_without_a_ccc_is_drawn_only_where_there_are_few(split):
    reports = list(reports_by_clip(predictions_of(split), split.labels).values())
    reports[4] = replace(reports[4], concordance=(None, None))
    assert 4 not in chosen_clips(reports)
    assert chosen_clips(reports[3:6])[-1] == 1


def test_equal_predictions_give_equal_bytes(split, tmp_path):
    first, second = (traces(predictions_of(split), split, 0.0, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_run_and_its_folds_have_the_picture_and_a_run_on_clips_has_none(data, labelled, labelled_cache, tmp_path):
    how = affwild.SETTINGS | {"head": "gru", "hidden": 4, "epochs": 1, "ids": ["aff-wild2"]}
    emi.train_head(data.caches, data.train, data.valid, tmp_path / "run", **how)
    assert "](traces_valid.svg)" in (tmp_path / "run" / "README.md").read_text()
    before = (tmp_path / "run" / "traces_valid.png").read_bytes()
    (tmp_path / "run" / "traces_valid.png").write_bytes(b"")
    emi.train_head(data.caches, data.train, data.valid, tmp_path / "run", **how)
    assert (tmp_path / "run" / "traces_valid.png").read_bytes() == b"", "a finished run is drawn once"
    assert before
    emi.train_head(data.caches, data.train, None, tmp_path / "folds", **how, folds=2)
    assert (tmp_path / "folds" / "traces_folds.svg").is_file()
    assert "](traces_folds.svg)" in (tmp_path / "folds" / "README.md").read_text()
    files = LabelFiles.named(labelled / "train.csv", labelled / "valid.csv")
    clips = gather_inputs(labelled_cache, files).splits["valid"]
    draw_traces(tmp_path, "valid", clips.labels.values, clips, 0.0)
    assert not (tmp_path / "traces_valid.svg").exists()
