"""A stage as a process of its own: stopped, killed, and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.artifacts.conftest import Run
from tests.artifacts.test_stage import PREPARE, prepare
from tests.fakes.waiting import wait_until

WORKER = """
    import sys, time
    from itool.artifacts.stage import run_stage
    from itool.errors import Interrupted

    def count(stage):
        folder = stage.latest_checkpoint()
        done = int((folder / "done").read_text()) if folder else 0
        stage.metrics({"resumed_at": done})
        stage.working()
        while done < 40:
            if stage.should_stop():
                (stage.scratch / "save").mkdir()
                (stage.scratch / "save/done").write_text(str(done))
                stage.save_checkpoint(stage.scratch / "save", done)
                raise Interrupted("stopped", remedy="Run again to resume")
            done += 1
            stage.tokens(1)
            stage.progress(done, 40, "updates")
            time.sleep(float(sys.argv[1]))
        stage.write("warmup.jsonl", [{"done": done}])

    if __name__ == "__main__":
        argv, sys.argv = sys.argv[2:], sys.argv[:2]
        sys.exit(run_stage("prepare", count, argv))
"""


class Launcher:
    """Starts the worker above as a process of its own, logging to a file."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.log = folder / "log"
        self._script = folder / "worker.py"
        self._script.write_text(textwrap.dedent(WORKER))
        self._run = run

    def start(self, seconds_per_update: float, *around: str) -> subprocess.Popen[bytes]:
        command = [*around, sys.executable, str(self._script), str(seconds_per_update), "--config", str(self._run.file)]
        with self.log.open("wb") as log:
            return subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})

    def is_working(self) -> bool:
        return b'"progress"' in self.log.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_stage_resumes_from_its_checkpoint(run: Run, tmp_path: Path, number: int) -> None:
    launcher = Launcher(run, tmp_path)
    worker = launcher.start(0.1)
    wait_until(launcher.is_working)
    worker.send_signal(number)
    assert worker.wait(60) == 75
    assert launcher.log.read_text().splitlines()[-1] == "interrupted: stopped. Run again to resume"
    assert run.resolution(PREPARE).state == "missing"
    assert launcher.start(0).wait(60) == 0
    manifest = run.resolution(PREPARE).manifest
    assert manifest is not None
    assert manifest.metrics["resumed_at"] > 0
    assert manifest.tokens == 40
    assert not [key for key in run.store.list("") if "checkpoints" in key]


@pytest.mark.usefixtures("s3_credentials")
def test_a_stage_that_is_stopped_before_its_store_has_answered_ends_at_once(tmp_path: Path) -> None:
    """As the first process of a pod it would not hear the signal without a handler."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        document = {"root": "s3://bucket/runs", "store": {"endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}"}}
        (tmp_path / "config.yaml").write_text(json.dumps(document))
        command = [sys.executable, "-m", "jobs.report", "--config", str(tmp_path / "config.yaml"), "--iteration", "1"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as stage:
            connection, _ = silent.accept()
            stage.send_signal(signal.SIGTERM)
            _, said = stage.communicate(timeout=10)
        connection.close()
    assert stage.returncode == 75
    assert said.splitlines()[-1] == "interrupted: stopped by SIGTERM. Run the same command again"


def test_a_killed_stage_leaves_no_artifact_and_its_folder_is_swept(folder_run: Run, tmp_path: Path) -> None:
    launcher = Launcher(folder_run, tmp_path)
    worker = launcher.start(0.1)
    wait_until(launcher.is_working)
    worker.kill()
    worker.wait()
    work = tmp_path / "store/.work"
    assert len(list(work.iterdir())) == 1
    assert folder_run.store.list("") == {}
    assert folder_run.stage("prepare", prepare) == 0
    assert not work.exists()
