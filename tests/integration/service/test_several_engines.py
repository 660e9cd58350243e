"""Several engines that share the memory of one bundle: real processes, forked from one host."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from retrieval.store.local import Store
from retrieval.system.sandbox import missing
from tests.support.bundles import make_store
from tests.support.service import (
    ADMIN_KEY,
    PATIENCE,
    Load,
    Service,
    children,
    figures,
    has_ended,
    serving,
    wait_until,
)

RED = {"queries": ["red winter city"], "k": 10}
BODIES = [json.dumps({"queries": queries}).encode() for queries in (["red winter"], ["light rain", "blue city"])]
TWO: dict[str, Any] = {"engines": 2, "deadline_seconds": PATIENCE, "threads": 1}
MOST_COST = 0.15  # of the memory of host and first engine


@pytest.fixture
def two_bundles(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", "one", "two")


def forked(service: Service) -> list[int]:
    """Return the engines of the only host, once there are two."""

    def two() -> list[int]:
        hosts = service.engines()
        engines = children(hosts[0]) if len(hosts) == 1 else []
        running = [engine for engine in engines if not has_ended(engine)]
        return running if len(running) == 2 else []

    found: list[int] = wait_until(two)
    return found


def rollup(pid: int, *fields: str) -> int:
    """Return the sum of some fields of the memory of a process, in kB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(size) for name, size, _ in lines if name.rstrip(":") in fields)


def answers_more(load: Load) -> None:
    """Wait until ten more requests are answered."""
    before = len(load.replies)
    wait_until(lambda: len(load.replies) > before + 10 or load.errors)


def is_serving(service: Service) -> bool:
    return bool(service.ask("GET", "/readyz").json()["detail"] == "serving")


def test_another_engine_costs_little_memory(store: Path) -> None:
    """Each engine would have its own copy of the vectors, the index or the weights of the encoder."""
    with serving(store, **TWO) as service:
        (host,) = service.engines()
        first, second = forked(service)
        assert service.ask("POST", "/predict", RED).status == 200
        total = sum(rollup(pid, "Pss") for pid in (host, first, second))
        own = rollup(second, "Private_Clean", "Private_Dirty")
    assert own / (total - own) < MOST_COST


def test_engines_give_the_answers_of_one(two_bundles: Store) -> None:
    """Weights that the encoder reads from shared memory would be other weights."""
    with serving(two_bundles.path) as service:
        expected = service.ask("POST", "/predict", RED).json()["results"]
    with serving(two_bundles.path, **TWO) as service:
        assert service.ask("POST", "/predict", RED).json()["results"] == expected


def test_no_client_notices_a_killed_engine(two_bundles: Store) -> None:
    """The requests of a killed engine would be lost, or the other engine would be ended too."""
    with serving(two_bundles.path, **TWO) as service, Load(service, BODIES, clients=4) as load:
        for _ in range(2):
            answers_more(load)
            dead, other = forked(service)
            os.kill(dead, signal.SIGKILL)
            wait_until(lambda dead=dead: dead not in forked(service) and is_serving(service))
            assert other in forked(service)
        answers_more(load)
        after = figures(service)
    assert not load.errors
    assert {reply.status for _, reply in load.replies} == {200}
    assert after["diptych_engine_restarts_total"] == 2


def test_a_killed_host_is_one_crash(two_bundles: Store) -> None:
    """The engines end with their host: their requests would be lost, or the bundle would be given up as faulty."""
    with serving(two_bundles.path, crashes=3, **TWO) as service, Load(service, BODIES, clients=4) as load:
        answers_more(load)
        (host,), engines = service.engines(), forked(service)
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: host not in service.engines() and is_serving(service))
        wait_until(lambda: all(has_ended(engine) for engine in engines))
        assert not set(engines) & set(forked(service))
        answers_more(load)
    assert not load.errors
    assert {reply.status for _, reply in load.replies} == {200}
    assert {reply.json()["bundle"] for _, reply in load.replies} == {"one"}


