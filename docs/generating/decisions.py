"""Generate the list of docs/decisions/: every record with its number and title, in topics."""

from collections.abc import Sequence
from pathlib import Path

DECISIONS = Path(__file__).resolve().parents[1] / "decisions"
TOPICS: dict[str, Sequence[int]] = {
    "Training": [*range(1, 20), 81, 84, 85, 87, 88, *range(90, 95), 99],
    "Bundles, stores and search": [*range(20, 40), 86, 89, 95, 96, 98],
    "Service": [*range(40, 50), *range(58, 64), *range(66, 70), 101],
    "Console": range(50, 52),
    "Commands and tables": [57, *range(64, 66), 79, 80, 82, 83, 100],
    "Containers and packages": [*range(52, 54), 70],
    "Documentation and development": [*range(54, 57), 77],
    "Code structure": [*range(71, 77), 78],
}


def page() -> str:
    """Render the list as Markdown. Raises ValueError if a record's number belongs to no topic."""
    paths = sorted(DECISIONS.glob("[0-9]*.md"))
    if unlisted := [path.name for path in paths if not any(_number(path) in numbers for numbers in TOPICS.values())]:
        raise ValueError(f"{', '.join(unlisted)}: no topic has this number. Add it to TOPICS in {__file__}.")
    lines = [
        "# Decisions",
        "",
        "Each record has four parts: the context, the decision, the figures behind it, and its consequences.",
        "",
    ]
    for topic, numbers in TOPICS.items():
        members = [path for path in paths if _number(path) in numbers]
        lines += [f"## {topic}", "", *(f"- [{_title(path)}]({path.name})" for path in members), ""] if members else []
    return "\n".join(lines)


def _number(path: Path) -> int:
    return int(path.name[:4])


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").strip()
