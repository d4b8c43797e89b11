"""The command line as a person or a script meets it: real exit codes, data on stdout and all else on stderr."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from itool.artifacts.disk import storage_error
from itool.artifacts.manifest import code_version
from itool.artifacts.store import FolderStore
from itool.cli import display, options  # noqa: F401 - imported before a command is given a second
from itool.cluster.controller import Controller
from itool.cluster.leases import FolderLease
from itool.config import RunConfig
from itool.stages import STAGES
from tests.cli.command import Itoolctl, Within, one_line
from tests.cluster.in_memory_runner import InMemoryRunner
from tests.fakes.ctrl_c import ctrl_c_when_heard


def test_help_needs_no_torch_and_nothing_heavy(itoolctl: Itoolctl) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch','transformers','peft','trl','boto3','pydantic','rich','yaml']));"
    code = f"{blocked} sys.argv=['itoolctl','--help']; from itool.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=itoolctl.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("iterate", "plan", "status", "logs", "report", "compare", "artifacts", "stages", "doctor", "cancel", "runs", "wait"):
        assert f"  {command}" in done.stdout


@pytest.mark.parametrize("group", [(), ("artifacts",)])
def test_a_list_of_commands_says_each_in_a_whole_sentence(group: tuple[str, ...], within: Within) -> None:
    assert "..." not in within(*group, "--help")[1].partition("Commands:")[2]


def test_version_is_that_of_the_manifests(itoolctl: Itoolctl) -> None:
    assert itoolctl("--version").stdout.strip() == code_version()


def test_the_stages_are_listed_in_lines_of_at_most_120_characters(within: Within) -> None:
    ended_with, output, _ = within("stages")
    assert ended_with == 0
    header, *rows = output.splitlines()
    assert header.split() == ["stage", "GPU", "shards", "purpose"]
    assert [row.split()[0] for row in rows] == list(STAGES)
    assert max(map(len, rows)) <= 120


def test_the_shell_is_told_how_a_command_goes_on(itoolctl: Itoolctl) -> None:
    done = itoolctl(_ITOOLCTL_COMPLETE="complete_bash", COMP_WORDS="itoolctl pl", COMP_CWORD="1")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["plan"], "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["iterate", "--set", "search.widht=3"], 64, "unknown key search.widht; allowed here:"),
        (["iterate", "--set", "search.width=0"], 64, "search.width = 0"),
        (["plan", "--config", "nowhere.yaml"], 64, "configuration file nowhere.yaml does not exist"),
        (["plan", "--config", "."], 64, " is a folder. Give a file with --config"),
        (["iterate", "--root", ""], 64, "root is empty. Use a folder or s3://bucket/prefix"),
        (["artifacts", "ls", "--root", ""], 64, "root is empty."),
        (["plan", "--run", "Not_A_Label"], 64, "run = 'Not_A_Label' is no DNS label"),
        (["plan", "--run", "demo", "--set", "root="], 64, "root = null: input should be a valid string"),
        (["plan", "--run", "nope"], 65, "there is no run nope in runs. Give --config to start it"),
        (["iterate", "--run", "nope", "--root", "my runs"], 65, "there is no run nope in my runs. Give --config to start it"),
        (["status", "--root", "my runs"], 65, "Start one with `itoolctl iterate --root 'my runs'`, or give --root"),
        (["status"], 65, "there is no run in runs"),
        (["status", "nothing"], 65, "there is no run nothing in runs"),
        (["cancel", ""], 64, "run = '' is no DNS label"),
        (["logs", "score", "--run", "demo "], 64, "run = 'demo ' is no DNS label"),
        (["compare", "../demo", "demo"], 64, "run = '../demo' is no DNS label"),
        (["report", "nothing"], 65, "there is no run nothing in runs"),
        (["compare", "one"], 64, "compare needs at least two runs"),
        (["logs", "training"], 64, "'training' is no stage"),
        (["logs", "i2/score", "--iteration", "1"], 64, "i2/score and --iteration 1 are two iterations. Give one of them"),
        (["iterate", "--n", "x"], 2, "(given: 'x'). See `itoolctl iterate --help`"),
        (["iterate", "--backend", "gpu"], 2, "itoolctl: Invalid value for '--backend': 'gpu' is not one of 'local', 'kubernetes'. See"),
        (["artifacts", "get", "x"], 2, "itoolctl: Missing argument 'FOLDER'. See `itoolctl artifacts get --help`"),
        (["nope"], 2, "itoolctl: No such command 'nope'. See `itoolctl --help`"),
        (["iterat"], 2, "itoolctl: No such command 'iterat'. Did you mean 'iterate'? See `itoolctl --help`"),
        (["artifacts", "ls", "nope"], 65, "there is no run nope in runs. Start one with"),
        (["artifacts", "ls", "nope/i9"], 65, "there is no artifact 'nope/i9' in "),
        (["artifacts", "rm", "nope/i9/dpo"], 65, "there is no artifact 'nope/i9/dpo' in "),
        (["artifacts", "rm", "nope/i9/dpo", "--root", "my runs"], 65, "See `itoolctl artifacts ls --root '/"),
        (["artifacts", "verify", "nope"], 65, "there is no run nope in runs. Start one with"),
        (["artifacts", "verify", "--root", "nowhere"], 65, "nowhere. Give another --root"),
        (["artifacts", "ls", ""], 64, "run = '' is no DNS label"),
        (["artifacts", "verify", ""], 64, "run = '' is no DNS label"),
        (["artifacts", "show", ""], 65, "there is no artifact '' in "),
        (["artifacts", "get", "", "here"], 65, "there is no artifact '' in "),
        (["artifacts", "get", "demo/i0/prepare", ""], 64, "FOLDER is empty. Give a folder; . is the current one"),
        (["artifacts", "rm", ""], 65, "there is no artifact '' in "),
        (["artifacts", "show", "demo/i9/dpo"], 65, "no artifact 'demo/i9/dpo'"),
        (["plan", "--root", "ftp://somewhere"], 64, "unknown kind of store"),
        (["plan", "--root", "gs://bucket/runs"], 64, "unknown kind of store. Use a folder or s3://bucket/prefix"),
        (["plan", "--root", "s3:/bucket/runs"], 64, "unknown kind of store. Use a folder or s3://bucket/prefix"),
        (["runs", "--root", "S3:bucket"], 64, "unknown kind of store. Use a folder or s3://bucket/prefix"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(within: Within, arguments: list[str], code: int, words: str) -> None:
    ended_with, output, errors = within(*arguments)
    assert (ended_with, output) == (code, "")
    assert words in one_line(errors)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_code_74_wherever_it_is_met(itoolctl: Itoolctl) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            itoolctl._command(("stages",)), env=itoolctl.environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 74
    assert one_line(done.stderr).startswith("itoolctl: cannot use the disk or standard output: No space left on device. Free some space")


def test_a_reader_that_has_seen_enough_ends_it_quietly(itoolctl: Itoolctl) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        itoolctl._command(("schema",)), env=itoolctl.environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_the_caller_has_closed_is_not_missed(itoolctl: Itoolctl, closed: int) -> None:
    command = shlex.join([*itoolctl._command(("runs",))])
    done = subprocess.run(
        f"{command} {closed}{'<' if closed == 0 else '>'}&-",
        shell=True,
        cwd=itoolctl.folder,
        env=itoolctl.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = "" if closed == 2 else "There is no run yet in runs. Start one with `itoolctl iterate`.\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", said)


def test_ctrl_c_while_another_controller_works_does_not_call_its_run_stopped(within: Within) -> None:
    other = FolderLease(Path("runs/demo/controller.lock"))
    other.acquire()
    with ctrl_c_when_heard():
        code, _, errors = within("iterate", "--wait-lease", "30")
    other.release()
    assert code == 75
    assert one_line(errors).startswith("itoolctl: stopped while waiting for the run's other controller, which is left alone; nothing was")


def test_runs_that_cannot_be_read_do_not_hide_the_others(within: Within) -> None:
    texts = {"old": "run: old\nno_longer_known: 1", "My_Project": "x: 1", "number": "run: 0x_", "twice": "seed: 1\nseed: 2"}
    Path("runs/folder/config.yaml").mkdir(parents=True)
    for name, text in {"good": "run: good", **texts}.items():
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text(text)
    code, output, errors = within("runs")
    assert (code, [line.split()[0] for line in output.splitlines()]) == (0, ["run", "good"])
    left_out = [line.partition(" is left out: ")[0] for line in errors.splitlines()]
    assert left_out == ["My_Project", "folder", "number", "old", "twice"]
    assert "config.yaml: unknown key no_longer_known; allowed here:" in errors
    assert "Use the itool that has written it. Give the run's file with --config" in errors
    code, output, _ = within("runs", "-o", "json")
    assert (code, [run["run"] for run in json.loads(output)]) == (0, ["good"])


def test_the_logs_of_a_newer_versions_run_can_be_read_and_the_run_cancelled(within: Within) -> None:
    Path("runs/demo/logs").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text("run: demo\nnewer: 1\ndpo:\n  newest: {a: 1}\n")
    Path("runs/demo/logs/i0-prepare-1.log").write_text("done\n")
    assert within("logs", "prepare")[:2] == (0, "done\n")
    assert within("cancel") == (0, "", "Nothing works on run demo.\n")
    assert within("status")[0] == 64


def test_a_root_without_runs_is_named(within: Within) -> None:
    assert within("runs", "--root", "nowhere") == (
        0,
        "",
        "There is no run yet in nowhere. Start one with `itoolctl iterate --root nowhere`.\n",
    )
    assert within("artifacts", "ls", "--root", "nowhere") == (0, "", f"There is no artifact in {Path('nowhere').absolute()}.\n")
    Path("file").touch()
    code, _, errors = within("runs", "--root", "file")
    assert (code, one_line(errors).startswith(f"itoolctl: root {Path('file').absolute()} is a file. Give a folder")) == (74, True)


def test_a_root_that_cannot_be_read_is_not_called_empty(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("closed", "open"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text(f"run: {name}")
    Path("runs/lost+found").mkdir()
    size = FolderStore.size

    def refuse(store: FolderStore, key: str) -> int | None:
        if key.startswith(("closed/", "lost+found/")):
            raise storage_error(PermissionError(errno.EACCES, "no", str(store.path(key))), store.path(key), "reading")
        return size(store, key)

    monkeypatch.setattr(FolderStore, "size", refuse)
    code, output, errors = within("runs")
    assert (code, [line.split()[0] for line in output.splitlines()]) == (0, ["run", "open"])
    assert one_line(errors).startswith(f"closed is left out: cannot use {Path('runs/closed/config.yaml').absolute()}: Permission denied.")
    assert "lost+found" not in errors

    def closed(folder: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "no", str(folder))

    monkeypatch.setattr("os.scandir", closed)
    for command in ("runs", "status"):
        code, output, errors = within(command)
        assert (code, output) == (74, "")
        assert one_line(errors).startswith(f"itoolctl: cannot use {Path('runs').absolute()}: Permission denied. Change its permissions")


def test_the_last_line_of_a_log_needs_no_line_end(within: Within) -> None:
    Path("runs/demo/logs").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text("run: demo")
    Path("runs/demo/logs/i0-prepare-1.log").write_text("first\nkilled in the midd")
    assert within("logs", "prepare")[:2] == (0, "first\nkilled in the midd\n")


def prepare_in(root: str) -> None:
    """A run that has prepared, and no more."""
    config, store = RunConfig(root=root), FolderStore(Path(root))
    runner = InMemoryRunner(store, config)
    controller = Controller(config, store, runner, FolderLease(Path("lock")))
    while len(runner.started) < 2:
        controller.step()


def test_one_artifact_is_whole(within: Within) -> None:
    prepare_in("runs")
    assert within("artifacts", "verify") == (0, "", "1 artifact is whole.\n")


def test_a_store_that_cannot_be_read_is_said_once(within: Within) -> None:
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text("run: demo")
    Path("runs/demo/i0").touch()
    code, output, errors = within("status")
    assert (code, output) == (74, "stage  state  reason\n\nrun demo: nothing of it can be seen\n")
    place = Path("runs/demo/i0").absolute()
    assert one_line(errors) == (
        f"itoolctl: cannot use {place}: Not a directory. A file stands where a folder is needed: move it away or set root to a folder\n"
    )


def test_plan_says_where_a_damaged_artifact_stops_the_run(within: Within) -> None:
    prepare_in("runs")
    [manifest] = Path("runs/demo/i0/prepare").glob("*/manifest.json")
    manifest.write_text("[]")
    code, output, _ = within("plan")
    lines = [line.split()[:2] for line in output.splitlines()]
    assert (code, lines[1], lines[2]) == (0, ["i0/prepare", "stop"], ["i0/warmup", "run"])
    assert output.endswith("\nThe run would stop at i0/prepare with exit code 65.\n")
    code, output, _ = within("plan", "-o", "json")
    first = json.loads(output)["stages"][0]
    assert (first["action"], first["state"], first["expected_seconds"]) == ("stop", "damaged", None)


def test_an_error_is_the_exit_code_of_the_process(itoolctl: Itoolctl) -> None:
    done = itoolctl("status", "nothing")
    assert (done.returncode, done.stdout) == (65, "")
    assert "there is no run nothing in runs" in one_line(done.stderr)


def test_a_traceback_shows_only_in_debug(itoolctl: Itoolctl) -> None:
    assert "Traceback" in itoolctl("status", ITOOL_DEBUG="1").stderr


def test_a_wrong_option_is_exit_code_2(itoolctl: Itoolctl) -> None:
    assert itoolctl("iterate", "--nonsense").returncode == 2


@pytest.mark.parametrize("command", ["plan", "iterate"])
def test_a_run_to_reuse_that_was_never_started_is_named(within: Within, command: str) -> None:
    code, _, said = within(command, "--root", "runs", "--set", "reuse_from=absent")
    assert code == 65
    assert "reuse_from = 'absent': there is no such run in" in said
    assert not Path("runs/demo").exists()


def test_plan_writes_nothing(itoolctl: Itoolctl) -> None:
    assert itoolctl("plan").returncode == 0
    assert not (itoolctl.folder / "runs").exists()


def test_a_read_only_root_is_one_line(itoolctl: Itoolctl) -> None:
    (itoolctl.folder / "runs").write_text("a file stands here")
    done = itoolctl("iterate", "--n", "0")
    assert done.returncode == 74
    assert "runs" in one_line(done.stderr)


def test_a_stored_configuration_that_is_broken_is_named(itoolctl: Itoolctl) -> None:
    (itoolctl.folder / "runs" / "demo").mkdir(parents=True)
    (itoolctl.folder / "runs" / "demo" / "config.yaml").write_text("[")
    done = itoolctl("status")
    assert done.returncode == 65
    assert "config.yaml is not a configuration" in one_line(done.stderr)
