"""The index of docs/decisions/: every decision by its number and title, in the order of the rooms they belong to."""

from collections.abc import Sequence
from pathlib import Path

DECISIONS = Path(__file__).resolve().parents[1] / "decisions"
ROOMS: dict[str, Sequence[int]] = {
    "Learning": range(1, 20),
    "Commands and tables": range(64, 66),
    "Building and searching bundles": range(20, 40),
    "Answering": [*range(40, 50), *range(58, 64), *range(66, 70)],
    "The console": range(50, 52),
    "Containers and packages": [*range(52, 54), *range(70, 72)],
    "Documents": range(54, 56),
    "What commits are held to, and help on the spot": range(56, 58),
}


def page() -> str:
    """The Markdown of the index. ValueError where a decision's number belongs to no room."""
    found = sorted(DECISIONS.glob("[0-9]*.md"))
    if homeless := [path.name for path in found if not any(_number(path) in room for room in ROOMS.values())]:
        raise ValueError(
            f"{', '.join(homeless)}: no room of the index has this number. Add one to ROOMS in {__file__}."
        )
    lines = ["# Decisions", "", "Why things are as they are, and what was tried instead. One page a decision.", ""]
    for room, numbers in ROOMS.items():
        kept = [path for path in found if _number(path) in numbers]
        lines += [f"## {room}", "", *(f"- [{_title(path)}]({path.name})" for path in kept), ""] if kept else []
    return "\n".join(lines)


def _number(path: Path) -> int:
    return int(path.name[:4])


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").strip()
