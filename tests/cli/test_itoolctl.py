"""The command line as a person or a script meets it: a real process, real exit codes, data on stdout and all else on stderr."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from itool.artifacts.manifest import code_version
from itool.artifacts.store import FolderStore
from itool.cli import display, options  # noqa: F401 - imported before a command is given a second
from itool.cli.main import main
from itool.cluster.controller import Controller
from itool.cluster.leases import FolderLease
from itool.config import RunConfig
from itool.stages import STAGES
from tests.cli.command import Itoolctl
from tests.cluster.in_memory_runner import InMemoryRunner
from tests.fakes.ctrl_c import ctrl_c_when_heard
from tests.fakes.vllm_server import FakeVllm
from tests.fakes.waiting import wait_until

Within = Callable[..., tuple[object, str, str]]
COLD = ("--set", "runtime.warm_start=false")


@pytest.fixture
def itoolctl(tmp_path: Path) -> Itoolctl:
    return Itoolctl(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Itoolctl:
    """A finished run of one iteration. Tests must not change it."""
    made = Itoolctl(tmp_path_factory.mktemp("finished"))
    done = made("iterate", "--n", "1", "--set", "search.shards=2", *COLD)
    assert done.returncode == 0, done.stderr
    assert "iteration 1" in done.stdout
    assert "<- kept" in done.stdout
    assert "i1-generate-1: done in" in done.stderr
    return made


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Within:
    """Runs a command that fails within this process, as most of its time would be the start of its own."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["itoolctl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ITOOL_ROOT", raising=False)
    return run


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


def test_help_needs_no_torch_and_nothing_heavy(itoolctl: Itoolctl) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch','transformers','peft','trl','boto3','pydantic','rich','yaml']));"
    code = f"{blocked} sys.argv=['itoolctl','--help']; from itool.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=itoolctl.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("iterate", "plan", "status", "logs", "report", "compare", "artifacts", "stages", "doctor", "cancel", "runs"):
        assert f"  {command}" in done.stdout


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
        (["plan", "--run", "nope"], 65, "there is no run nope in runs. Give --config to start it"),
        (["iterate", "--run", "nope", "--root", "my runs"], 65, "there is no run nope in my runs. Give --config to start it"),
        (["status", "--root", "my runs"], 65, "Start one with `itoolctl iterate --root 'my runs'`, or give --root"),
        (["status"], 65, "there is no run in runs"),
        (["status", "nothing"], 65, "there is no run nothing in runs"),
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


def test_ctrl_c_while_another_controller_works_does_not_call_its_run_stopped(within: Within) -> None:
    other = FolderLease(Path("runs/demo/controller.lock"))
    other.acquire()
    with ctrl_c_when_heard():
        code, _, errors = within("iterate", "--wait-lease", "30")
    other.release()
    assert code == 75
    assert one_line(errors).startswith("itoolctl: stopped while waiting for the run's other controller, which is left alone; nothing was")


def test_runs_that_cannot_be_read_do_not_hide_the_others(within: Within) -> None:
    texts = {"old": "run: old\nno_longer_known: 1", "My_Project": "x: 1", "date": "run: 2026-11-31", "twice": "seed: 1\nseed: 2"}
    Path("runs/folder/config.yaml").mkdir(parents=True)
    for name, text in {"good": "run: good", **texts}.items():
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text(text)
    code, output, errors = within("runs")
    assert (code, [line.split()[0] for line in output.splitlines()]) == (0, ["run", "good"])
    left_out = [line.partition(" is left out: ")[0] for line in errors.splitlines()]
    assert left_out == ["My_Project", "date", "folder", "old", "twice"]
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


@pytest.mark.slow
def test_a_finished_run_is_a_quick_no_op(finished: Itoolctl) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = finished("iterate", "--run", "demo")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of computing: a busy machine does not count
    assert done.returncode == 0
    assert "Nothing to do: all 8 stages of run demo are up to date" in done.stderr
    assert seconds < 3.0


@pytest.mark.slow
def test_json_goes_to_stdout_alone(finished: Itoolctl) -> None:
    assert json.loads(finished("iterate", "--run", "demo", "--output", "json").stdout)["best_iteration"] == 1
    assert json.loads(finished("report", "-o", "json").stdout)["run"] == "demo"
    status = json.loads(finished("status", "demo", "-o", "json").stdout)
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    assert status["controller"] is None
    [run] = json.loads(finished("runs", "-o", "json").stdout)
    assert (run["run"], run["state"], run["iterations_done"], run["done"], run["stages"]) == ("demo", "done", 1, 8, 8)
    assert (run["best_iteration"], run["best_accuracy"], run["controller"]) == (1, 0.6, None)
    assert len(json.loads(finished("artifacts", "ls", "-o", "json").stdout)) == 8
    assert json.loads(finished("stages", "-o", "json").stdout)[0]["name"] == "prepare"
    assert "properties" in json.loads(finished("schema").stdout)
    assert "serviceAccounts" in json.loads(finished("schema", "--chart").stdout)["properties"]


