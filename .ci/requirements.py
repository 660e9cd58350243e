"""Print the third-party requirements of the project and some of its extras, one per line, for `pip install -r`.

python .ci/requirements.py serve s3 cpu

Reads pyproject.toml in the current folder. pip checks the hashes of constraints.txt only for packages from an index, so
the project itself is installed separately.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = re.compile(r"diptych\[([\w,]+)\]")


def requirements(project: dict[str, object], extras: list[str]) -> Iterator[str]:
    """Yield requirements of the base and the extras; an extra may contain others. Raises KeyError for unknown ones."""
    yield from project["dependencies"]  # type: ignore[misc]
    pending, seen = list(extras), set[str]()
    while pending:
        if (extra := pending.pop()) in seen:
            continue
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:  # type: ignore[index]
            if match := PROJECT.match(requirement):
                pending += match[1].split(",")
            else:
                yield requirement


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print("\n".join(sorted(set(requirements(project, sys.argv[1:])))))
