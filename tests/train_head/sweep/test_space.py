"""The space of a sweep: what may stand in the file, and what a trial makes of it."""

from pathlib import Path

import optuna
import pytest

from train_head.errors import TrainSettingsError
from train_head.sweep.space import read_space

FULL = """
head = ["mean", "lstm", "attention"]
loss = ["mse", "0.7*ccc + 0.3*mse"]
lr = { log = [1e-5, 1e-2] }
weight_decay = { uniform = [0.0, 0.1], step = 0.05 }
batch_size = { int = [16, 64], step = 16 }
standardise = [true, false]
layers = [1, 2]
epochs = 3

[lstm]
hidden = { log_int = [8, 64] }
dropout = 0.25

[attention]
hidden = [4, 8]

[augment]
mixup = [0.0, 0.2]
noise = 0.1
"""


def space(tmp_path: Path, text: str, *args, **settings):
    path = tmp_path / "space.toml"
    path.write_text(text)
    return read_space(path, *args, **settings)


def test_a_trial_draws_what_its_head_has_and_nothing_else(tmp_path):
    found = space(tmp_path, FULL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        values = found.suggest(trial)
        settings = found.settings(values)
        seen.add(settings.head)
        common = {"head", "loss", "lr", "weight_decay", "batch_size", "standardise", "augment.mixup"}
        own = {"mean": set(), "lstm": {"layers", "lstm.hidden"}, "attention": {"attention.hidden"}}
        assert values.keys() == common | own[settings.head] == trial.params.keys()
        assert (settings.lr, settings.loss, settings.epochs) == (values["lr"], values["loss"], 3)
        assert settings.augment == settings.augment | {"mixup": values["augment.mixup"], "noise": 0.1}
        assert values["weight_decay"] in (0.0, 0.05, 0.1)
        assert values["batch_size"] in (16, 32, 48, 64)
        assert 1e-5 <= values["lr"] <= 1e-2
        if settings.head == "lstm":
            assert settings.head_options["hidden"] == values["lstm.hidden"]
            assert (settings.head_options["layers"], settings.head_options["dropout"]) == (values["layers"], 0.25)
            assert 8 <= values["lstm.hidden"] <= 64
    assert seen == {"mean", "lstm", "attention"}


STREAMS = """
head = ["lstm", "mean"]

[face]
head = ["mean", "mlp", "gru"]
hidden = [4, 8]
layers = 1

[audio]
hidden = [16, 32]
standardise = [true, false]

[fusion]
hidden = [5, 6]
"""


@pytest.mark.parametrize("text", ["", 'head = "mlp"\n[streams.face]\nhead = "lstm"\n'])
def test_a_trial_draws_of_a_stream_what_the_head_of_the_stream_has(tmp_path, text):
    (tmp_path / "base.toml").write_text(text)
    found = space(tmp_path, STREAMS, tmp_path / "base.toml")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        values = found.suggest(study.ask())
        settings = found.settings(values)
        audio, face = settings.stream("audio"), settings.stream("face")
        seen.add((audio.head, face.head))
        common = {"head", "face.head", "audio.standardise", "fusion.hidden"}
        own = ({"audio.hidden"} if audio.head == "lstm" else set()) | (
            {"face.hidden"} if face.head != "mean" else set()
        )
        assert values.keys() == common | own
        assert (audio.head, face.head) == (values["head"], values["face.head"])
        if face.head != "mean":
            assert face.head_options["hidden"] == values["face.hidden"]
        if face.head == "gru":
            assert face.head_options["layers"] == 1
    assert len(seen) == 6


def test_a_stream_has_the_head_that_the_file_gives_it(tmp_path):
    (tmp_path / "base.toml").write_text('head = "mean"\n[streams.face]\nhead = "mlp"\n')
    found = space(tmp_path, "[face]\nhidden = [4, 8]\n", tmp_path / "base.toml")
    assert found.settings({"face.hidden": 8}).stream("face").head_options["hidden"] == 8
    with pytest.raises(TrainSettingsError, match=r"audio\.hidden is no option of mean, the only heads tried"):
        space(tmp_path, "[audio]\nhidden = [4, 8]\n", tmp_path / "base.toml")


def test_a_fusion_that_is_drawn_leaves_the_options_of_another_in_the_file(tmp_path):
    (tmp_path / "base.toml").write_text('[fusion]\nname = "concat"\nhidden = 32\nactivation = "relu"\n')
    found = space(tmp_path, '[fusion]\nname = ["concat", "transformer"]\nheads = 2\n', tmp_path / "base.toml")
    concat, transformer = (found.settings({"fusion.name": name}) for name in ("concat", "transformer"))
    assert (concat.fusion, concat.fusion_options["hidden"]) == ("concat", 32)
    assert (transformer.fusion_options["heads"], transformer.fusion_options["hidden"]) == (2, 128)


def test_the_space_stands_over_the_options_and_these_over_the_file(tmp_path):
    (tmp_path / "base.toml").write_text('head = "mlp"\nepochs = 9\nlr = 0.5\npatience = 4\n[mlp]\nhidden = 6\n')
    found = space(tmp_path, "lr = [0.1, 0.2]\nepochs = 2\n", tmp_path / "base.toml", epochs=5, batch_size=7, ema=None)
    settings = found.settings({"lr": 0.2}, seed=3)
    assert (settings.head, settings.head_options["hidden"], settings.patience) == ("mlp", 6, 4)
    assert (settings.epochs, settings.batch_size, settings.lr, settings.seed) == (2, 7, 0.2, 3)


def test_equal_spaces_are_equal_whatever_their_files_are_called(tmp_path):
    first = space(tmp_path, FULL)
    (tmp_path / "other.toml").write_text(FULL)
    assert first.to_dict() == read_space(tmp_path / "other.toml").to_dict()
    assert first.to_dict() != space(tmp_path, FULL.replace("1e-5", "1e-6")).to_dict()
    assert first.to_dict() != read_space(tmp_path / "other.toml", patience=3).to_dict()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing to try"),
        ("epochs = 3\n", "nothing to try"),
        ("lr = [", "not valid TOML"),
        ("lrr = [1e-3]\n", "lrr"),
        ("lr = { logg = [1e-5, 1e-2] }\n", "did you mean 'log'"),
        ("lr = { log = [1e-5] }\n", "lr: log needs a lowest and a highest value"),
        ("lr = { log = [0.0, 1.0] }\n", "lr:"),
        ("lr = { uniform = [0.2, 0.1] }\n", "lr:"),
        ("lr = { uniform = [0.0, 0.1] }\n", "lr must be above 0"),
        ("lr = { step = 1 }\n", "lr: one of log, uniform, int, log_int is needed"),
        ("batch_size = { int = [1.5, 3] }\n", "both whole numbers"),
        ("batch_size = { int = [true, 3] }\n", "both whole numbers"),
        ("batch_size = { uniform = [1.0, 3.0] }\n", "batch_size"),
        ("lr = []\n", "lr: the choices must be"),
        ("lr = [[1e-3], [1e-4]]\n", "lr: the choices must be"),
        ('head = ["lstm", "lstmm"]\n', "did you mean 'lstm'"),
        ('loss = ["ccc", "cccc"]\n', "cccc"),
        ("seed = [1, 2]\n", "seed is the same for all trials"),
        ("label_scale = 100\nlr = [1e-3]\n", "--set label_scale=VALUE"),
        ("lr = [1e-3]\nlstm = 3\n", "lstm must be a table"),
        ('head = ["mean", "lstm"]\n[attention]\nhidden = [3, 4]\n', "attention.hidden is no option of mean, lstm"),
        ("[lstm]\nhiden = [3, 4]\n", "hiden"),
        ("[augment]\nmixxup = [0.1]\n", "mixxup"),
        ("clip_value = { uniform = [1.0, inf] }\n", "both finite numbers"),
        ("dropout = { uniform = [0.0, 0.5], step = 0.2 }\n", "a step of 0.2 from 0.0 does not come to 0.5"),
        ('streams = ["audio", "audio+"]\n', "'audio+' must be names of different streams"),
        ('streams = ["audio+audio"]\n', "'audio+audio' must be names of different streams"),
        ('streams = ["audio+face", "face + audio"]\n', "'face + audio' is there twice"),
        ("streams = [1, 2]\n", "streams must be choices such as"),
        ('streams = ["audio"]\n[face]\nhead = ["mean"]\n', "face.head is of a stream that no choice of `streams` has"),
        ('streams = ["audio", "face"]\n[fusion]\nhidden = [4]\n', "fusion.hidden is no option of concat of one stream"),
        ('streams = ["audio", "face"]\nauxiliary = [0.0, 0.1]\n', "auxiliary is of several streams, and every choice"),
        ('[fusion]\nname = ["late"]\nhidden = [4]\n', "fusion.hidden is no option of late, the only fusions tried"),
        ('[fusion]\nname = ["late", "concatt"]\n', "did you mean 'concat'"),
        ("[fusion]\nhiden = [4]\n", "hiden"),
        ('[face]\nhead = ["mean", "men"]\n', "unknown head 'men'; did you mean 'mean'"),
        ('[face]\nhead = ["mean"]\nhidden = [3, 4]\n', "face.hidden is no option of mean"),
        ('[face]\nhead = ["mean", "mlp"]\nhidden = [3, -4]\n', "hidden"),
        ('[face]\nhead = ["mean", "mlp"]\nhiden = [3, 4]\n', "hiden"),
        (
            'head = ["mlp"]\nhidden = [4, 8]\n[mlp]\nhidden = [16]\n',
            "hidden stands there for all heads, and mlp.hidden",
        ),
    ],
)
def test_a_mistake_is_found_before_the_first_trial_and_named(tmp_path, text, said):
    with pytest.raises(TrainSettingsError, match=r"space\.toml") as error:
        space(tmp_path, text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        'head = "transformer"\n[transformer]\nhidden = [15, 30]\nheads = [3, 5]\n',
        "epochs = [40, 80]\nstop_after = [35]\n",
    ],
)
def test_values_that_need_each_other_are_no_mistake(tmp_path, text):
    assert space(tmp_path, text).drawn


def test_a_trial_whose_fusion_has_no_clock_has_none(tmp_path):
    drawn = space(tmp_path, 'clock = "face"\n[fusion]\nname = ["concat", "transformer"]\n')
    clocks = [drawn.settings({"fusion.name": name}).clock for name in ("concat", "transformer")]
    assert clocks == ["", "face"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TrainSettingsError, match=r"no file of a space at .*nowhere\.toml"):
        read_space(tmp_path / "nowhere.toml")
