"""Changes of bundle while a run goes on: two of them in turn, by the service's own admin call."""

import asyncio
import json
from dataclasses import dataclass

from retrieval.errors import BadInput
from service.loadtest.alarm import now
from service.loadtest.target import Target, said, why
from service.security import ADMIN_HEADER

PATIENCE = 900.0  # seconds for one change: a large bundle takes its time to load


@dataclass
class Switch:
    """One change: times in seconds from the start of the run, and why it failed, None while all is well."""

    bundle: str
    began: float
    ended: float | None = None
    failure: str | None = None


class Switcher:
    """Asks for the two bundles in turn, every so many seconds."""

    def __init__(self, target: Target, bundles: tuple[str, str], key: str, every: float) -> None:
        self._target = target
        self._bundles = bundles
        self._key = key
        self._every = every
        self._start = 0.0
        self.switches: list[Switch] = []

    async def check(self) -> None:
        """Make the first bundle the active one. Raises BadInput when the service refuses."""
        if failure := await self._ask(self._bundles[0]):
            raise BadInput(f"{self._target.url} does not change to bundle {self._bundles[0]}: {failure}")

    async def run(self, start: float, duration: float) -> None:
        """Switch until `duration` is over; a change that takes longer than the time between two puts off the next."""
        self._start = start
        number = 0
        while (due := start + (number + 1) * self._every) < start + duration:
            await asyncio.sleep(max(0.0, due - now()))
            switch = Switch(self._bundles[(len(self.switches) + 1) % 2], now() - start)
            self.switches.append(switch)
            switch.failure = await self._ask(switch.bundle)
            switch.ended = now() - start
            number = max(number + 1, int(switch.ended / self._every))

    def touches(self, due: float) -> bool:
        """Whether a change was under way at some moment between `due` (a time of `now()`) and now."""
        if not self.switches:
            return False
        last = self.switches[-1]
        return last.ended is None or due - self._start < last.ended

    async def _ask(self, bundle: str) -> str | None:
        """Why the service did not change to `bundle`, None when it did."""
        try:
            status, answer = await self._target.call(
                "/admin/activate", json.dumps({"bundle": bundle}).encode(), f"{ADMIN_HEADER}: {self._key}\r\n", PATIENCE
            )
        except OSError as error:
            return f"there was no answer ({why(error)})."
        return None if status == 200 else said(answer)
