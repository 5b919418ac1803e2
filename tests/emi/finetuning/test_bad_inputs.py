"""What cannot work is one sentence before the first step, and nothing is written."""

import csv
import shutil

import pytest
from typer.testing import CliRunner

import emi
from cache.errors import EmiError
from emi.cli import app
from emi.finetuning.media import DecodedMedia
from emi.finetuning.processes import Processes
from emi.finetuning.settings import FinetuneSettings, resolve
from extract.backbones import identify
from train_head.errors import TrainSettingsError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"freeze": "layers:13"}, r"the backbone has 12 layers; give layers:N with N up to that"),
        ({"freeze": "cnns"}, "freeze must be none, cnn, layers:N, backbone or all-but-attention, got 'cnns'"),
        ({"freeze": "layers:x"}, "freeze must be"),
        ({"lora": 4}, "give freeze backbone beside it"),
        ({"freeze": "backbone", "layerdrop": 0.1}, "change nothing in a frozen backbone"),
        ({"backbone_lr": 0.0}, "backbone_lr must lie from"),
        ({"speed": 0.9}, "speed must lie from 0 to 0.5"),
        ({"mixup": 0.2}, "mixup mixes cached features"),
        ({"micro_batch": 4}, "micro_batch is for heads on cached features"),
        ({"precision": "fp16"}, "fp16 trains on a GPU only"),
        ({"frezze": "cnn"}, "unknown"),
        ({"audio_dtype": "int8"}, "unknown"),
        ({"fsdp": True, "layerdrop": 0.1}, "with layerdrop each process skips other layers"),
    ],
)
def test_settings(tune, tmp_path, settings, said):
    with pytest.raises(EmiError, match=said):
        tune(tmp_path / "ft", **settings)
    assert not (tmp_path / "ft").exists()


def test_one_process_has_nobody_to_split_the_weights_with(tune, labelled, tmp_path):
    """Also where the rows of a table would get there only after hours."""
    said = "splits the weights over several processes, and this is one; give --processes 2, or start torchrun"
    with pytest.raises(TrainSettingsError, match=said):
        tune(tmp_path / "ft", fsdp=True)
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv")
    with pytest.raises(TrainSettingsError, match=said):
        emi.table1(*files, tmp_path / "table", backbone="silero", fsdp=True)
    named = zip(("--media", "--train", "--valid", "--out"), (*files, tmp_path / "cli"), strict=True)
    typed = [str(part) for pair in named for part in pair]
    done = CliRunner().invoke(app, ["finetune", *typed, "--backbone", "silero", "--fsdp"])
    assert said in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_backbone_without_layers_to_train(tune, labelled, tmp_path, monkeypatch):
    """A family from another package that can only extract."""
    import extract.backbones as backbones

    class Fixed:
        identify = staticmethod(backbones.BACKBONES["silero"].identify)

    monkeypatch.setitem(backbones.BACKBONES, "silero", Fixed())
    with pytest.raises(EmiError, match=r"cannot be trained by emi .*emi train-head"):
        tune(tmp_path / "ft", "silero")


