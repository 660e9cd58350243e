"""The rich console of all commands."""

from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from retrieval.system.terminal import UNSAFE, strip_controls


class Console(RichConsole):
    """A rich console that removes control characters from text; its own styles stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments without control characters, which have no width, so tables stay aligned."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or not UNSAFE.search(text):
                yield segment
            else:
                yield Segment(strip_controls(text), style)