@pytest.mark.slow
def test_plan_says_which_stages_a_changed_setting_reruns(finished: Itoolctl) -> None:
    done = finished("plan", "--run", "demo", "--set", "dpo.beta=0.2", "-o", "json")
    due = {
        f"i{stage['iteration']}/{stage['name']}": stage["reason"] for stage in json.loads(done.stdout)["stages"] if stage["action"] == "run"
    }
    assert list(due) == ["i1/dpo", "i1/evaluate", "i1/report"]
    assert due["i1/dpo"] == "dpo.beta 0.1 -> 0.2"
    assert "3 of 8 stages to run, 5 reused" in finished("plan", "--run", "demo", "--set", "dpo.beta=0.2").stdout
    assert "Nothing to run" in finished("plan", "--run", "demo").stdout


@pytest.mark.parametrize("command", ["plan", "iterate"])
def test_a_run_to_reuse_that_was_never_started_is_named(within: Within, command: str) -> None:
    code, _, said = within(command, "--root", "runs", "--set", "reuse_from=absent")
    assert code == 65
    assert "reuse_from = 'absent': there is no such run in" in said
    assert not Path("runs/demo").exists()


def test_plan_writes_nothing(itoolctl: Itoolctl) -> None:
    assert itoolctl("plan").returncode == 0
    assert not (itoolctl.folder / "runs").exists()


@pytest.mark.slow
def test_logs_are_found_afterwards(finished: Itoolctl) -> None:
    done = finished("logs", "score")
    assert '"event": "stage finished"' in done.stdout
    sharded = finished("logs", "i1/generate")
    assert "== i1-generate-1-1.log" in sharded.stderr
    none = finished("logs", "score", "--iteration", "7", "--shard", "2")
    assert none.returncode == 65
    assert one_line(none.stderr).startswith("itoolctl: run demo has no log of score, iteration 7, shard 2. ")


@pytest.mark.slow
def test_artifacts_are_verified_copied_and_a_flipped_byte_is_found(itoolctl: Itoolctl) -> None:
    itoolctl("iterate", "--n", "0", *COLD)
    assert "4 artifacts are whole" in itoolctl("artifacts", "verify").stderr
    got = itoolctl("artifacts", "get", "demo/i0/warmup", "copy", "adapter/")
    assert Path(itoolctl.folder, got.stdout.strip()).is_file()
    [file] = itoolctl.folder.glob("runs/demo/i0/warmup/*/*/training.jsonl")
    file.write_bytes(b"!" + file.read_bytes()[1:])
    done = itoolctl("artifacts", "verify", "demo")
    assert done.returncode == 65
    assert "training.jsonl was altered" in done.stdout
    name = done.stdout.partition(": ")[0]
    assert f"1 problem in 1 of 4 artifacts. Remove with `itoolctl artifacts rm {name}`" in one_line(done.stderr)
    found = json.loads(itoolctl("artifacts", "verify", "demo", "-o", "json").stdout)
    assert [entry["artifact"] for entry in found if entry["problems"]] == [name]
    assert len(found) == 4
    assert itoolctl("artifacts", "rm", name).returncode == 0
    assert itoolctl("iterate", "--run", "demo", *COLD).returncode == 0
    assert "4 artifacts are whole" in itoolctl("artifacts", "verify").stderr


@pytest.mark.slow
def test_a_failing_stage_gives_its_exit_code_and_status_says_why(itoolctl: Itoolctl) -> None:
    itoolctl.script(warmup=["exit 65"])
    done = itoolctl("iterate", "--n", "0", *COLD)
    assert done.returncode == 65
    assert done.stderr.splitlines()[-1] == "itoolctl: i0/warmup failed: told to end with 65"
    assert "told to end with 65" in itoolctl("status").stdout
    itoolctl.script()
    assert itoolctl("iterate", "--run", "demo").returncode == 0


@pytest.mark.slow
def test_ctrl_c_stops_after_a_checkpoint_and_says_how_to_resume(itoolctl: Itoolctl) -> None:
    itoolctl.script(warmup=["hang", "ok"])
    process = itoolctl.open("iterate", "--n", "0", *COLD)
    wait_until(lambda: bool(itoolctl.stage_pids()))
    status = json.loads(itoolctl("status", "-o", "json").stdout)
    assert status["controller"]["pid"] == process.pid
    assert [stage["state"] for stage in status["stages"]][:2] == ["done", "running"]
    second = itoolctl("iterate", "--n", "0", *COLD)
    assert second.returncode == 69
    assert f"run demo is held by another controller (process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "i0-warmup: stopped after " in stderr
    assert stderr.splitlines()[-1] == f"itoolctl: run demo stopped. Resume with: itoolctl iterate --n 0 {' '.join(COLD)}"
    assert itoolctl("iterate", "--n", "0", *COLD).returncode == 0


