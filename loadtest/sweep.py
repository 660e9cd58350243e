"""Runs at rising rates, until the service no longer keeps up: where is the knee of its latency–throughput curve?"""

from collections.abc import Awaitable, Callable, Sequence

from loadtest.plan import MOST_RATE, MOST_REQUESTS, Plan
from loadtest.report import Report, SweepReport
from loadtest.tally import OK

STEP = 2**0.5  # from rate to rate: every other step doubles it
MOST_STEPS = 24
SUCCEEDED = 0.99  # of the requests that got a 200
KEPT_UP, UNDER_WAY = 0.95, 10  # of them that came in time; requests that may be under way at a step's end all the same


async def sweep(plan: Plan, run: Callable[[Plan], Awaitable[Report]]) -> SweepReport:
    """`run` the plan at its rate, then at ever higher ones; each step takes the plan's duration."""
    steps: list[Report] = []
    ended = f"after {MOST_STEPS} steps"
    for number in range(MOST_STEPS):
        rate = round(plan.rate * STEP**number, 1)
        if rate > MOST_RATE or rate * plan.duration > MOST_REQUESTS:
            ended = f"{rate:,g} requests a second for {plan.duration:g} s are more than one run may send"
            break
        step = await run(plan.model_copy(update={"rate": rate}))
        if step.interrupted:
            ended = f"it was ended at {rate:,g} requests a second"
            return summarize(steps, ended, interrupted=True)
        steps.append(step)
        if step.late:
            ended = f"the generator could not measure {rate:,g} requests a second"
            break
        if not held(step):
            ended = f"the service did not keep up with {rate:,g} requests a second"
            break
    return summarize(steps, ended)


def held(step: Report) -> bool:
    """Whether the service kept up: 99 % of the requests got a 200, 95 % while requests were still being sent.

    Requests that wait for a connection do so because so many are unanswered: that is the service's doing as well.
    """
    if step.invalid:
        return False
    succeeded = step.outcomes[OK].count if OK in step.outcomes else 0
    return succeeded >= SUCCEEDED * step.sent and step.in_time >= min(KEPT_UP * step.sent, step.sent - UNDER_WAY)


def summarize(steps: Sequence[Report], ended: str, *, interrupted: bool = False) -> SweepReport:
    """The curve's knee and its height, from the steps that are valid."""
    valid = [step for step in steps if not step.late]
    found = knee([step for step in valid if held(step)])
    invalid = tuple(reason for step in steps if step.late for reason in step.invalid)
    return SweepReport(
        steps=tuple(steps),
        knee=found.offered if found else None,
        saturation=max((step.achieved for step in valid), default=None),
        ended=ended,
        interrupted=interrupted,
        invalid=invalid,
    )


def knee(steps: Sequence[Report]) -> Report | None:
    """The step with the greatest power, which is throughput divided by mean latency (Kleinrock, 1979).

    Below it, more load costs little latency; above it, latency grows faster than throughput. None without a step.
    """
    return max(steps, key=lambda step: step.achieved / max(step.latency.mean_ms, 1e-6), default=None)
