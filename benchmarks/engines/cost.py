"""Measure what another engine costs: memory by number of engines, and answers per second.

    OMP_NUM_THREADS=1 python -m benchmarks.engines.cost STORE [--engines 1 2] [--seconds 8] [--clients 16]

The memory of host and engines is the sum of their PSS after the requests. The load generator runs on the same cores.
"""

import argparse
import json
from pathlib import Path
from time import monotonic

from tests.support.service import PATIENCE, Load, Service, children, serving, wait_until

TEXTS = ("cheap running shoes", "red winter city", "credit card", "holiday in spain", "used cars", "light rain")


def main() -> None:
    """Print one line per number of engines."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("store", type=Path)
    options.add_argument("--engines", type=int, nargs="+", default=[1, 2])
    options.add_argument("--seconds", type=float, default=8)
    options.add_argument("--clients", type=int, default=16)
    given = options.parse_args()
    bodies = [json.dumps({"queries": [text]}).encode() for text in TEXTS]
    for engines in given.engines:
        _measure(given.store, engines, bodies, given.seconds, given.clients)


def _measure(store: Path, engines: int, bodies: list[bytes], seconds: float, clients: int) -> None:
    """Run a service with this number of engines under load; print its memory and throughput."""
    with serving(store, engines=engines, threads=1) as service:
        processes = wait_until(lambda: _processes(service, engines))
        with Load(service, bodies, clients) as load:
            began = monotonic()
            wait_until(lambda: load.errors or monotonic() > began + seconds, seconds + PATIENCE)
            rate = len(load.replies) / (monotonic() - began)
        if load.errors:
            raise load.errors[0]
        total = sum(_megabytes(pid, "Pss:") for pid in processes)
        own = sum(_megabytes(processes[-1], field) for field in ("Private_Clean:", "Private_Dirty:"))
    line = f"{engines} engines: {total:.0f} MB together, {rate:.0f} answers per second"
    print(f"{line}; the last alone {own:.0f} MB, {own / (total - own):.1%} of the rest" if engines > 1 else line)


def _processes(service: Service, engines: int) -> list[int]:
    """Return the host and its engines, or the only engine; none if they have not been started."""
    first = service.engines()
    processes = first if engines == 1 else [*first, *(pid for host in first for pid in children(host))]
    return processes if len(processes) == engines + (engines > 1) else []


def _megabytes(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
