"""`itoolctl`: the command line. One file per command; commands are short, the library does the work.

Data goes to standard output, everything else to standard error. An error is one line that says what to do, and the exit code of
errors.py; ITOOL_DEBUG=1 adds the traceback. Nothing heavy is imported before a command needs it, so `--help` is immediate.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from itool.cli import artifacts, cancel, compare, doctor, iterate, logs, plan, report, runs, stages, status, wait
from itool.cli.echo import echo
from itool.errors import ItoolError, StorageError

WRONG_USAGE = 2
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Click's class for a wrong command line. Typer may bring a click of its own, and gives only what derives from it a public name."""

app = typer.Typer(
    name="itoolctl",
    help="Teach a language model to call tools: warm-up, then iterations of search and preference training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(asked: bool) -> None:
    """`itoolctl --version`: package version and, in a checkout, the commit; as in every manifest."""
    if asked:
        from itool.artifacts.manifest import code_version  # noqa: PLC0415 - other commands start without it

        echo(code_version())
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    _version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Before every command: log lines go to standard error; of a controller in a pod all, else only what is wrong."""
    if "--help" in sys.argv or "-h" in sys.argv:
        return
    from itool.logs import configure_logging  # noqa: PLC0415 - `--help` needs no logs

    in_a_pod = context.invoked_subcommand == "iterate" and not sys.stderr.isatty()
    configure_logging(level=logging.INFO if in_a_pod else logging.WARNING)


app.command("iterate")(iterate.iterate)
app.command("plan")(plan.plan)
app.command("status")(status.status)
app.command("wait")(wait.wait)
app.command("runs")(runs.runs)
app.command("cancel")(cancel.cancel)
app.command("logs")(logs.logs)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.add_typer(artifacts.app, name="artifacts")
app.command("stages")(stages.stages)
app.command("schema")(stages.schema)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line; every error becomes one line and its documented exit code."""
    _open_standard_streams()
    try:
        code = app(prog_name="itoolctl", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code or 0)
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):  # typer ends with 1 then
            _end_quietly()
        raise
    except ItoolError as error:
        _leave(str(error), error.exit_code)
    except UsageError as error:
        _leave(usage(error), WRONG_USAGE)
    except Exception as error:  # noqa: BLE001 - the CLI's boundary: an unforeseen error is one line too
        from itool.artifacts.process import as_itool_error  # noqa: PLC0415 - only a failing command needs it

        known = as_itool_error(error, place="the disk or standard output", use="target")
        if isinstance(known, StorageError):
            _leave(str(known), known.exit_code)
        said = str(error).rstrip(".")
        _leave(f"unforeseen {type(error).__name__}: {said}. Please report it with the traceback that ITOOL_DEBUG=1 shows", 1)


def usage(error: Any) -> str:
    """What is wrong on the command line, with the value that was given, and where to look. Help as it is, where nothing was given."""
    text = str(error.format_message())
    if "\n" in text:
        echo(text, err=True)
        sys.exit(WRONG_USAGE)
    refused = getattr(error.__context__, "errors", None)  # pydantic's, with which typer reads values
    given = repr(refused()[0]["input"]) if refused else ""
    text = text.replace("Value error, ", "").rstrip(".")
    where = error.ctx.command_path if error.ctx else "itoolctl"
    text = f"{text}{f' (given: {given})' if given not in text else ''}"
    return f"{text}{'' if text.endswith('?') else '.'} See `{where} --help`"


def _open_standard_streams() -> None:
    """Let the null device stand in for a stream that the caller has closed: the next file to be opened would take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _end_quietly() -> NoReturn:
    """Whoever read the output has seen enough; what is left in the buffers goes nowhere."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _leave(message: str, code: int) -> None:
    if os.environ.get("ITOOL_DEBUG") == "1":
        traceback.print_exc()
    echo(f"itoolctl: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
