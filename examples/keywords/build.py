"""Build keywords.parquet: concept → search keywords, from the metadata of five npm packages at pinned versions.

    python examples/keywords/build.py FOLDER

Downloads packages to FOLDER with `npm pack`, unless they exist. Writes the table next to this script. The same version
of pyarrow writes the same bytes. Needs Python ≥ 3.11 with pyarrow, and npm.
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

OUTPUT = Path(__file__).parent / "keywords.parquet"
PACKAGES = (
    "@mdi/svg@7.4.47",
    "lucide-static@1.62.0",
    "@tabler/icons@3.51.0",
    "ionicons@8.1.0",
    "cldr-annotations-full@48.2.0",
)
# Words for the style of an icon. Numbers only distinguish variants.
STYLES = {"outline", "circle", "box", "square", "filled", "rounded", "round", "variant", "sharp", "fill", "solid"}
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("exclude", pa.list_(pa.string())),
    ]
)
Icon = tuple[str, list[str]]


def main(folder: Path) -> None:
    """Download missing packages, build the table and write it."""
    labels_of = merge(read_icons(folder))
    pq.write_table(pa.Table.from_pylist(list(rows(labels_of)), SCHEMA), OUTPUT, compression="zstd")
    print(f"{len(labels_of):,} concepts written to {OUTPUT}")


def read_icons(folder: Path) -> Iterator[Icon]:
    """Yield (name, keywords) of every icon and emoji, in the order of the packages."""
    icons, lucide, tabler, ionicons, cldr = (fetch(package, folder) for package in PACKAGES)
    for icon in read_json(icons, "meta.json"):
        yield icon["name"], icon["aliases"] + icon["tags"]
    yield from read_json(lucide, "tags.json").items()
    for name, icon in read_json(tabler, "icons.json").items():
        yield name, [str(tag) for tag in icon["tags"]] + [icon["category"]]
    for icon in read_json(ionicons, "dist/ionicons.json")["icons"]:
        yield icon["name"], icon["tags"]
    for entry in read_json(cldr, "annotations/en/annotations.json")["annotations"]["annotations"].values():
        if "tts" in entry:
            yield entry["tts"][0], entry["default"]


def fetch(package: str, folder: Path) -> Path:
    """Return the package's archive in `folder`; download it with npm if it is missing."""
    path = folder / f"{package.removeprefix('@').replace('/', '-').replace('@', '-')}.tgz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True)
    return path


def read_json(archive: Path, name: str) -> Any:
    """Read one JSON file of a package."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{name}")
        if file is None:
            raise SystemExit(f"{archive} has no {name}")
        return json.load(file)


def merge(icons: Iterable[Icon]) -> dict[str, list[str]]:
    """Return the labels of each concept in order of occurrence. Style variants of a concept are merged."""
    labels_of: dict[str, dict[str, None]] = {}
    for name, keywords in icons:
        query, text = concept(name), plain(name)
        for label in map(plain, keywords):
            if label and label not in (query, text):
                labels_of.setdefault(query, {})[label] = None
    return {query: list(labels) for query, labels in labels_of.items()}


def plain(text: str) -> str:
    """Convert to lower case, and hyphens, underscores and white space to single spaces."""
    return " ".join(re.split(r"[-_\s]+", text.lower())).strip()


def concept(name: str) -> str:
    """Remove words for the style from a name, unless no other words are left."""
    words = plain(name).split()
    return " ".join([word for word in words if word not in STYLES and not word.isdigit()] or words)


def rows(labels_of: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """Yield one row per concept. A tenth of the concepts, selected by hash, is the test split.

    Excluded are the concept's text if it is also a label and, on test rows, labels that are training concepts with this
    concept among their labels: the reverse pair is a training pair.
    """
    known = {label for labels in labels_of.values() for label in labels}
    for query, labels in labels_of.items():
        exclude = [query] if query in known else []
        if is_test(query):
            exclude += [label for label in labels if query in labels_of.get(label, ()) and not is_test(label)]
        yield {"query": query, "labels": labels, "split": "test" if is_test(query) else "train", "exclude": exclude}


def is_test(query: str) -> bool:
    """Return whether a concept is in the test split; this depends only on its text."""
    return int(hashlib.sha1(f"split:{query}".encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
