"""The `emi` command. Each command lives in its own file and imports what is heavy only when it runs."""

import _thread
import contextlib
import inspect
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
    clean,
    compare,
    demo_data,
    ensemble,
    evaluate,
    extract,
    faces,
    finetune,
    import_weights,
    predict,
    streams,
    submission,
    sweep,
    table1,
    train_head,
)
from emi.cli.cache import compact, derive, export, import_, info, remove, transfer, verify

INTERRUPTED = 130

app = typer.Typer(
    name="emi",
    help="Emotional mimicry intensity from voice and face: extract features once, train heads in seconds, predict.",
    epilog="Start with: emi demo-data demo && emi extract demo/audio --cache demo.zarr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(
    help="Inspect, check, repair, convert, derive, import and export feature caches; remove clips.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cache_app, name="cache")
COMMANDS = {
    app: (
        extract.extract,
        faces.faces,
        import_weights.import_weights,
        train_head.train_head,
        predict.predict,
        evaluate.evaluate,
        ablate.ablate,
        sweep.sweep,
        finetune.finetune,
        table1.table1,
        compare.compare,
        ensemble.ensemble,
        submission.submission,
        demo_data.demo_data,
        clean.clean,
    ),
    cache_app: (
        info.info,
        verify.verify,
        verify.repair,
        compact.compact,
        transfer.convert,
        derive.derive,
        import_.import_,
        export.export,
        transfer.merge,
        remove.remove,
    ),
}
"""Commands in the order of `--help`; a docstring is the help text, and ends with an example."""

for group, commands in COMMANDS.items():
    for command in commands:
        text, _, example = inspect.cleandoc(command.__doc__ or "").partition("Example: ")
        name = command.__name__.rstrip("_").replace("_", "-")
        group.command(name, help=text, epilog=f"Example: {example}")(takes_paths(command))


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
    """Raise Ctrl-C again, a little later, where Python drops it: in a destructor, which may run during an import.

    SIGTERM is sent to the main thread, which wakes it; Ctrl-C's signal may be ignored, as in a shell's background.
    """
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    if hasattr(signal, "pthread_kill"):
        timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGTERM))
    else:
        timer = threading.Timer(0.05, _thread.interrupt_main, (signal.SIGTERM,))
    timer.daemon = True
    timer.start()


def _interrupt(*_: object) -> None:
    """Let SIGTERM unwind like Ctrl-C, so that finished work is committed."""
    raise KeyboardInterrupt
