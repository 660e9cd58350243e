"""Load on a loopback port: wrk, as many requests as are answered; `diptych loadtest`, at a rate, as an open loop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from benchmarks.measuring.systems import ROOT
from loadtest.entry import PREDICT_KEY
from loadtest.report import Report, SweepReport
from loadtest.run_stats import OK
from retrieval.errors import DiptychError
from tests.support.service import ADMIN_KEY

SCRIPT = Path(__file__).with_name("serving_wrk.lua")
WRK = shutil.which("wrk")
BY = "wrk" if WRK else "diptych loadtest --sweep, for want of wrk"
TIMEOUT = 60.0  # seconds a generator may take beside its run


@dataclass(frozen=True)
class QuerySet:
    """Distinct texts, and the two files that the generators read them from, in a folder of this run."""

    texts: Sequence[str]
    folder: Path
    k: int = 10

    @cached_property
    def bodies(self) -> list[bytes]:
        """A request's body for each text."""
        return [json.dumps({"queries": [text], "k": self.k}).encode() for text in self.texts]

    @cached_property
    def body_file(self) -> Path:
        """A body a line, as wrk's script reads it."""
        path = self.folder / "bodies.txt"
        path.write_bytes(b"\n".join(self.bodies) + b"\n")
        return path

    @cached_property
    def query_file(self) -> Path:
        """A query a line, as `diptych loadtest` reads it."""
        path = self.folder / "queries.jsonl"
        path.write_text("".join(json.dumps({"query": text}) + "\n" for text in self.texts), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Saturated:
    """What a closed loop of so many clients reached; failures are answers other than 2xx and broken connections."""

    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


def saturate(port: int, queries: QuerySet, seconds: float, clients: int) -> Saturated:
    """As many requests as `clients` get answered. Raises DiptychError when the generator ends otherwise than well."""
    if WRK is None:
        return _swept(port, queries, seconds)
    command = [WRK, "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "15s", "-s", str(SCRIPT)]
    command += [f"http://127.0.0.1:{port}/predict", "--", str(queries.body_file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + TIMEOUT, check=False)
    if ended.returncode:
        raise DiptychError(f"wrk ended with code {ended.returncode}: {(ended.stderr or ended.stdout).strip()}")
    return read_wrk(ended.stdout)


def read_wrk(printed: str) -> Saturated:
    """The script's line of JSON, which comes last. Raises DiptychError when nothing was answered."""
    found = json.loads(printed.strip().splitlines()[-1])
    if not found["answers"]:
        raise DiptychError("wrk got no answer at all, so there is nothing to compare.")
    rate = (found["answers"] - found["refused"]) / found["seconds"]
    return Saturated(rate, found["p50_ms"], found["p99_ms"], found["refused"] + found["broken"])


def _swept(port: int, queries: QuerySet, seconds: float) -> Saturated:
    """The highest rate of 200s that a sweep saw, and the latencies at that step."""
    with LoadProcess(port, queries, rate=200, seconds=seconds, options=["--sweep"]) as load:
        printed = load.printed()
    found = SweepReport.model_validate_json(printed)
    if found.invalid or not found.steps:
        raise DiptychError(f"the sweep did not reach saturation: {found.ended}. Install wrk, or stop other work.")
    best = max(found.steps, key=lambda step: step.achieved)
    return Saturated(best.achieved, best.latency.p50_ms, best.latency.p99_ms, best.failed)


class LoadProcess:
    """`diptych loadtest` in a process of its own, from the block's beginning; ended at the block's end."""

    def __init__(
        self, port: int, queries: QuerySet, rate: float, seconds: float, options: Sequence[str] = (), key: str = ""
    ) -> None:
        """`key` is sent with every request."""
        self._seconds, self._key = seconds, key
        self._command = [
            sys.executable, "-m", "diptych", "loadtest", f"http://127.0.0.1:{port}", "--json",
            "--rate", f"{rate:.1f}", "--duration", f"{seconds:g}s", "--queries", str(queries.query_file),
            "-k", str(queries.k), *options,
        ]  # fmt: skip

    def __enter__(self) -> "LoadProcess":
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"DIPTYCH_ADMIN_KEY": ADMIN_KEY, PREDICT_KEY: self._key},
        )  # fmt: skip
        self._said: list[str] = []
        self._reader = threading.Thread(target=lambda: self._said.extend(self._process.communicate()), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # has no effect on one that has ended
        self._reader.join(TIMEOUT)

    def stop(self) -> None:
        """Send no more, and report what there is."""
        self._process.send_signal(signal.SIGINT)

    def printed(self) -> str:
        """What it printed once it has ended. Raises DiptychError with its last line when that is nothing."""
        self._reader.join(40 * self._seconds + TIMEOUT)
        if self._reader.is_alive():
            raise DiptychError(f"the load generator did not end within {40 * self._seconds + TIMEOUT:.0f} s.")
        printed, errors = self._said
        if not printed.strip():
            said = errors.strip().splitlines() or [f"it ended with code {self._process.returncode}"]
            raise DiptychError(f"the load generator could not measure: {said[-1].removeprefix('error: ')}")
        return printed

    def report(self) -> Report:
        """Its report once it has ended. Raises DiptychError."""
        try:
            return Report.model_validate_json(self.printed())
        except ValidationError as error:
            raise DiptychError(f"the load generator's report cannot be read ({error.errors()[0]['msg']}).") from error


def loaded(
    port: int, queries: QuerySet, rate: float, seconds: float, options: Sequence[str] = (), key: str = ""
) -> Report:
    """A whole run at one rate. Raises DiptychError."""
    with LoadProcess(port, queries, rate, seconds, options, key) as load:
        return load.report()


def failures(report: Report) -> str:
    """How requests ended that did not get a 200, in a few words."""
    found = {kind: one.count for kind, one in report.outcomes.items() if kind != OK}
    return ", ".join(f"{count:,} × {kind}" for kind, count in found.items()) or "none"
