"""Switch the service between two bundles during a run, through its admin interface."""

import asyncio
import json

from pydantic import BaseModel

from loadtest.target import ADMIN_KEY_HEADER, Target, error_message, reason
from loadtest.timer import now
from retrieval.errors import BadInput

SWITCH_SECONDS = 900.0  # timeout of one switch; a large bundle takes long to load
RETRY_SECONDS = 0.2
CONFLICT = 409  # another switch is in progress


class ListedBundle(BaseModel):
    """A bundle of the store, as GET /admin/bundles lists it; `trouble` says why it cannot be opened."""

    name: str
    trouble: str | None = None


class OpenBundle(BaseModel):
    """A bundle that the service has opened."""

    bundle: str
    state: str


class BundleListing(BaseModel):
    """The fields of GET /admin/bundles that switching needs."""

    bundles: list[ListedBundle]
    generations: list[OpenBundle]


class Switch(BaseModel):
    """One switch, timed from the start of the run.

    `ended_seconds` is None until it has ended, `failure` is None if it succeeded.
    """

    bundle: str
    started_seconds: float
    ended_seconds: float | None = None
    failure: str | None = None


class Switcher:
    """Activate two bundles in turn, and at the end the one that was served before."""

    def __init__(self, target: Target, bundles: tuple[str, str] | None, key: str, every: float) -> None:
        """Switch every `every` seconds; without `bundles`, between the two newest of the store."""
        self._target = target
        self._requested = bundles
        self._bundles: list[str] = []  # in the order of activation
        self._before: str | None = None
        self._key = f"{ADMIN_KEY_HEADER}: {key}\r\n"
        self._every = every
        self._start = 0.0
        self.switches: list[Switch] = []

    async def prepare(self) -> None:
        """Choose the bundles and activate one of them. Raises BadInput if the service refuses."""
        listing = await self._list()
        serving = (generation.bundle for generation in listing.generations if generation.state == "serving")
        self._before = next(serving, None)
        self._bundles = self._choose(listing)
        self._bundles.sort(key=lambda name: name == self._before)
        if self._before not in self._bundles:
            _, failure = await self._activate(self._bundles[1])
            if failure:
                raise BadInput(f"{self._target.url} does not switch to bundle {self._bundles[1]}: {failure}")

    async def run(self, start: float, duration: float) -> None:
        """Switch until `duration` is over; a switch that takes longer than the interval delays the next one."""
        self._start = start
        number = 0
        while (due := start + (number + 1) * self._every) < start + duration:
            await asyncio.sleep(max(0.0, due - now()))
            switch = Switch(bundle=self._bundles[len(self.switches) % 2], started_seconds=round(now() - start, 3))
            self.switches.append(switch)
            _, switch.failure = await self._activate(switch.bundle)
            switch.ended_seconds = round(now() - start, 3)
            number = max(number + 1, int(switch.ended_seconds / self._every))

    async def restore(self) -> str | None:
        """Activate the bundle that was served before; returns why that failed."""
        deadline = now() + SWITCH_SECONDS
        while self._before:
            status, failure = await self._activate(self._before)
            if status != CONFLICT or now() > deadline:  # a switch in progress goes on after the run has ended
                return failure and f"Bundle {self._before}, which was served before, is not active again: {failure}"
            await asyncio.sleep(RETRY_SECONDS)
        return None

    def overlaps(self, due: float) -> bool:
        """Tell whether a switch was in progress at some time between `due`, a time of `now()`, and now."""
        if not self.switches:
            return False
        last = self.switches[-1]
        return last.ended_seconds is None or due - self._start < last.ended_seconds

    async def _list(self) -> BundleListing:
        url = self._target.url
        try:
            status, answer = await self._target.call("/admin/bundles", None, self._key)
        except OSError as error:
            raise BadInput(f"{url} does not list its bundles: there was no answer ({reason(error)}).") from error
        if status != 200:
            raise BadInput(f"{url} does not list its bundles: {error_message(answer)}")
        return BundleListing.model_validate(answer)

    def _choose(self, listing: BundleListing) -> list[str]:
        """Return the requested bundles, or the two newest that can be opened."""
        names = [bundle.name for bundle in listing.bundles]
        if self._requested:
            if missing := [name for name in self._requested if name not in names]:
                raise BadInput(f"--bundles: the store has no bundle {missing[0]}; it has {', '.join(names)}.")
            return list(self._requested)
        newest = [bundle.name for bundle in listing.bundles if bundle.trouble is None][-2:]
        if len(newest) < 2:
            raise BadInput(
                f"{self._target.url} has fewer than two bundles to switch between. Export another one, or name two "
                "with --bundles."
            )
        return newest

    async def _activate(self, bundle: str) -> tuple[int, str | None]:
        """Return the status (0 without an answer) and why the switch failed, None if it succeeded."""
        body = json.dumps({"bundle": bundle}).encode()
        try:
            status, answer = await self._target.call("/admin/activate", body, self._key, SWITCH_SECONDS)
        except OSError as error:
            return 0, f"there was no answer ({reason(error)})."
        return status, None if status == 200 else error_message(answer)
