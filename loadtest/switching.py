"""Changes of bundle while a run goes on: two of them in turn, by the service's own admin call."""

import asyncio
import json
from dataclasses import dataclass

from loadtest.alarm import now
from loadtest.target import Target, said, why
from retrieval.errors import BadInput
from service.access.key_headers import ADMIN_HEADER
from service.http.admin_schemas import BundlesResponse

PATIENCE = 900.0  # seconds for one change: a large bundle takes its time to load
BUSY = 409


@dataclass
class Switch:
    """One change: times in seconds from the start of the run, and why it failed, None while all is well."""

    bundle: str
    began: float
    ended: float | None = None
    failure: str | None = None


class Switcher:
    """Asks for two bundles in turn, every so many seconds, and for the one that was served before at the end."""

    def __init__(self, target: Target, bundles: tuple[str, str] | None, key: str, every: float) -> None:
        """Without `bundles` the two newest of the service's store take turns."""
        self._target = target
        self._given = bundles
        self._bundles: list[str] = []  # the one to ask for next comes first
        self._before: str | None = None
        self._key = f"{ADMIN_HEADER}: {key}\r\n"
        self._every = every
        self._start = 0.0
        self.switches: list[Switch] = []

    async def prepare(self) -> None:
        """Choose the bundles and have one of them served. Raises BadInput when the service refuses."""
        url = self._target.url
        try:
            status, answer = await self._target.call("/admin/bundles", None, self._key)
        except OSError as error:
            raise BadInput(f"{url} does not list its bundles: there was no answer ({why(error)}).") from error
        if status != 200:
            raise BadInput(f"{url} does not list its bundles: {said(answer)}")
        listing = BundlesResponse.model_validate(answer, strict=False)
        self._before = next((one.bundle for one in listing.generations if one.state == "serving"), None)
        self._bundles = _known(self._given, listing) if self._given else _newest(url, listing)
        self._bundles.sort(key=lambda name: name == self._before)
        if self._before not in self._bundles:
            _, failure = await self._ask(self._bundles[1])
            if failure:
                raise BadInput(f"{url} does not change to bundle {self._bundles[1]}: {failure}")

    async def run(self, start: float, duration: float) -> None:
        """Switch until `duration` is over; a change that takes longer than the time between two puts off the next."""
        self._start = start
        number = 0
        while (due := start + (number + 1) * self._every) < start + duration:
            await asyncio.sleep(max(0.0, due - now()))
            switch = Switch(self._bundles[len(self.switches) % 2], now() - start)
            self.switches.append(switch)
            _, switch.failure = await self._ask(switch.bundle)
            switch.ended = now() - start
            number = max(number + 1, int(switch.ended / self._every))

    async def restore(self) -> str | None:
        """Ask for the bundle that was served before; why that failed, None when it is served again."""
        deadline = now() + PATIENCE
        while self._before:
            status, failure = await self._ask(self._before)
            if status != BUSY or now() > deadline:  # a change that the run's end cut off goes on all the same
                return failure and f"Bundle {self._before} was served before and is not again: {failure}"
            await asyncio.sleep(0.2)
        return None

    def touches(self, due: float) -> bool:
        """Whether a change was under way at some moment between `due` (a time of `now()`) and now."""
        if not self.switches:
            return False
        last = self.switches[-1]
        return last.ended is None or due - self._start < last.ended

    async def _ask(self, bundle: str) -> tuple[int, str | None]:
        """The status (0 without an answer), and why the service did not change to `bundle`, None when it did."""
        body = json.dumps({"bundle": bundle}).encode()
        try:
            status, answer = await self._target.call("/admin/activate", body, self._key, PATIENCE)
        except OSError as error:
            return 0, f"there was no answer ({why(error)})."
        return status, None if status == 200 else said(answer)


def _known(given: tuple[str, str], listing: BundlesResponse) -> list[str]:
    names = [one.name for one in listing.bundles]
    if unknown := [name for name in given if name not in names]:
        raise BadInput(f"--bundles: the service's store has no bundle {unknown[0]}; it has {', '.join(names)}.")
    return list(given)


def _newest(url: str, listing: BundlesResponse) -> list[str]:
    """The two newest bundles that can be opened."""
    names = [one.name for one in listing.bundles if one.trouble is None][-2:]
    if len(names) < 2:
        raise BadInput(f"{url} has fewer than two bundles to switch between; export another, or name them: --bundles.")
    return names
