"""Several raters per clip: their mean, its reliability, and one rater against the others."""

import json

import numpy as np
import pytest

import emi
from train_head.data.label_format import label_format
from train_head.data.labels import Labels, read_labels
from train_head.data.raters import Ratings, agreement, icc1k
from train_head.errors import LabelError
from train_head.evaluation.compare import compare
from train_head.evaluation.metrics import evaluate

SHROUT_AND_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float
)
"""Table 2 of Psychological Bulletin 86 (1979), p. 423: six clips by four raters; ICC(1,1) is .17 and ICC(1,4) .44."""


def long(table: np.ndarray) -> Ratings:
    """(clips, raters), NaN where a rater did not see a clip, as one row each."""
    clip, rater = np.nonzero(~np.isnan(table))
    return Ratings(tuple(f"r{i}" for i in range(table.shape[1])), rater, clip, table[clip, rater][:, None])


def test_the_reliability_is_that_of_the_textbook():
    ratings = long(SHROUT_AND_FLEISS)
    assert icc1k(ratings.values[:, 0], ratings.clip) == pytest.approx(0.4428, abs=1e-4)
    k = SHROUT_AND_FLEISS.shape[1]
    between = k * SHROUT_AND_FLEISS.mean(1).var(ddof=1)
    within = SHROUT_AND_FLEISS.var(axis=1, ddof=1).mean()
    assert icc1k(ratings.values[:, 0], ratings.clip) == pytest.approx((between - within) / between)


def test_unequal_numbers_of_ratings_estimate_the_same_reliability():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4000, 1)) + rng.normal(size=(4000, 4))  # one rating is as much clip as noise
    table[:2000, 2:] = np.nan
    ratings = long(table)
    harmonic = 2 / (1 / 2 + 1 / 4)
    assert icc1k(ratings.values[:, 0], ratings.clip) == pytest.approx(harmonic / (harmonic + 1), abs=0.02)


def test_one_rater_is_compared_with_the_mean_of_the_others():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(40, 1)) + rng.normal(size=(40, 3))
    found = agreement(long(table), ["V"])
    others = [np.delete(table, r, axis=1).mean(1) for r in range(3)]
    assert found.pearson[0] == pytest.approx(np.mean([np.corrcoef(table[:, r], others[r])[0, 1] for r in range(3)]))
    assert (found.raters, found.clips, found.per_clip) == (3, 40, 3.0)
    assert found.concordance[0] < found.pearson[0]


def test_what_cannot_be_known_is_undefined():
    alone = agreement(long(np.array([[1.0, np.nan], [np.nan, 0.5], [0.2, np.nan]])), ["V"])
    assert (alone.reliability, alone.pearson, alone.concordance) == ((None,), (None,), (None,))
    flat = agreement(long(np.full((5, 3), 0.5)), ["V"])
    assert (flat.reliability, flat.pearson) == ((None,), (None,))
    two = agreement(long(np.array([[0.1, 0.3], [0.5, 0.6]])), ["V"])
    assert two.pearson == (None,)  # two clips correlate perfectly, whatever they are
    nobody = agreement(long(np.full((2, 2), np.nan)), ["V"])
    assert (nobody.raters, nobody.clips, nobody.reliability) == (0, 0, (None,))


TEXT = "Filename,Joy,who,Sad,sex\n1,0,ann,1,f\n2,1,ben,,m\n1,.5,ben,0,f\n2,.5,cat,,m\n3,,ann,.2,f\n"


@pytest.fixture
def labels(tmp_path) -> Labels:
    (tmp_path / "l.csv").write_text(TEXT)
    return read_labels(tmp_path / "l.csv", label_format(rater="who", group_by="sex"))


def test_a_clip_has_the_mean_of_its_raters_and_missing_ratings_do_not_count(labels):
    assert (labels.ids, labels.names) == (("00001", "00002", "00003"), ("Joy", "Sad"))
    np.testing.assert_allclose(labels.values, [[0.25, 0.5], [0.75, np.nan], [np.nan, 0.2]])
    assert labels.groups == ("f", "m", "f")
    assert labels.ratings.raters == ("ann", "ben", "cat")


