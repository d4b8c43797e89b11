"""What a cluster holds for a run, kept up to date by watches, so that looking costs no request.

Level first: every view lists, then watches from there, lists again once a minute and whenever a watch cannot go on. A change that a watch
missed is therefore seen late, never not at all. Objects are cut down to what is asked of them, as a Job may have thousands of pods.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from itool.cluster.api_answers import ClusterDown, Gone
from itool.cluster.client import Cluster
from itool.cluster.objects import Object
from itool.errors import ItoolError
from itool.logs import get_logger

log = get_logger(__name__)

LIST_AGAIN_SECONDS = 60.0
STALE_SECONDS = 3 * LIST_AGAIN_SECONDS
"""A list that is older belongs to a machine that has slept: a watch ends after half a minute, and the next list is due."""

PAUSE_SECONDS = 1.0
GATHER_SECONDS = 0.1


def clock_with_sleep() -> float:
    """Seconds, also those in which the machine sleeps; nobody sets this clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))  # macOS counts them in the second


@dataclass
class View:
    """The objects of one resource that fit the selectors, by name. `trim` keeps of each what is needed."""

    resource: str
    labels: str = ""
    fields: str = ""
    trim: Callable[[Object], Object] = lambda item: item
    _items: dict[str, Object] = field(default_factory=dict)
    _version: str = ""
    _listed_at: float = float("-inf")
    _error: ItoolError | None = None
    _written: set[str] = field(default_factory=set)


class Cache:
    """Views of one namespace. `start` fills them before it returns; afterwards a thread per view keeps them true."""

    def __init__(self, cluster: Cluster, views: list[View], *, clock: Callable[[], float] = clock_with_sleep) -> None:
        self._cluster = cluster
        self._views = {view.resource: view for view in views}
        self._clock = clock
        self._changed = threading.Condition()
        self._changes = 0
        self._seen = 0
        self._stopping = threading.Event()

    def start(self, *, follow: bool = True) -> None:
        """List everything once, then watch (without `follow` only when `look` is called). Raises what the first list raises."""
        for view in self._views.values():
            self._list(view)
        if follow:
            for view in self._views.values():
                threading.Thread(target=self._follow, args=(view,), daemon=True).start()

    def look(self) -> None:
        """Take in what has changed, once."""
        for view in self._views.values():
            self._look(view)

    def stop(self) -> None:
        """Stop looking. Threads that wait for the server end with their time-out; nobody needs to wait for them."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def items(self, resource: str) -> list[Object]:
        """What is there now. Raises ClusterDown (or the refusal) while the server cannot be asked, or has not been for long."""
        view = self._views[resource]
        with self._changed:
            if view._error is not None:
                raise view._error
            if (age := self._clock() - view._listed_at) > STALE_SECONDS:
                raise ClusterDown(f"{resource} were last listed {age:.0f} s ago")
            return list(view._items.values())

    def put(self, resource: str, item: Object) -> None:
        """Take in an object that was just written or read, unless a watch has told of it, or of what became of it, already."""
        view, name = self._views[resource], item["metadata"]["name"]
        with self._changed:
            if name in view._items and _version(view._items[name]) >= _version(item):
                return
            view._items[name] = view.trim(item)
            view._written.add(name)

    def wait(self, seconds: float) -> None:
        """Return when something has changed since the last wait, at the latest after `seconds`. Changes that come together count once."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != self._seen or self._stopping.is_set(), timeout=seconds)
        self._stopping.wait(min(GATHER_SECONDS, seconds))
        with self._changed:
            self._seen = self._changes

    def _follow(self, view: View) -> None:
        """A thread's life. A server that hangs up at once is not asked again at once."""
        while not self._stopping.is_set():
            began = self._clock()
            self._look(view)
            if self._clock() - began < PAUSE_SECONDS:
                self._stopping.wait(PAUSE_SECONDS)

    def _look(self, view: View) -> None:
        """List when it is time, watch until the server ends that. What goes wrong is an outage for whoever asks, until the next list."""
        try:
            if not view._version or self._clock() - view._listed_at >= LIST_AGAIN_SECONDS:
                self._list(view)
            self._watch(view)
        except Gone:
            view._version = ""
        except ItoolError as error:
            self._fail(view, error)
        except Exception as error:  # noqa: BLE001 - a thread that ends unseen would leave a picture that never changes again
            self._fail(view, ClusterDown(f"the watch of {view.resource} failed: {type(error).__name__}: {error}"), traceback=True)

    def _fail(self, view: View, error: ItoolError, *, traceback: bool = False) -> None:
        if view._error is None:
            log.warning("cluster cannot be watched", resource=view.resource, error=str(error), exc_info=traceback)
        view._version = ""
        with self._changed:
            view._error = error
            self._notify()

    def _list(self, view: View) -> None:
        view._written.clear()
        items, version = self._cluster.list(view.resource, view.labels, view.fields, trim=view.trim)
        with self._changed:
            found = {item["metadata"]["name"]: item for item in items}
            for name in view._written & view._items.keys():
                if name not in found or _version(found[name]) < _version(view._items[name]):
                    found[name] = view._items[name]
            view._items = found
            view._version, view._listed_at, view._error = version, self._clock(), None
            self._notify()

    def _watch(self, view: View) -> None:
        for kind, item in self._cluster.watch(view.resource, view._version, view.labels, view.fields):
            if self._stopping.is_set():
                return
            with self._changed:
                view._version = item["metadata"]["resourceVersion"]
                if kind == "BOOKMARK":
                    continue
                name = item["metadata"]["name"]
                if kind == "DELETED":
                    view._items.pop(name, None)
                else:
                    view._items[name] = view.trim(item)
                self._notify()

    def _notify(self) -> None:
        self._changes += 1
        self._changed.notify_all()


def _version(item: Object) -> int:
    """Grows with every change in a cluster."""
    return int(item["metadata"]["resourceVersion"])
