"""The pictures of a run: what is drawn, that they are the same every time, and the data that break plots."""

import io
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from train_head.data.labels import read_labels
from train_head.reports import figures
from train_head.reports.figures import curves, draw_run, scatter

EMI = ("Admiration", "Amusement", "Determination", "Empathic Pain", "Excitement", "Joy")


def history_of(names, epochs, seed=0):
    rng = np.random.default_rng(seed)
    records, best = [], -2.0
    for epoch in range(1, epochs + 1):
        values = rng.uniform(-0.1, 0.6, len(names))
        mean = float(values.mean())
        records.append(
            {
                "epoch": epoch,
                "train_loss": float(rng.uniform(0.05, 0.1)),
                "valid_mean_pearson": mean,
                "valid_pearson": dict(zip(names, values.tolist(), strict=True)),
                "best": mean > best,
            }
        )
        best = max(best, mean)
    return records


def data_of(clips, targets, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.uniform(size=(clips, targets))
    target[rng.uniform(size=target.shape) < 0.4] = 0
    return 0.3 + 0.3 * target + rng.normal(0, 0.1, target.shape), target


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were drawn, in order."""
    kept, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def check_files(written, stem):
    assert [path.name for path in written] == [f"{stem}.svg", f"{stem}.png"]
    assert ElementTree.parse(written[0]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    with Image.open(written[1]) as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 5
        return image.size


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_curves_are_those_of_the_history(tmp_path, drawn):
    history = history_of(EMI, 12)
    assert check_files(curves(history, tmp_path / "curves"), "curves") == (9 * 150, 3.4 * 150)
    left, right = drawn[0].axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [record["train_loss"] for record in history])
    found = [line.get_ydata() for line in right.lines if len(line.get_xdata()) == 12]
    wanted = [[record["valid_pearson"][name] for record in history] for name in EMI]
    np.testing.assert_array_equal(found, [*wanted, np.mean(wanted, axis=0)])
    best = int(np.argmax(np.mean(wanted, axis=0)))
    assert drawn[0].legends[0].get_title().get_text() == f"best epoch: {best + 1}"
    ranked = sorted(range(6), key=lambda k: -wanted[k][best])
    assert [text.split("  ")[1] for text in legend_texts(drawn[0])] == ["mean over targets", *(EMI[k] for k in ranked)]
    assert legend_texts(drawn[0])[0].startswith(f"{np.mean(wanted, axis=0)[best]:.3f}  ")


def test_each_panel_says_the_correlation_of_its_points(tmp_path, drawn):
    predicted, target = data_of(60, 6)
    check_files(scatter(predicted, target, EMI, tmp_path / "scatter_valid"), "scatter_valid")
    for k, axes in enumerate(drawn[0].axes):
        name, r = axes.get_title(loc="left").split("\n")
        assert name == EMI[k]
        assert float(r.removeprefix("r ")) == pytest.approx(np.corrcoef(predicted[:, k], target[:, k])[0, 1], abs=5e-4)
        points = axes.collections[0].get_offsets()
        np.testing.assert_array_equal(points, np.stack([target[:, k], predicted[:, k]], axis=1))
        assert axes.texts[0].get_text() == f"{100 * (target[:, k] == 0).mean():.0f} % are 0"


def test_a_missing_label_is_no_point_and_counts_nowhere(tmp_path, drawn):
    predicted, target = data_of(60, 2)
    gone = target.copy()
    gone[::3, 0] = np.nan
    scatter(predicted, gone, ("Joy", "Calm"), tmp_path / "s")
    joy, known = drawn[0].axes[0], ~np.isnan(gone[:, 0])
    np.testing.assert_array_equal(
        joy.collections[0].get_offsets(), np.stack([target[known, 0], predicted[known, 0]], axis=1)
    )
    r = np.corrcoef(predicted[known, 0], target[known, 0])[0, 1]
    assert joy.get_title(loc="left") == f"Joy\nr {r:.3f}".replace("-", "−")
    assert joy.texts[0].get_text() == f"{100 * (target[known, 0] == 0).mean():.0f} % are 0"


@pytest.mark.parametrize("number", [1, 5, 7, 12])
def test_panels_stand_in_rows_that_fit_a_page(tmp_path, drawn, number):
    names = [f"Target {k}" for k in range(number)]
    width, height = check_files(scatter(*data_of(20, number), names, tmp_path / "s"), "s")
    assert width <= 9 * 150 + 1
    assert height <= width * 1.2 + 150
    assert sum(axes.get_visible() for axes in drawn[0].axes) == number


@pytest.mark.parametrize("names", [["Joy"], [f"A feeling that has a very long name, number {k}" for k in range(17)]])
@pytest.mark.parametrize("epochs", [1, 9])
def test_one_epoch_one_target_and_many_are_drawn(tmp_path, drawn, names, epochs):
    check_files(curves(history_of(names, epochs), tmp_path / "curves"), "curves")
    texts = legend_texts(drawn[0])
    assert len(texts) == len(set(texts)) == (1 if len(names) == 1 else len(names) + 1)


def test_an_undefined_correlation_is_a_gap_and_is_called_so(tmp_path, drawn):
    history = history_of(("Joy", "Calm"), 5)
    for record in history:
        record["valid_pearson"]["Calm"] = None
    history[1]["valid_pearson"]["Joy"] = history[1]["valid_mean_pearson"] = None
    curves(history, tmp_path / "curves")
    joy = drawn[0].axes[1].lines[0].get_ydata()
    np.testing.assert_array_equal(np.isnan(joy), [False, True, False, False, False])
    assert legend_texts(drawn[0])[-1] == "undef  Calm"


@pytest.mark.parametrize(("pearson", "text"), [({"Joy": None}, "undefined"), ({}, "not watched")])
def test_curves_without_any_correlation_say_why(tmp_path, drawn, pearson, text):
    history = [record | {"valid_mean_pearson": None, "valid_pearson": pearson} for record in history_of(["Joy"], 3)]
    check_files(curves(history, tmp_path / "curves"), "curves")
    assert drawn[0].axes[1].texts[0].get_text() == text


@pytest.mark.parametrize("which", ["predictions", "labels", "both"])
def test_constant_columns_are_drawn_and_have_no_correlation(tmp_path, drawn, which):
    predicted, target = data_of(30, 1)
    predicted[:] = 0.3 if which != "labels" else predicted
    target[:] = 0.0 if which != "predictions" else target
    check_files(scatter(predicted, target, ["Joy"], tmp_path / "s"), "s")
    assert drawn[0].axes[0].get_title(loc="left") == "Joy\nr undefined"


@pytest.mark.parametrize("name", ["$x_1$", "_<&>", "悲しみ"])
def test_any_column_name_can_be_drawn(tmp_path, drawn, name):
    check_files(scatter(*data_of(10, 2), [name, "Joy"], tmp_path / "s"), "s")
    check_files(curves(history_of([name, "Joy"], 3), tmp_path / "curves"), "curves")
    assert any(text.endswith(f"  {name}") for text in legend_texts(drawn[1]))


def test_predictions_far_outside_are_inside_the_picture(tmp_path, drawn):
    predicted, target = data_of(10, 1)
    predicted[0] = 7.0
    scatter(predicted, target, ["Joy"], tmp_path / "s")
    low, high = drawn[0].axes[0].get_ylim()
    assert low < predicted.min() < predicted.max() < high


def test_shapes_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(4, 2\), labels \(4, 1\), expected both \(clips, 2\)"):
        scatter(np.zeros((4, 2)), np.zeros((4, 1)), ["a", "b"], tmp_path / "s")


def test_many_clips_make_no_large_vector_file(tmp_path):
    svg, _ = scatter(*data_of(3000, 1), ["Joy"], tmp_path / "s")
    assert svg.stat().st_size < 300_000


def test_equal_numbers_give_equal_bytes_whatever_the_caller_has_set(tmp_path):
    def draw(folder: Path) -> list[bytes]:
        folder.mkdir()
        written = [*curves(history_of(EMI, 4), folder / "curves"), *scatter(*data_of(40, 6), EMI, folder / "s")]
        return [path.read_bytes() for path in written]

    first = draw(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other", "axes.facecolor": "red", "savefig.dpi": 30}):
        assert draw(tmp_path / "b") == first
        assert matplotlib.rcParams["font.size"] == 20
    with Image.open(io.BytesIO(first[1])) as image:
        assert "Software" not in image.info


def test_nothing_but_whole_pictures_is_left_in_the_folder(tmp_path):
    curves(history_of(EMI, 3), tmp_path / "curves")
    curves(history_of(EMI, 4), tmp_path / "curves")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "curves.svg"]


def test_splits_without_targets_or_predictions_are_not_drawn(tmp_path):
    (tmp_path / "l.csv").write_text("Filename,Joy\n1,0.5\n2,0\n3,1\n")
    (tmp_path / "t.csv").write_text("Filename\n1\n")
    for name in ("valid", "test"):
        (tmp_path / f"predictions_{name}.csv").write_text("Filename,Joy\n1,0.4\n2,-0.1\n3,1.2\n")
    labels = {"train": tmp_path / "l.csv", "valid": tmp_path / "l.csv", "test": tmp_path / "t.csv"}
    draw_run(tmp_path, history_of(["Joy"], 2), {name: read_labels(path) for name, path in labels.items()})
    pictures = {path.name for path in tmp_path.iterdir() if path.suffix in (".svg", ".png")}
    assert pictures == {"curves.svg", "curves.png", "scatter_valid.svg", "scatter_valid.png"}


def test_the_first_drawing_on_a_machine_says_nothing_and_loads_no_pyplot(tmp_path):
    code = "import sys, train_head.reports.figures; assert 'matplotlib.pyplot' not in sys.modules"
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
