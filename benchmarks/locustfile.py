"""Send the load of `diptych loadtest` with Locust, to compare the two.

    pip install locust                                            # in a separate environment
    locust -f benchmarks/locustfile.py --headless --only-summary --host http://127.0.0.1:8000 \
        --users 50 --spawn-rate 50 --run-time 30s --each 10 --queries queries.txt

Each user waits for its answer before the next request. In such a closed loop, a slow service delays requests, and the
latencies do not include that delay. `--each` is the maximum number of requests per second and user; 0 sends without a
pause, which saturates the service. Users are synchronous, so requests arrive in bursts of one request per user.
"""

import itertools
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from locust import FastHttpUser, constant_throughput, events, task
from locust.env import Environment

WORDS = ["cheap", "running", "shoes", "red", "winter", "city", "light", "rain", "kids", "travel", "garden", "music"]


@events.init_command_line_parser.add_listener
def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--each", type=float, default=1.0, help="requests per second and user; 0: no pause")
    parser.add_argument(
        "--queries", type=str, default="", help="file with one query per line (default: generated queries)"
    )
    parser.add_argument("--hits", type=int, default=10, help="hits per query")


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    options = environment.parsed_options or Namespace(each=1.0, queries="", hits=10)
    if options.queries:
        texts = Path(options.queries).read_text(encoding="utf-8").splitlines()
    else:
        texts = [" ".join(words) for words in itertools.permutations(WORDS, 3)]
    QueryUser.bodies = itertools.cycle(
        [json.dumps({"queries": [text], "k": options.hits}).encode() for text in texts if text.strip()]
    )
    if options.each:
        QueryUser.wait_time = constant_throughput(options.each)  # type: ignore[assignment]


class QueryUser(FastHttpUser):
    """One user; all users share one cycle of queries."""

    bodies: Iterator[bytes] = iter(())

    @task
    def predict(self) -> None:
        self.client.post("/predict", data=next(self.bodies), headers={"Content-Type": "application/json"})
