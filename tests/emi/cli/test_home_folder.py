"""`~` is the home folder in every option and argument of every command, and in the Python API."""

import functools
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import emi
import emi.api
import emi.cli
from cache.paths import NOT_PATHS, takes_paths

COMMANDS = {
    f"{group} {command.name}".strip(): command
    for group, app in (("", emi.cli.app), ("cache", emi.cli.cache_app))
    for command in app.registered_commands
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def given(command, arguments):
    """What a command's function gets."""
    seen = {}

    @functools.wraps(command.callback.__wrapped__)
    def record(**values):
        seen.update(values)

    app = typer.Typer(rich_markup_mode=None)
    app.command()(takes_paths(record))
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return seen


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_of_every_command_may_start_with_it(home, name, joined):
    root = typer.main.get_command(emi.cli.app)
    parameters = functools.reduce(lambda group, part: group.commands[part], name.split(), root).params
    hints = typing.get_type_hints(COMMANDS[name].callback)
    text = (Path, Path | None, str, str | None, list[str], list[Path])
    texts = {key for key, hint in hints.items() if hint in text or "list[str]" in str(hint)}
    arguments, expected = [], {}
    for parameter in parameters:
        if parameter.name not in texts - NOT_PATHS:
            continue
        place = f"~/{parameter.name}"
        if parameter.param_type_name == "argument":
            arguments.append(place)
        else:
            arguments += [f"{parameter.opts[0]}={place}"] if joined else [parameter.opts[0], place]
        expected[parameter.name] = home / parameter.name
    seen = given(COMMANDS[name], arguments)
    assert expected
    for parameter, place in expected.items():
        value = seen[parameter][0] if isinstance(seen[parameter], list | tuple) else seen[parameter]
        assert Path(value) == place


def test_a_regular_expression_keeps_the_sign(home):
    command = COMMANDS["evaluate"]
    assert given(command, ["~/p", "l", "--group-by", "~/(.)"])["group_by"] == "~/(.)"


def test_every_function_of_the_api_that_takes_a_path_takes_it(home):
    functions = [getattr(emi, name) for name in emi.__all__ if name not in ("EmiError", "open_cache")]
    assert all(hasattr(function, "__wrapped__") for function in functions)


def test_the_two_stages_and_prediction_in_the_home_folder(home, labelled):
    (home / "m").symlink_to(labelled / "audio")
    for name in ("train.csv", "valid.csv"):
        (home / name).symlink_to(labelled / name)
    emi.extract("~/m", "~/c.zarr")
    assert len(emi.open_cache("~/c.zarr")) == 40
    emi.train_head("~/c.zarr", "~/train.csv", Path("~/valid.csv"), out="~/run", epochs=1, head="mean")
    (record,) = emi.load("~/run").predict(["~/m/00003.wav"])
    assert record["Filename"] == "00003"
    (home / "list.csv").write_text("Filename\n3\n4.wav\n")
    records = emi.load(Path("~/run")).predict("~/list.csv", media_root="~/m")
    assert [record["Filename"] for record in records] == ["00003", "00004"]
    assert not Path("~").exists()
    ours = (path.name for path in home.iterdir() if not path.name.startswith("."))  # libraries keep caches there
    assert sorted(ours) == ["c.zarr", "list.csv", "m", "run", "train.csv", "valid.csv"]
