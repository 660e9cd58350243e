"""Dashboard and alerts use metrics that the service exports, and alerts fire when they should."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.test_compose import ROOT, tool
from tests.support.bundles import make_store
from tests.support.service import serving, wait_until

PROMETHEUS = ROOT / "docker" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "diptych.json").read_text())
INSTALL_HINT = "Debian's package prometheus has it"
SELECTOR = re.compile(r"\b([a-z_][a-z0-9_]*)(\{[^}]*\})")
LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
ADDED_BY_PROMETHEUS = {"instance", "job"}


def rules(kind: str) -> Iterator[dict[str, Any]]:
    for path in ("recorded.yml", "alerts.yml"):
        for group in yaml.safe_load((PROMETHEUS / path).read_text())["groups"]:
            yield from (rule for rule in group["rules"] if kind in rule)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Return every expression of dashboard, rules and alerts, with Grafana's variables filled in."""
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    queries += [rule["expr"] for kind in ("record", "alert") for rule in rules(kind)]
    queries += [one["expr"] for one in DASHBOARD["annotations"]["list"]]
    return [one.replace("$__rate_interval", "5m").replace("$instance", ".*") for one in queries]


def exported(tmp_path: Path) -> dict[str, set[str]]:
    """Every series of a service that has answered, refused, switched and lost an engine: its name, and its labels."""
    store = make_store(tmp_path / "store", "first", "second")
    with serving(store.path, cache_bytes=1_000_000) as service:
        for body in (b'{"queries": ["red shoes"]}', b'{"queries": []}'):
            service.ask("POST", "/predict", body)
        assert service.activate("second").status == 200
        wait_until(lambda: len(service.engines()) == 1)
        text = service.ask("GET", "/metrics").body.decode()
    labels_by_metric: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels = re.match(r"(\w+)(?:\{(.*)\})?", line).groups()  # type: ignore[union-attr]
            labels_by_metric.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
        elif line.startswith("# TYPE"):  # a counter with labels has no series before its first event
            name, kind = line.split()[2:]
            labels_by_metric.setdefault(f"{name}" if kind != "histogram" else f"{name}_count", set())
    labels_by_metric["diptych_rejections_total"] |= {"reason"}
    return labels_by_metric


def test_every_query_names_what_the_service_exports(tmp_path: Path) -> None:
    """A panel would stay empty, or an alert silent, because a metric or a label has another name."""
    known = exported(tmp_path)
    recorded = {rule["record"] for rule in rules("record")}
    for expression in expressions():
        names = set(re.findall(r"\b(?:diptych|process)_\w+", re.sub(r"\bdiptych:[\w:]+", "", expression)))
        names = {name for name in names if name != "process"}
        assert names <= set(known), f"{sorted(names - set(known))} in {expression}"
        assert set(re.findall(r"\bdiptych:[\w:]+", expression)) <= recorded, expression
        for name, labels in SELECTOR.findall(expression):
            used = set(LABEL.findall(labels)) - ADDED_BY_PROMETHEUS
            assert used <= known[name] | {"le"}, f"{sorted(used - known[name])} of {name} in {expression}"
        groups = re.findall(r"\bby \(([^)]*)\)", expression)
        grouped = {word.strip() for group in groups for word in group.split(",")}
        assert grouped <= set().union(*(known.get(name, set()) for name in names), {"le"}, ADDED_BY_PROMETHEUS), (
            expression
        )


def test_counters_of_alerts_start_at_zero(tmp_path: Path) -> None:
    """The first failed switch would trigger no alert: Prometheus sees no increase in a series that begins at 1."""
    counters = {one for rule in rules("alert") for one in re.findall(r'increase\((\w+\{\w+="\w+"\})', rule["expr"])}
    assert len(counters) > 2
    with serving(make_store(tmp_path / "store", "first").path) as service:
        figures = service.ask("GET", "/metrics").body.decode().splitlines()
    assert {f"{one} 0.0" for one in counters} <= set(figures)


def test_every_query_is_one(tmp_path: Path) -> None:
    """A panel or an annotation would show an error instead of a curve."""
    queries = [{"record": f"query:{place}", "expr": one} for place, one in enumerate(expressions())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": queries}]}))
    command = [tool("promtool", INSTALL_HINT), "check", "rules", str(tmp_path / "queries.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_panels_say_what_they_show_and_lie_side_by_side() -> None:
    """An operator would have to guess what a chart means, or two panels would overlap."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    occupied: set[tuple[int, int]] = set()
    for panel in panels():
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & occupied, panel["title"]
        occupied |= cells


def test_every_alert_says_what_to_do() -> None:
    """The engineer on call would not know the cause, or what to do."""
    for rule in rules("alert"):
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "recorded.yml", "alerts.yml"],
        ["test", "rules", "tests.yml"],
    ],
)
def test_promtool_accepts_configuration_and_rules(command: list[str]) -> None:
    """Prometheus would not start, or an alert would fire without a problem, or not fire when there is one."""
    done = subprocess.run([tool("promtool", INSTALL_HINT), *command], cwd=PROMETHEUS, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
