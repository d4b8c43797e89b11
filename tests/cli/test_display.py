"""What a person sees on a terminal: a bar for every attempt that works, whoever started it."""

from __future__ import annotations

import io

from rich.console import Console

from itool.cli.display import BarDisplay, PlainDisplay, ending, open_bars
from itool.cluster.decide import StartStage, Wait
from itool.cluster.progress import Progress
from itool.cluster.runner import Attempt, Task
from itool.stages import StageId

TASK = Task(StageId(1, "score"), "0" * 16)


def bars(display: BarDisplay) -> list[tuple[str, float, float | None]]:
    return [(bar.description, bar.completed, bar.total) for bar in display.progress.tasks]


def test_a_stage_has_one_bar_from_its_start_to_its_end() -> None:
    display = BarDisplay()
    display.decided(StartStage(TASK, 1, "has not run yet"))
    assert bars(display) == [("i1-score", 0.0, None)]
    display.progressed(TASK, Progress(3, 10, "examples"))
    assert bars(display) == [("i1-score", 3.0, 10.0)]
    display.ended(TASK, Attempt(1, "succeeded", 0))
    assert bars(display) == []


def test_on_80_columns_the_bar_gives_way_and_no_figure_is_cut() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    display = BarDisplay(progress=open_bars(console))
    display.progressed(Task(StageId(1, "dpo"), "0" * 16), Progress(12, 24, "updates", {"rate": 1.2031, "loss": 0.3452}))
    console.print(display.progress.get_renderable())
    line = shown.getvalue()
    assert "12/24 updates  1.203 updates/s  loss 0.3452 0:00:00" in line
    assert "…" not in line


def test_a_job_that_another_controller_started_has_a_bar_too() -> None:
    display = BarDisplay(stages_live_on=True)
    display.decided(Wait("i1-score running"))
    display.progressed(TASK, Progress(3, 10, "examples", {"rate": 2.0}))
    display.progressed(TASK, Progress(4, 10, "examples"))
    assert bars(display) == [("i1-score", 4.0, 10.0)]


def test_a_stopped_attempt_is_not_said_to_have_a_checkpoint() -> None:
    """`prepare` and `report` save none."""
    prepare = Task(StageId(0, "prepare"), "0" * 16)
    stopped = Attempt(1, "failed", 75, "stage i0/prepare was stopped", started_at=10.0, ended_at=12.0)
    assert ending(prepare, stopped) == "i0-prepare: stopped after 2.0 s: stage i0/prepare was stopped"


def test_nothing_is_kept_of_an_attempt_that_has_ended() -> None:
    display = PlainDisplay()
    display.progressed(TASK, Progress(3, 10, "examples"))
    display.ended(TASK, Attempt(1, "succeeded", 0))
    assert display._said == {}
