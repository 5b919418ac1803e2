"""The `emi` command. Each command lives in its own file and imports what is heavy only when it runs."""

import _thread
import contextlib
import signal
import sys
import threading
import traceback
from typing import Annotated, Any

import typer

from cache.errors import EmiError
from cache.paths import takes_paths
from emi.cli import (
    ablate,
    compare,
    demo_data,
    ensemble,
    evaluate,
    extract,
    finetune,
    predict,
    streams,
    sweep,
    table1,
    train_head,
)
from emi.cli.cache import compact as cache_compact
from emi.cli.cache import derive as cache_derive
from emi.cli.cache import export as cache_export
from emi.cli.cache import import_ as cache_import
from emi.cli.cache import info as cache_info
from emi.cli.cache import transfer as cache_transfer
from emi.cli.cache import verify as cache_verify

INTERRUPTED = 130

app = typer.Typer(
    name="emi",
    help="Emotional mimicry intensity from audio: extract features once, train heads in seconds, predict.",
    epilog="Start with: emi demo-data demo && emi extract demo/audio --cache demo.zarr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(
    help="Look at feature caches, check and mend them, and make others of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cache_app, name="cache")

app.command("extract", epilog=extract.EXAMPLE)(extract.extract)
app.command("train-head", epilog=train_head.EXAMPLE)(train_head.train_head)
app.command("predict", epilog=predict.EXAMPLE)(predict.predict)
app.command("evaluate", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("ablate", epilog=ablate.EXAMPLE)(ablate.ablate)
app.command("sweep", epilog=sweep.EXAMPLE)(sweep.sweep)
app.command("finetune", epilog=finetune.EXAMPLE)(finetune.finetune)
app.command("table1", epilog=table1.EXAMPLE)(table1.table1)
app.command("compare", epilog=compare.EXAMPLE)(compare.compare)
app.command("ensemble", epilog=ensemble.EXAMPLE)(ensemble.ensemble)
app.command("demo-data", epilog=demo_data.EXAMPLE)(demo_data.demo_data)
cache_app.command("info", epilog=cache_info.EXAMPLE)(cache_info.info)
cache_app.command("verify", epilog=cache_verify.EXAMPLE)(cache_verify.verify)
cache_app.command("repair", epilog=cache_verify.REPAIR_EXAMPLE)(cache_verify.repair)
cache_app.command("compact", epilog=cache_compact.EXAMPLE)(cache_compact.compact)
cache_app.command("convert", epilog=cache_transfer.EXAMPLE)(cache_transfer.convert)
cache_app.command("derive", epilog=cache_derive.EXAMPLE)(cache_derive.derive)
cache_app.command("import", epilog=cache_import.EXAMPLE)(cache_import.import_)
cache_app.command("export", epilog=cache_export.EXAMPLE)(cache_export.export)
cache_app.command("merge", epilog=cache_transfer.MERGE_EXAMPLE)(cache_transfer.merge)


for command in (*app.registered_commands, *cache_app.registered_commands):
    if command.callback is not None:
        command.callback = takes_paths(command.callback)


def _version(wanted: bool) -> None:
    if wanted:
        from cache.version import version

        typer.echo(f"emi {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: a user's error is one sentence and exit code 2, an interruption 130."""
    streams.open_closed_streams()
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _interrupt_again
    try:
        code = _exit_code(arguments)
        streams.write_out()
    except BrokenPipeError:  # nobody reads on, as with `| head`
        sys.exit(1)
    except Exception as error:
        sentence = _sentence(error)
        if debug or sentence is None:
            traceback.print_exc()
        if sentence is not None:
            streams.say(f"emi: {sentence}")
        with contextlib.suppress(OSError):
            streams.write_out()
        sys.exit(1 if sentence is None else 2)
    if code == INTERRUPTED:  # typer turns KeyboardInterrupt into this
        streams.say("emi: stopped; what was finished is kept, and the same command resumes there")
    sys.exit(code)


def _exit_code(arguments: list[str]) -> Any:
    try:
        app(arguments)
    except SystemExit as stop:
        return stop.code
    return 0


def _sentence(error: Exception) -> str | None:
    """What to say of an error that the user can mend; None for a fault of the program."""
    if isinstance(error, EmiError):
        return str(error)
    if (full := streams.why_not_written(error)) is not None:
        return full
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; see `emi COMMAND --help` for what is written where"
    if isinstance(error, OSError) and error.strerror is not None:
        return f"a file could not be read or written ({error.strerror}); --debug shows which"
    return None


def _interrupt_again(unraisable: Any) -> None:
    """Raise Ctrl-C again, a little later, where Python drops it: in a destructor, which may run during an import."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        timer = threading.Timer(0.05, _interrupt_main_thread)
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt_main_thread() -> None:
    """Send SIGTERM to the main thread, which wakes it; Ctrl-C's signal may be ignored, as in a shell's background."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)


def _interrupt(*_: object) -> None:
    """Let SIGTERM unwind like Ctrl-C, so that finished work is committed."""
    raise KeyboardInterrupt