def test_ratings_follow_their_clips(labels):
    part = labels.take([2, 0])
    np.testing.assert_array_equal(part.ratings.mean(2).astype(np.float32), part.values)
    both = labels.ratings.joined(part.ratings, len(labels))
    np.testing.assert_allclose(both.mean(5), np.concatenate([labels.values, part.values]), rtol=1e-6)
    assert labels.take([]).ratings.mean(0).shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        (TEXT, {}, r"line 4: clip '1' stands in line 2 already; if these are several raters, give --rater 'who'"),
        ("Filename,Joy,annotator\n1,0,1\n1,.5,2\n2,1,1\n2,1,2\n", {}, "--rater 'annotator'"),
        ("Filename,Joy,x\n1,0,a\n1,0,a\n", {}, "stands in line 2 already$"),
        ("Filename,Joy,who\n1,0,a\n1,.5,a\n", {"rater": "who"}, "line 3: rater 'a' rated clip '1' in line 2 already"),
        ("Filename,Joy,who\n1,0,\n", {"rater": "who"}, "line 2, who: the rater is empty"),
        (
            "Filename,Joy,who,s\n1,0,a,x\n1,.5,b,y\n",
            {"rater": "who", "group_by": "s"},
            "of group 'y' here, and of 'x' b",
        ),
        (TEXT, {"rater": "who", "group_by": "who"}, "as --rater and as --group-by"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(tmp_path, text, form, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(LabelError, match=message):
        read_labels(tmp_path / "l.csv", label_format(**form))


def test_the_table_shows_the_model_beside_the_raters(labels):
    report = evaluate([[0.2, 0.1], [0.4, 0.2], [0.9, 0.3]], [[0.1, 0.2], [0.3, 0.1], [0.8, 0.4]], labels.names)
    found = agreement(labels.ratings, labels.names)
    assert "3 raters, 1.7 per clip, 3 clips" in found.table(report)
    assert f"{report.pearson[0]:.3f}" in found.table(report)
    assert "| Joy |" in found.markdown(report)
    assert found.to_dict()["ceiling_pearson"] == {"Joy": None, "Sad": None}


@pytest.fixture(scope="module")
def rated(labelled, tmp_path_factory):
    """The labelled clips, each by three of four raters, in a table of its own spelling."""
    root, rng = tmp_path_factory.mktemp("rated"), np.random.default_rng(0)
    for name in ("train", "valid"):
        part = read_labels(labelled / f"{name}.csv")
        rows = [
            (f, r, *np.clip(v + rng.normal(scale=0.1, size=2), 0, 1).round(2))
            for f, v in zip(part.filenames, part.values, strict=True)
            for r in rng.permutation(4)[:3]
        ]
        text = "".join(f"{f};rater {r};{str(a).replace('.', ',')};{b}\n" for f, r, a, b in rows)
        (root / f"{name}.csv").write_text(f"filename;Who;Joy;Calm\n{text}".replace(".", ","), encoding="utf-16")
    return root


QUICK = {"head": "mlp", "hidden": 4, "epochs": 1, "precision": "fp32", "device": "cpu", "rater": "Who"}


def test_a_run_is_trained_on_the_mean_and_reports_the_raters(rated, labelled_cache, tmp_path):
    files = {name: rated / f"{name}.csv" for name in ("train", "valid")}
    run = emi.train_head(labelled_cache, **files, out=tmp_path / "run", **QUICK)
    assert run.report.clips == 12
    assert run.agreement.reliability[0] > 0.8
    assert run.agreement.table(run.report).splitlines()[0] == "4 raters, 3.0 per clip, 12 clips"
    assert "### Raters" in (tmp_path / "run" / "README.md").read_text()
    assert emi.train_head(labelled_cache, **files, out=tmp_path / "run", **QUICK).resumed_at == 1
    from train_head.evaluation.compare import compare

    assert compare(tmp_path / "run", tmp_path / "run", resamples=5).difference.clips == 12


def test_folds_keep_the_ratings_and_their_labels_can_be_scored(rated, labelled_cache, tmp_path):
    from train_head.evaluation.baselines import training_mean
    from train_head.evaluation.scoring import read_pair

    files = {name: rated / f"{name}.csv" for name in ("train", "valid")}
    run = emi.train_head(labelled_cache, **files, out=tmp_path / "run", folds=2, **QUICK)
    folder = tmp_path / "run"
    assert run.agreement.clips == 40
    assert json.loads((folder / "summary.json").read_text())["raters"]["raters"] == 4
    assert "one rater" in (folder / "README.md").read_text()
    guess = folder / "predictions_folds.csv"
    predicted, truth = read_pair(guess, folder / "labels_folds.csv", label_format(rater="Who"))
    assert evaluate(predicted, truth.values, truth.names, training_mean(guess, truth)[0]) == run.report


def test_a_test_split_needs_no_raters_in_ensembles_and_comparisons(labelled, labelled_cache, tmp_path):
    for name in ("train", "valid"):
        header, *rows = (labelled / f"{name}.csv").read_text().split()
        lines = [f"{header},who", *(f"{row},{who}" for row in rows for who in ("a", "b"))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    files = {"train": tmp_path / "train.csv", "valid": tmp_path / "valid.csv", "test": labelled / "valid.csv"}
    for name, seed in (("one", 0), ("two", 1), ("three", 2)):
        emi.train_head(labelled_cache, **files, out=tmp_path / name, rater="who", head="mean", epochs=1, seed=seed)
    both = emi.ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert set(both.scored) == {"valid", "test"}
    assert set(emi.ensemble([tmp_path / "both", tmp_path / "three"], tmp_path / "all").scored) == {"valid", "test"}
    assert compare(tmp_path / "one", tmp_path / "two", split="test").difference.clips == 12
    assert compare(tmp_path / "both", tmp_path / "all").difference.clips == 12