@pytest.mark.slow
def test_cancel_stops_a_run(itoolctl: Itoolctl) -> None:
    itoolctl.script(prepare=["hang"])
    process = itoolctl.open("iterate", "--n", "0", *COLD)
    wait_until(lambda: bool(itoolctl.stage_pids()))
    assert "Run demo has stopped" in itoolctl("cancel").stderr
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Nothing works on run demo" in itoolctl("cancel").stderr


@pytest.mark.slow
def test_a_killed_controller_leaves_no_stage_behind_and_the_next_one_finishes(itoolctl: Itoolctl) -> None:
    itoolctl.script(warmup=["hang", "ok"])
    process = itoolctl.open("iterate", "--n", "0", *COLD)
    wait_until(lambda: bool(itoolctl.stage_pids()))
    process.kill()
    process.communicate()
    done = itoolctl("iterate", "--n", "0", *COLD)
    assert done.returncode == 0, done.stderr
    [pid] = itoolctl.stage_pids()
    assert not Path(f"/proc/{pid}").exists()


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


def test_doctor_names_a_remedy_for_what_is_missing(itoolctl: Itoolctl) -> None:
    done = itoolctl("doctor", "--set", "model.path=./no-such-model", "-o", "json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert checks["base model"]["state"] == "missing"
    expected = "model.path ./no-such-model is neither a folder, a .gguf file nor a hub id. Give one of these (owner/name), or demo"
    assert checks["base model"]["finding"] == expected
    assert (checks["store"]["state"], checks["store"]["exit_code"]) == ("ok", 0)
    assert not (itoolctl.folder / "runs").exists()


@pytest.mark.parametrize("path", ["models/smolm", "smolm", "models/file"])
def test_doctor_misses_a_base_model_that_prepare_would_refuse(within: Within, path: str) -> None:
    Path("models").mkdir()
    Path("models/file").write_text("no model")
    code, output, _ = within("doctor", "-o", "json", "--set", f"model.path={path}")
    checks = {check["name"]: check for check in json.loads(output)}
    assert (code, checks["base model"]["state"]) == (1, "missing")
    assert checks["base model"]["finding"].startswith(f"model.path {path} is n")


def test_doctor_asks_the_server_and_looks_at_the_data(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data.jsonl").write_text("{}")
    url = ("--set", "policy.backend=vllm", "--set", "policy.url=http://127.0.0.1:9")
    code, output, _ = within("doctor", "-o", "json", *url, "--set", "data.source=openai", "--set", "data.path=data.jsonl")
    checks = {check["name"]: check for check in json.loads(output)}
    assert (code, checks["vllm"]["state"], checks["data"]["state"]) == (69, "missing", "ok")
    assert checks["vllm"]["finding"].startswith("policy.url = http://127.0.0.1:9 does not answer: ")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    code, output, _ = within("doctor", "-o", "json", "--set", "data.source=openai", "--set", "data.path=~/data.jsonl")
    assert (code, json.loads(output)[-1]["finding"]) == (0, str(Path("data.jsonl").absolute()))
    code, output, _ = within("doctor", "-o", "json", "--set", "data.source=openai", "--set", "data.path=gone.jsonl")
    assert (code, json.loads(output)[-1]["finding"]) == (1, f"data.path = gone.jsonl: {Path('gone.jsonl').absolute()} does not exist")
    hub = ("--set", "data.source=xlam", "--set", "data.path=owner/name", "--set", "data.held_out_path=data.jsonl")
    code, output, _ = within("doctor", "-o", "json", *hub)
    assert (code, json.loads(output)[-1]["state"]) == (0, "note")


def test_doctor_asks_a_server_of_the_cluster_without_a_proxy_as_the_policy_does(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    server = FakeVllm().start()
    url = ("--set", "policy.backend=vllm", "--set", f"policy.url=http://localhost:{server.port}/v1")
    _, found, _ = within("doctor", "-o", "json", *url, "--set", "policy.adapters=wait")
    _, proxied, _ = within("doctor", "-o", "json", *url)
    server.stop()
    states = [next(check["state"] for check in json.loads(output) if check["name"] == "vllm") for output in (found, proxied)]
    assert states == ["ok", "missing"]


@pytest.mark.slow
def test_the_root_comes_from_the_environment(finished: Itoolctl, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "itool.cli.main", "runs"],
        cwd=tmp_path,
        env=finished.environment | {"ITOOL_ROOT": str(finished.folder / "runs")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1].startswith("demo")
