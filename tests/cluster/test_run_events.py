"""What `kubectl describe` of a run's owner object shows of its story."""

from __future__ import annotations

from itool.cluster.decide import Fail, Finish, StartStage
from itool.cluster.pods import owner_object
from itool.cluster.progress import NoWatcher
from itool.cluster.run_events import RunEvents
from itool.cluster.runner import Attempt, Task
from itool.stages import StageId
from tests.cluster.runner_scenes import made_cluster

SCORE = StageId(1, "score")


def test_a_start_every_attempts_end_and_the_runs_are_events_of_its_owner() -> None:
    cluster = made_cluster()
    owner = cluster.create("configmaps", owner_object(cluster.config))
    assert owner is not None
    events, task = RunEvents(cluster, lambda: owner, NoWatcher(), clock=lambda: 1_800_000_000.0), Task(SCORE, "key")
    events.decided(StartStage(task, 1, "has not run yet"))
    events.ended(task, Attempt(1, "failed", 137, "OOMKilled"))
    events.ended(task, Attempt(2, "succeeded", 0))
    events.decided(Fail(SCORE, 65, "no example"))
    events.decided(Finish("every artifact is there"))
    written = list(cluster.objects["events"].values())
    assert [(event["type"], event["reason"], event["message"]) for event in written] == [
        ("Normal", "StageStarted", "i1/score, attempt 1: has not run yet"),
        ("Warning", "StageFailed", "i1/score, attempt 1: exit code 137: OOMKilled"),
        ("Normal", "StageSucceeded", "i1/score, attempt 2"),
        ("Warning", "RunFailed", "i1/score: exit code 65: no example"),
        ("Normal", "RunFinished", "every artifact is there"),
    ]
    assert {event["involvedObject"]["uid"] for event in written} == {owner["metadata"]["uid"]}
    assert {event["firstTimestamp"] for event in written} == {"2027-01-15T08:00:00Z"}
