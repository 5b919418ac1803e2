"""The licence of a checkpoint's weights: in its model card, in the run that made it, and said before it is used."""

import pytest
import tomli_w
from typer.testing import CliRunner

from cache.licences import UNKNOWN, Licence, licence_of
from cache.reader import open_cache
from emi.cli import app
from extract.backbones import identify
from extract.backbones.licence import licence_of_weights
from extract.errors import BackboneError

CARD = "---\nlanguage: en\nlicense: cc-by-nc-sa-4.0\n---\n# Model\n"
NC = Licence(name="CC BY-NC-SA 4.0", commercial_use="no")


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A small checkpoint whose card forbids commercial use."""
    folder = tmp_path_factory.mktemp("weights") / "small"
    tiny.save_audeering(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def test_the_model_card_in_a_folder_is_read_and_a_broken_one_is_ignored(checkpoint, tmp_path):
    assert identify(str(checkpoint)).licence == licence_of_weights(str(checkpoint)) == NC
    assert identify("silero").licence == Licence(name="MIT", commercial_use="yes")
    assert licence_of_weights(str(tmp_path)) == licence_of_weights("some/id") == licence_of_weights("") == UNKNOWN
    for text in ("no front matter", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense:\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert licence_of_weights(str(tmp_path)) == UNKNOWN
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert licence_of_weights(str(tmp_path)) == UNKNOWN


def test_a_fine_tuned_run_inherits_the_licence(tmp_path):
    for config, licence in (
        ({"licence": NC.to_dict(), "backbone": {"source": "silero"}}, NC),
        ({"backbone": {"source": "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"}}, NC),
        ({"backbone": {"source": "/gone"}}, UNKNOWN),
    ):
        (tmp_path / "config.toml").write_text(tomli_w.dumps(config))
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
        assert licence_of_weights(str(tmp_path)) == licence


def test_extract_prints_the_licence_first_and_stores_it_in_the_cache(checkpoint, labelled, tmp_path):
    media, cache = str(labelled / "audio" / "00000.wav"), str(tmp_path / "c.zarr")
    result = CliRunner().invoke(app, ["extract", media, "--cache", cache, "--backbone", str(checkpoint)])
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0].startswith(f"{checkpoint}: licence CC BY-NC-SA 4.0, commercial use: no; ")
    with open_cache(cache) as store:
        assert licence_of(store.header) == NC
        assert "licence" not in store.fingerprint
    info = CliRunner().invoke(app, ["cache", "info", cache]).stdout
    assert "weights: licence CC BY-NC-SA 4.0, commercial use: no" in info


def test_the_licence_is_printed_before_any_download(labelled, tmp_path, monkeypatch):
    def download(_: str) -> None:
        raise BackboneError("it was to be downloaded")

    monkeypatch.setattr("extract.backbones.speech.family.find_checkpoint", download)
    paper = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
    command = ["extract", str(labelled / "audio"), "--cache", str(tmp_path / "c.zarr"), "--backbone", paper]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, BackboneError)
    assert f"{paper}: licence CC BY-NC-SA 4.0, commercial use: no" in result.stderr


def test_a_revision_does_not_hide_the_licence_of_an_id():
    name = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
    assert licence_of_weights(f"{name}@main") == licence_of_weights(name)
    assert licence_of_weights(name).commercial_use == "no"
