"""What data hold is shown on a terminal, and the terminal obeys none of it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import structlog
from rich.console import Console

from itool.artifacts.process import exit_code_of
from itool.cli.display import BarDisplay, open_bars
from itool.cli.echo import echo
from itool.cluster.progress import Progress
from itool.cluster.runner import Task
from itool.errors import InputError
from itool.logs import configure_logging, get_logger
from itool.stages import StageId
from itool.visible import visible
from tests.cli.command import Within

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
"""Sets the clipboard (OSC 52)."""


@pytest.mark.parametrize(
    ("obeyed", "shown"),
    [
        ("\x1b[2J", r"\u001b[2J"),
        ("\x9b2J", r"\u009b2J"),
        ("done\rfailed", r"done\u000dfailed"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
        ("\x7f\b", r"\u007f\u0008"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(obeyed: str, shown: str) -> None:
    assert visible(obeyed) == shown


def test_text_in_every_language_stays_as_it_is() -> None:
    text = "ünïcode\tשלום 東京 🙂 [red] ✓\n"
    assert visible(text) == text


def test_a_json_document_keeps_its_meaning() -> None:
    document = {"\x1b[1m": ["\x9b\u202e\x7f", "\udcff", "東京\n"]}
    text = visible(json.dumps(document, indent=2, ensure_ascii=False))
    assert json.loads(text) == document
    assert "東京" in text


def test_an_error_about_hostile_data_is_one_harmless_line(within: Within, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({f"data{CLIPBOARD}": 1}))
    code, out, err = within("plan", "--config", "config.yaml")
    assert (code, out) == (64, "")
    assert r"unknown key data\u001b]52;c;cm0gLXJmIH4=\u0007" in err
    assert "\x1b" not in err


def test_a_name_that_is_no_utf_8_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Python reads a byte of a name that it cannot decode as half a surrogate pair, which no stream takes."""
    echo(Path(os.fsdecode(b"runs/\xff")))
    assert capsys.readouterr().out == "runs/\\udcff\n"


def test_what_a_stage_reports_beside_its_bar_is_harmless() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    display = BarDisplay(progress=open_bars(console))
    display.progressed(Task(StageId(1, "dpo"), "0" * 16), Progress(1, 2, f"up{CLIPBOARD}", {"loss": CLIPBOARD, "rate": 1.0}))
    console.print(display.progress.get_renderable())
    display.progress.console.file = shown
    display.say(f"i1-dpo: failed: {CLIPBOARD}")
    assert "\x1b]" not in shown.getvalue()
    assert shown.getvalue().count(r"\u001b]52;c;") == 4


def test_a_log_on_a_terminal_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console")
    get_logger("test").warning("example dropped", example_id=CLIPBOARD)
    structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "u001b]52;c;cm0gLXJmIH4=" in said
    assert "\x1b]" not in said


def test_the_last_words_of_a_stage_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """They go into its log, and into its pod's status."""
    assert exit_code_of(InputError(f"data.jsonl:3: the row has {CLIPBOARD}")) == 65
    assert capsys.readouterr().err == "error: data.jsonl:3: the row has \\u001b]52;c;cm0gLXJmIH4=\\u0007\n"


def test_commands_print_through_echo_alone() -> None:
    folder = Path(__file__).parents[2] / "itool" / "cli"
    prints = {path.name for path in folder.glob("*.py") if "typer.echo" in path.read_text()}
    assert prints == {"echo.py", "status.py"}, "status clears the screen before what it prints"