def test_a_switch_changes_all_engines_at_once(two_bundles: Store) -> None:
    """After a switch, one of the engines would still answer from the earlier bundle."""
    with serving(two_bundles.path, **TWO) as service, Load(service, BODIES, clients=4) as load:
        answers_more(load)
        assert service.activate("two").status == 200
        with Load(service, BODIES, clients=4) as later:
            answers_more(later)
        (host,) = wait_until(lambda: now if len(now := service.engines()) == 1 else None)
        assert len(children(host)) == 2
    assert not load.errors
    assert not later.errors
    assert {reply.status for _, reply in load.replies} == {200}
    assert {reply.json()["bundle"] for _, reply in load.replies} == {"one", "two"}
    assert {reply.json()["bundle"] for _, reply in later.replies} == {"two"}


def test_paused_labels_apply_in_all_engines(two_bundles: Store) -> None:
    """Some answers, those of one engine, would still show a paused label, or its replacement would."""
    body = json.dumps(RED).encode()
    with serving(two_bundles.path, **TWO) as service:
        gone = service.ask("POST", "/predict", RED).json()["results"][0]["hits"][0]["id"]
        change = {"add": [gone, "misspelt"]}
        reply = service.ask("POST", "/admin/paused", change, X_Admin_Key=ADMIN_KEY)
        assert reply.json() == {"paused": [gone, "misspelt"], "unknown": ["misspelt"]}
        with Load(service, [body], clients=4) as load:
            answers_more(load)
            dead, _ = forked(service)
            os.kill(dead, signal.SIGKILL)
            wait_until(lambda: dead not in forked(service) and is_serving(service))
            answers_more(load)
    assert not load.errors
    shown = {hit["id"] for _, reply in load.replies for hit in reply.json()["results"][0]["hits"]}
    assert shown
    assert gone not in shown


def test_a_request_goes_to_the_engine_that_is_free(two_bundles: Store) -> None:
    """Requests would wait for a busy engine while another one is idle, and the metrics would count one engine only."""
    with serving(two_bundles.path, engine_timeout_seconds=PATIENCE, **TWO) as service:
        stopped, _ = forked(service)
        os.kill(stopped, signal.SIGSTOP)
        replies: list[int] = []
        asking = [
            threading.Thread(target=lambda: replies.append(service.ask("POST", "/predict", RED).status))
            for _ in range(6)
        ]
        for thread in asking:
            thread.start()
        wait_until(lambda: len(replies) >= 4)  # one is in flight at the stopped engine, one was sent ahead
        os.kill(stopped, signal.SIGCONT)
        for thread in asking:
            thread.join()
        after = figures(service)
    assert replies == [200] * 6
    assert after["diptych_batch_queries_sum"] == 6
    assert after["diptych_unfinished_requests"] == 0


def test_the_metrics_sum_the_memory_of_all_processes(two_bundles: Store) -> None:
    """The memory of one engine would be shown as that of the bundle, or shared memory would count several times."""
    with serving(two_bundles.path, **TWO) as service:
        (host,) = service.engines()
        expected = sum(rollup(pid, "Pss") for pid in (host, *forked(service))) * 1024
        (shown,) = [value for name, value in figures(service).items() if "engine_resident_bytes{" in name]
    assert shown == pytest.approx(expected, rel=0.2)


def test_a_forked_engine_is_confined(two_bundles: Store) -> None:
    """A hostile bundle could start processes from an engine, because its host may fork."""
    if lacks := missing():
        pytest.skip(f"this system has no sandbox: {', '.join(lacks)}")
    with serving(two_bundles.path, sandbox="required", **TWO) as service:
        (host,) = service.engines()
        filters = [seccomp_filters(pid) for pid in (host, *forked(service))]
    assert filters == [1, 2, 2]


def seccomp_filters(pid: int) -> int:
    """Return the number of system call filters of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Seccomp_filters:"))


def test_no_process_is_left_when_the_service_is_killed(two_bundles: Store) -> None:
    """Engines would go on after their service, and keep their memory."""
    with serving(two_bundles.path, **TWO) as service:
        processes = [*service.engines(), *forked(service)]
        service.process.kill()
        service.process.wait()
        wait_until(lambda: all(has_ended(pid) for pid in processes))
