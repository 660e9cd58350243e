"""Looking at the store every few seconds, so that what another process activates there is served."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from retrieval.errors import DiptychError

LOG = logging.getLogger("diptych")


class Watch:
    """Calls `follow` with the bundle that CURRENT names whenever that has changed: once, whatever comes of it."""

    def __init__(
        self, look: Callable[[], Awaitable[str | None]], follow: Callable[[str], Awaitable[None]], seconds: float
    ) -> None:
        """`look` reads CURRENT; `seconds` lie between two looks."""
        self.trouble: str | None = None  # why CURRENT cannot be read
        self.seen: str | None = None  # what CURRENT named last; whoever changes CURRENT itself says so here
        self._look = look
        self._follow = follow
        self._seconds = seconds

    async def run(self, served: str) -> None:
        """Look until cancelled; `served` needs no change."""
        self.seen = served
        while True:
            await asyncio.sleep(self._seconds)
            seen = self.seen
            name = await self._named()
            if name not in (None, seen) and self.seen == seen:
                self.seen = name
                await self._follow(name)

    async def _named(self) -> str | None:
        try:
            name = await self._look()
        except (DiptychError, OSError) as error:
            if self.trouble is None:
                LOG.warning("the store cannot be looked at: %s", error)
            self.trouble = f"the store cannot be looked at ({str(error).rstrip('.')})"
            return None
        self.trouble = None
        return name
