"""Runs at increasing rates until the service falls behind, and the knee of the latency-throughput curve."""

from collections.abc import Awaitable, Callable, Sequence

from loadtest.plan import MAX_RATE, MAX_REQUESTS, Plan
from loadtest.report import Report, SweepReport
from loadtest.run_stats import OK

RATE_FACTOR = 2**0.5  # from step to step: the rate doubles every other step
MAX_STEPS = 24
MIN_SUCCEEDED = 0.99  # fraction of requests answered with 200
MIN_IN_TIME = 0.95  # fraction of requests answered before the sending ended
ALLOWED_IN_FLIGHT = 10  # requests that may be in flight when the sending ends, at any rate


async def sweep(plan: Plan, run: Callable[[Plan], Awaitable[Report]]) -> SweepReport:
    """Run the plan at its rate, then at higher ones; each step takes the plan's duration."""
    steps: list[Report] = []
    ended = f"the maximum of {MAX_STEPS} steps was reached"
    for number in range(MAX_STEPS):
        rate = round(plan.rate * RATE_FACTOR**number, 1)
        if rate > MAX_RATE or rate * plan.duration > MAX_REQUESTS:
            ended = f"{rate:,g} requests per second for {plan.duration:g} s exceed the limits of one run"
            break
        step = await run(plan.model_copy(update={"rate": rate}))
        if step.interrupted:
            return summarize(steps, f"it was interrupted at {rate:,g} requests per second", interrupted=True)
        steps.append(step)
        if step.late:
            ended = f"the generator could not measure {rate:,g} requests per second"
            break
        if not kept_up(step):
            ended = f"the service did not keep up with {rate:,g} requests per second"
            break
    return summarize(steps, ended)


def kept_up(step: Report) -> bool:
    """Tell whether the service kept up: 99 % of requests got a 200, 95 % before the sending ended.

    A step with requests that waited for a connection counts as not kept up: so many others were unanswered.
    """
    if step.invalid:
        return False
    succeeded = step.outcomes[OK].count if OK in step.outcomes else 0
    in_time = min(MIN_IN_TIME * step.sent, step.sent - ALLOWED_IN_FLIGHT)
    return succeeded >= MIN_SUCCEEDED * step.sent and step.in_time >= in_time


def summarize(steps: Sequence[Report], ended: str, *, interrupted: bool = False) -> SweepReport:
    """Find knee and saturation among the valid steps."""
    valid = [step for step in steps if not step.late]
    best = knee([step for step in valid if kept_up(step)])
    return SweepReport(
        steps=tuple(steps), knee=best.offered if best else None,
        saturation=max((step.achieved for step in valid), default=None), ended=ended, interrupted=interrupted,
        invalid=tuple(reason for step in steps if step.late for reason in step.invalid),
    )  # fmt: skip


def knee(steps: Sequence[Report]) -> Report | None:
    """Return the step with the highest power, which is throughput divided by mean latency (Kleinrock, 1979).

    Below it, more load adds little latency; above it, latency grows faster than throughput. None without steps.
    """
    return max(steps, key=lambda step: step.achieved / max(step.latency.mean_ms, 1e-6), default=None)
