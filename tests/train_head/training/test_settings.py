"""Settings of a training: values that no training can use are refused in one sentence."""

import pytest

from train_head.errors import TrainSettingsError
from train_head.targets import Targets
from train_head.training.compatibility import check_targets
from train_head.training.settings import resolve_settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": -1}, "seed must not be negative"),
        ({"seed": 2**40}, "seed must be below"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs must be finite"),
        ({"lr": float("inf")}, "lr must be finite"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"augment": 5}, "augment must be a table"),
        ({"head": ["mean"]}, "head must be a str"),
        ({"head": "lstm", "global_vector": 3}, "global_vector must be true or false"),
        ({"head": "lstm", "global_vector": "False"}, "global_vector must be true or false"),
        ({"head": "lstm", "hidden": 4.5}, "hidden must be a whole number"),
        ({"head": "lstm", "hidden": True}, "hidden must be a whole number"),
        ({"head": "lstm", "layers": 2.0}, "layers must be a whole number"),
        ({"head": "lstm", "dropout": "x"}, "dropout must lie in"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(settings, said):
    with pytest.raises(TrainSettingsError, match=said):
        resolve_settings(**settings)


@pytest.mark.parametrize(("loss", "named"), [("ccc", "ccc"), ("0.5*mse + 0.5*pearson", "pearson")])
def test_a_batch_of_one_clip_has_nothing_to_compare_and_one_of_many_rows_has(loss, named):
    settings = resolve_settings(batch_size=1, loss=loss)
    with pytest.raises(TrainSettingsError, match=f"the loss {named} compares the clips of a batch"):
        check_targets(settings, Targets(names=("Joy",)))
    check_targets(settings, Targets(names=("Joy",), resolution="frame"))
    check_targets(resolve_settings(batch_size=1, loss="mse"), Targets(names=("Joy",)))


def test_options_of_a_head_must_be_a_table(tmp_path):
    (tmp_path / "config.toml").write_text("lstm = 5\n")
    with pytest.raises(TrainSettingsError, match="lstm must be a table"):
        resolve_settings(tmp_path / "config.toml")