def test_silero_has_no_attention_for_adapters_and_no_layers_to_drop(tune, tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(EmiError, match="silero has no attention layers for --lora"):
        tune(tmp_path / "a", "silero", freeze="backbone", lora=2)
    with pytest.raises(EmiError, match="silero has neither SpecAugment"):
        tune(tmp_path / "b", "silero", layerdrop=0.1)
    with pytest.raises(EmiError, match="has 1 layers"):
        tune(tmp_path / "c", "silero", freeze="layers:2")


def test_a_head_of_another_backbone_or_of_other_targets(tune, labelled, labelled_cache, checkpoint, tmp_path):
    files = (labelled / "train.csv", labelled / "valid.csv")
    emi.train_head(labelled_cache, *files, tmp_path / "head", epochs=1, hidden=8)
    with pytest.raises(TrainSettingsError, match=r"384 features per frame and 0 of VAD, and .* gives 32 and 3"):
        tune(tmp_path / "ft", init_head=tmp_path / "head")
    with pytest.raises(TrainSettingsError, match="is another head than the settings ask for"):
        tune(tmp_path / "ft", "silero", init_head=tmp_path / "head", hidden=16)
    renamed = tmp_path / "renamed.csv"
    renamed.write_text((labelled / "train.csv").read_text().replace("Joy", "Fear"))
    with pytest.raises(TrainSettingsError, match=r"predicts Joy, Calm, and .*renamed\.csv has Fear, Calm"):
        emi.finetune(
            labelled / "audio", renamed, renamed, tmp_path / "ft", backbone="silero", init_head=tmp_path / "head"
        )


def test_a_head_of_other_weights(tune, labelled, checkpoint, tiny, tmp_path):
    tune(tmp_path / "tuned", backbone_lr=1e-3, epochs=1)
    emi.extract(labelled / "audio", tmp_path / "f.zarr", backbone=str(tmp_path / "tuned"))
    files = (labelled / "train.csv", labelled / "valid.csv")
    emi.train_head(tmp_path / "f.zarr", *files, tmp_path / "head", epochs=1, hidden=8)
    with pytest.raises(TrainSettingsError, match="with other weights than"):
        tune(tmp_path / "ft", init_head=tmp_path / "head")


@pytest.fixture
def broken(labelled, tmp_path):
    """The labelled clips, one of them damaged and one missing."""
    shutil.copytree(labelled / "audio", tmp_path / "media")
    (tmp_path / "media" / "00003.wav").write_bytes(b"RIFFrubbish")
    return tmp_path / "media"


def test_unreadable_media_are_named_before_the_first_step(broken, labelled, tmp_path):
    out, files = tmp_path / "ft", (labelled / "train.csv", labelled / "valid.csv")
    with pytest.raises(EmiError, match=r"1 of 40 clips cannot be read; the first, .*00003\.wav.*--skip-missing"):
        emi.finetune(broken, *files, out, backbone="silero")
    assert not out.exists()
    with (tmp_path / "ft-audio" / "failures.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["00003"]
    result = emi.finetune(broken, *files, out, backbone="silero", skip_missing=True, epochs=1, hidden=8)
    assert result.skipped == 1
    assert emi.finetune(broken, *files, out, backbone="silero", skip_missing=True, epochs=1, hidden=8).resumed_at == 1


def test_labelled_clips_without_media_are_counted(broken, labelled, tmp_path):
    (broken / "00003.wav").unlink()
    files = (labelled / "train.csv", labelled / "valid.csv")
    with pytest.raises(EmiError, match=r"1 of the 28 clips of .*train\.csv are not in .*media \(first: 3\)"):
        emi.finetune(broken, *files, tmp_path / "ft", backbone="silero")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(broken / "00001.wav", elsewhere / "other.wav")
    with pytest.raises(EmiError, match="the media are called like 'other'"):
        emi.finetune(elsewhere, *files, tmp_path / "ft", backbone="silero")


def test_labels_per_frame(labelled, tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "00000.txt").write_text("valence\n0.1\n0.3\n")
    files = (labelled / "audio", tmp_path / "frames", tmp_path / "frames", tmp_path / "ft")
    with pytest.raises(EmiError, match="has labels per frame, and fine-tuning on sound takes one value per clip"):
        emi.finetune(*files, backbone="silero", label_fps=10)
    assert not (tmp_path / "ft").exists()


def test_another_run_in_the_folder_is_refused_by_name(tune, tmp_path):
    tune(tmp_path / "ft", epochs=1)
    with pytest.raises(EmiError, match=r"holds another run: --freeze \(there 'cnn', now 'none'\)"):
        tune(tmp_path / "ft", epochs=1, freeze="none")
    tune(tmp_path / "ft", epochs=1, batch_seconds=5.0, checkpointing=True)  # memory, not numbers


def test_the_table_of_a_settings_file_is_read_and_checked(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('lr = 1e-3\n[finetune]\nfreeze = "layers:2"\nbackbone_dropout = 0.2\n[lstm]\nhidden = 7\n')
    settings, tuning = resolve(path, backbone_lr=1e-4)
    assert (settings.lr, settings.head_options["hidden"]) == (1e-3, 7)
    assert tuning == FinetuneSettings(freeze="layers:2", backbone_dropout=0.2, backbone_lr=1e-4)
    for text, said in (
        ("[finetune]\nfreese = 'cnn'\n", "freeze"),
        ("[finetune]\nlora = 1.5\n", "finetune.lora must be a int"),
        ("finetune = 3\n", "must be a table"),
    ):
        path.write_text(text)
        with pytest.raises(TrainSettingsError, match=said):
            resolve(path)


def test_media_that_changed_are_another_run(labelled, tmp_path):
    """A run that was begun on other sound must not go on as if nothing were."""
    shutil.copytree(labelled / "audio", tmp_path / "media")
    arguments = (tmp_path / "media", labelled / "train.csv", labelled / "valid.csv", tmp_path / "ft")
    settings = {"backbone": "silero", "epochs": 1, "hidden": 8}
    emi.finetune(*arguments, **settings)
    shutil.copy(tmp_path / "media" / "00003.wav", tmp_path / "media" / "00004.wav")
    with pytest.raises(EmiError, match=r"holds another run: --media \(the sound of its clips"):
        emi.finetune(*arguments, **settings)


def test_a_run_folder_called_silero_is_no_trap(labelled, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv")
    emi.finetune(*files, "silero", backbone=str(checkpoint), epochs=1, hidden=8)
    assert emi.load("silero").predict(labelled / "audio" / "00000.wav")
    emi.finetune(*files, "tuned/silero", backbone="silero", epochs=1, hidden=8)
    monkeypatch.chdir(tmp_path / "tuned")
    from extract.backbones import identify

    assert identify("silero").fingerprint != identify(str(tmp_path / "tuned" / "silero")).fingerprint


def test_a_renamed_backbone_is_the_same(labelled, checkpoint, audio, tmp_path):
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv")
    for name in ("a", "b"):
        shutil.copytree(checkpoint, tmp_path / name)
    for name in ("a", "b"):
        result = emi.finetune(*files, tmp_path / "ft", backbone=str(tmp_path / name), audio=audio, epochs=1, hidden=8)
    assert result.resumed_at == 1


def test_adapters_in_wavlm_are_refused(labelled, tiny, tmp_path):
    pytest.importorskip("peft")
    tiny.model("wavlm", **tiny.layer_norm).save_pretrained(tmp_path / "wavlm")
    tiny.save_preprocessor(tmp_path / "wavlm")
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv", tmp_path / "ft")
    with pytest.raises(EmiError, match="--lora would train nothing"):
        emi.finetune(*files, backbone=str(tmp_path / "wavlm"), freeze="backbone", lora=2)


def test_one_fold_needs_the_number_of_folds_and_nothing_is_decoded_before(labelled, tmp_path):
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv", tmp_path / "ft")
    with pytest.raises(TrainSettingsError, match="--only-fold takes 0 to 1"):
        emi.finetune(*files, backbone="silero", folds=2, only_fold=2)
    assert not list(tmp_path.iterdir())


def test_a_fine_tuned_run_records_the_licence_of_its_backbone(tiny, labelled, tmp_path):
    tiny.save_audeering(tmp_path / "weights")
    (tmp_path / "weights" / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n")
    source = DecodedMedia(
        root=labelled / "audio",
        identity=identify(str(tmp_path / "weights")),
        tuning=FinetuneSettings(),
        precision="fp32",
        processes=Processes("cpu"),
    )
    assert source.tables()["licence"] == {"name": "CC BY-NC-SA 4.0", "commercial_use": "no"}
