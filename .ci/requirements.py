"""Print the third-party requirements of the project and some of its extras, one a line, for `pip install -r`.

python .ci/requirements.py serve s3 cpu

Reads pyproject.toml in the current folder. pip checks the hashes of constraints.txt only for what comes from an index,
so the project itself is installed apart.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

OURS = re.compile(r"diptych\[([\w,]+)\]")


def requirements(project: dict[str, object], extras: list[str]) -> Iterator[str]:
    """The base's and the extras' requirements; an extra may name others. Raises KeyError for an unknown extra."""
    yield from project["dependencies"]  # type: ignore[misc]
    waiting, seen = list(extras), set[str]()
    while waiting:
        if (extra := waiting.pop()) in seen:
            continue
        seen.add(extra)
        for one in project["optional-dependencies"][extra]:  # type: ignore[index]
            if ours := OURS.match(one):
                waiting += ours[1].split(",")
            else:
                yield one


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print("\n".join(sorted(set(requirements(project, sys.argv[1:])))))
