"""The cache of what a cluster holds: level first, watches only to be quicker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from itool.cluster import watching
from itool.cluster.api_answers import ClusterDown, Gone
from itool.cluster.watching import Cache, View
from tests.fakes.waiting import wait_until

Object = dict[str, Any]


def item(name: str, version: int, **more: Any) -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, **more}


class Scripted:
    """A cluster whose lists and watches are given beforehand: documents, errors, or something to call."""

    def __init__(self, lists: list[Any], watches: list[Any]) -> None:
        self.lists, self.watches = lists, watches
        self.watched_from: list[str] = []

    def list(self, resource: str, labels: str = "", fields: str = "", *, trim: Any) -> tuple[list[Object], str]:
        answer = self.lists.pop(0)
        answer = answer() if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return [trim(found) for found in answer], "10"

    def watch(self, resource: str, version: str, labels: str = "", fields: str = "") -> Iterator[tuple[str, Object]]:
        self.watched_from.append(version)
        answer = self.watches.pop(0) if self.watches else []
        if isinstance(answer, Exception):
            raise answer
        yield from answer


def made(lists: list[Any], watches: list[Any], clock: Callable[[], float] = lambda: 0.0) -> tuple[Cache, Scripted]:
    cluster = Scripted(lists, watches)
    cache = Cache(cluster, [View("pods", trim=lambda found: {"metadata": found["metadata"]})], clock=clock)
    cache.start(follow=False)
    return cache, cluster


def finish(work: Callable[[], None]) -> None:
    """Do it in a thread, so that what never ends fails the test instead of holding it up."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive())


def names(cache: Cache) -> list[str]:
    return sorted(found["metadata"]["name"] for found in cache.items("pods"))


def test_it_lists_then_follows_changes_from_there() -> None:
    cache, cluster = made(
        [[item("a", 1), item("b", 2)]],
        [[("ADDED", item("c", 11)), ("DELETED", item("a", 12)), ("BOOKMARK", item("", 15))], [("MODIFIED", item("b", 16, big="x"))]],
    )
    cache.look()
    assert names(cache) == ["b", "c"]
    cache.look()
    assert cluster.watched_from == ["10", "15"]
    assert "big" not in str(cache.items("pods"))


def test_a_watch_that_cannot_go_on_is_followed_by_a_list() -> None:
    cache, cluster = made([[item("a", 1)], [item("b", 20)]], [Gone("too old"), []])
    cache.look()
    cache.look()
    assert names(cache) == ["b"]
    assert len(cluster.lists) == 0


def test_what_a_watch_missed_is_seen_after_a_minute() -> None:
    now = 0.0
    cache, _ = made([[item("a", 1)], [item("b", 20)]], [], clock=lambda: now)
    cache.look()
    assert names(cache) == ["a"]
    now = 61.0
    cache.look()
    assert names(cache) == ["b"]


def test_after_a_night_in_which_the_machine_slept_nothing_old_is_shown() -> None:
    now = [0.0]
    cache, _ = made([[item("a", 1)], [item("b", 20)]], [], clock=lambda: now[0])
    now[0] = 170.0
    assert names(cache) == ["a"]
    now[0] = 8 * 3600.0
    with pytest.raises(ClusterDown, match="pods were last listed 28800 s ago"):
        cache.items("pods")
    cache.look()
    assert names(cache) == ["b"]


def test_while_the_server_is_away_nothing_old_is_shown() -> None:
    cache, _ = made([[item("a", 1)], ClusterDown("away"), [item("b", 2)]], [ClusterDown("away")])
    cache.look()
    with pytest.raises(ClusterDown):
        cache.items("pods")
    cache.look()
    with pytest.raises(ClusterDown):
        cache.items("pods")
    cache.look()
    assert names(cache) == ["b"]


def test_an_event_that_nobody_foresaw_is_an_outage_until_the_next_list() -> None:
    cache, _ = made([[item("a", 1)], [item("b", 2)]], [KeyError("metadata")])
    cache.look()
    with pytest.raises(ClusterDown, match=r"^the watch of pods failed: KeyError: 'metadata'$"):
        cache.items("pods")
    cache.look()
    assert names(cache) == ["b"]


def test_a_server_that_is_away_from_the_start_is_said_at_once() -> None:
    with pytest.raises(ClusterDown):
        made([ClusterDown("away")], [])


def test_what_was_just_written_outlives_a_list_that_began_before() -> None:
    cache, cluster = made([[item("a", 1)]], [Gone("")])

    def list_while_somebody_writes() -> list[Object]:
        cache.put("pods", item("new", 30))
        return [item("a", 1)]

    cluster.lists.append(list_while_somebody_writes)
    cache.look()
    cache.look()
    assert names(cache) == ["a", "new"]


def test_a_list_that_is_newer_than_what_was_just_written_counts() -> None:
    """The watch goes on after the list: nothing else would tell of what it holds."""
    cache, cluster = made([[]], [Gone("")])

    def list_after_somebody_wrote() -> list[Object]:
        cache.put("pods", item("new", 8))
        return [item("new", 9)]

    cluster.lists.append(list_after_somebody_wrote)
    cache.look()
    cache.look()
    assert cache.items("pods") == [item("new", 9)]


def test_an_answer_that_is_older_than_what_a_watch_has_told_changes_nothing() -> None:
    cache, _ = made([[item("a", 1)]], [[("MODIFIED", item("a", 12))]])
    cache.look()
    cache.put("pods", item("a", 11))
    assert cache.items("pods") == [item("a", 12)]
    cache.put("pods", item("a", 13))
    assert cache.items("pods") == [item("a", 13)]


def test_what_was_written_and_is_gone_by_the_next_list_is_forgotten() -> None:
    cache, _ = made([[], []], [Gone("")])
    cache.put("pods", item("new", 30))
    cache.look()
    cache.look()
    assert names(cache) == []


def test_a_server_that_hangs_up_at_once_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 60.0)
    cluster = Scripted([[]], [])
    cache = Cache(cluster, [View("pods")])
    cache.start()
    wait_until(lambda: bool(cluster.watched_from))
    time.sleep(0.05)
    cache.stop()
    assert len(cluster.watched_from) == 1


def test_waiting_ends_with_a_change_and_is_over_at_the_latest_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "GATHER_SECONDS", 0.0)
    cache, _ = made([[]], [[("ADDED", item("a", 11))]])
    cache.wait(0.0)
    finish(lambda: cache.wait(0.05))  # nothing changes
    happened: list[str] = []

    def change() -> None:
        happened.append("change")
        cache.look()

    def wait() -> None:
        cache.wait(threading.TIMEOUT_MAX)  # only a change ends it
        happened.append("end of the wait")

    threading.Timer(0.05, change).start()
    finish(wait)
    assert happened == ["change", "end of the wait"]


def test_threads_keep_it_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 0.01)
    cluster = Scripted([[]], [[("ADDED", item("a", 11))]])
    cache = Cache(cluster, [View("pods")])
    cache.start()
    wait_until(lambda: names(cache) == ["a"])
    cache.stop()
