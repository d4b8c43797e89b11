"""Report: every metric of the run -> report.json and a self-contained report.html. Reads every stage's artifact, trains nothing."""

from __future__ import annotations

import sys

from itool.artifacts.stage import Stage, run_stage
from itool.evaluate.explorer import build_explorer
from itool.evaluate.report import build_report
from itool.evaluate.report_html import render_html
from itool.evaluate.report_inputs import load_inputs


def report(stage: Stage) -> None:
    """Roles of this stage's inputs are the stages' own names, such as `i1/score`."""
    stage.working()
    inputs = load_inputs(stage.config, [stage.manifest(role) for role in stage.roles()], stage.path)
    built = build_report(inputs)
    stage.write_json("report.json", built.model_dump(mode="json"))
    (stage.output / "report.html").write_text(render_html(built, build_explorer(inputs)), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("report", report, argv)


if __name__ == "__main__":
    sys.exit(main())
