"""Send load to a loopback port: wrk for saturation, `diptych loadtest` at a rate, as an open loop."""

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

SCRIPT = Path(__file__).with_name("wrk.lua")
WRK = shutil.which("wrk")
SATURATION_TOOL = "wrk" if WRK else "`diptych loadtest --sweep`, because wrk is not installed"
TIMEOUT = 60.0  # seconds that a generator may take besides its run


@dataclass(frozen=True)
class QuerySet:
    """Distinct texts, and files with them for both generators in `folder`."""

    texts: Sequence[str]
    folder: Path
    k: int = 10

    @cached_property
    def bodies(self) -> list[bytes]:
        """One request body per text."""
        return [json.dumps({"queries": [text], "k": self.k}).encode() for text in self.texts]

    @cached_property
    def body_file(self) -> Path:
        """File with one body per line, for the script of wrk."""
        path = self.folder / "bodies.txt"
        path.write_bytes(b"\n".join(self.bodies) + b"\n")
        return path

    @cached_property
    def query_file(self) -> Path:
        """File with one query per line, for `diptych loadtest`."""
        path = self.folder / "queries.jsonl"
        path.write_text("".join(json.dumps({"query": text}) + "\n" for text in self.texts), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Saturation:
    """Rate and latencies of a closed loop; `failed` counts answers other than 2xx and broken connections."""

    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


def saturate(port: int, queries: QuerySet, seconds: float, clients: int) -> Saturation:
    """Send requests from `clients` clients without pause. Raises DiptychError if the generator fails."""
    if WRK is None:
        return _saturate_by_sweep(port, queries, seconds)
    command = [WRK, "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "15s", "-s", str(SCRIPT)]
    command += [f"http://127.0.0.1:{port}/predict", "--", str(queries.body_file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + TIMEOUT, check=False)
    if ended.returncode:
        raise DiptychError(f"wrk ended with code {ended.returncode}: {(ended.stderr or ended.stdout).strip()}")
    return read_wrk(ended.stdout)


def read_wrk(printed: str) -> Saturation:
    """Parse the last line, the JSON of wrk's script. Raises DiptychError if there was no answer."""
    result = json.loads(printed.strip().splitlines()[-1])
    if not result["answers"]:
        raise DiptychError("wrk got no answer at all. Check that the service answers requests.")
    rate = (result["answers"] - result["refused"]) / result["seconds"]
    return Saturation(rate, result["p50_ms"], result["p99_ms"], result["refused"] + result["broken"])


def _saturate_by_sweep(port: int, queries: QuerySet, seconds: float) -> Saturation:
    """Return the highest rate of 200s in a sweep, and the latencies at that step."""
    with LoadProcess(port, queries, rate=200, seconds=seconds, options=["--sweep"]) as load:
        printed = load.printed()
    report = SweepReport.model_validate_json(printed)
    if report.invalid or not report.steps:
        raise DiptychError(f"the sweep did not reach saturation: {report.ended}. Install wrk, or stop other work.")
    best = max(report.steps, key=lambda step: step.achieved)
    return Saturation(best.achieved, best.latency.p50_ms, best.latency.p99_ms, best.failed)


class LoadProcess:
    """Context manager that runs `diptych loadtest` in a separate process and kills it at the end of the block."""

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
        self._outputs: list[str] = []
        self._reader = threading.Thread(target=lambda: self._outputs.extend(self._process.communicate()), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # no effect if it has ended
        self._reader.join(TIMEOUT)

    def stop(self) -> None:
        """Stop sending; the report covers the requests so far."""
        self._process.send_signal(signal.SIGINT)

    def printed(self) -> str:
        """Wait for its end and return its output. Raises DiptychError if it printed nothing."""
        self._reader.join(40 * self._seconds + TIMEOUT)
        if self._reader.is_alive():
            raise DiptychError(f"the load generator did not end within {40 * self._seconds + TIMEOUT:.0f} s.")
        printed, errors = self._outputs
        if not printed.strip():
            lines = errors.strip().splitlines() or [f"it ended with code {self._process.returncode}"]
            raise DiptychError(f"the load generator could not measure: {lines[-1].removeprefix('error: ')}")
        return printed

    def report(self) -> Report:
        """Wait for its end and return its report. Raises DiptychError if it wrote no report."""
        try:
            return Report.model_validate_json(self.printed())
        except ValidationError as error:
            raise DiptychError(f"the load generator's report cannot be read ({error.errors()[0]['msg']}).") from error


def run_load(
    port: int, queries: QuerySet, rate: float, seconds: float, options: Sequence[str] = (), key: str = ""
) -> Report:
    """Run the load test at one rate and return its report. Raises DiptychError if it fails."""
    with LoadProcess(port, queries, rate, seconds, options, key) as load:
        return load.report()


def failures(report: Report) -> str:
    """Describe the outcomes other than 200, with their numbers."""
    counts = {kind: one.count for kind, one in report.outcomes.items() if kind != OK}
    return ", ".join(f"{count:,} × {kind}" for kind, count in counts.items()) or "none"
