"""Build keywords.parquet: concept → search keywords, from the metadata of five npm packages at pinned versions.

    python examples/keywords/build.py FOLDER

FOLDER takes the packages, fetched with `npm pack`; those already there are not fetched again. The output stands beside
this script; one version of pyarrow writes the same bytes each time. Needs Python ≥ 3.11 with pyarrow, and npm.
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

HERE = Path(__file__).parent
PACKAGES = (
    "@mdi/svg@7.4.47",
    "lucide-static@1.62.0",
    "@tabler/icons@3.51.0",
    "ionicons@8.1.0",
    "cldr-annotations-full@48.2.0",
)
# Words that tell how a thing is drawn and not what it is; bare numbers only tell its variants apart.
STYLES = {"outline", "circle", "box", "square", "filled", "rounded", "round", "variant", "sharp", "fill", "solid"}
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("exclude", pa.list_(pa.string())),
    ]
)
Tagged = tuple[str, list[str]]


def main(folder: Path) -> None:
    """Fetch what is missing, build, and write the table."""
    labels_of = merge(tagged(folder))
    pq.write_table(pa.Table.from_pylist(list(rows(labels_of)), SCHEMA), HERE / "keywords.parquet", compression="zstd")
    print(f"{len(labels_of):,} concepts written to {HERE / 'keywords.parquet'}")


def tagged(folder: Path) -> Iterator[Tagged]:
    """(name, keywords) of every icon and emoji, in the packages' order."""
    icons, lucide, tabler, ionicons, cldr = (fetch(package, folder) for package in PACKAGES)
    for icon in member(icons, "meta.json"):
        yield icon["name"], icon["aliases"] + icon["tags"]
    yield from member(lucide, "tags.json").items()
    for name, icon in member(tabler, "icons.json").items():
        yield name, [str(tag) for tag in icon["tags"]] + [icon["category"]]
    for icon in member(ionicons, "dist/ionicons.json")["icons"]:
        yield icon["name"], icon["tags"]
    for entry in member(cldr, "annotations/en/annotations.json")["annotations"]["annotations"].values():
        if "tts" in entry:
            yield entry["tts"][0], entry["default"]


def fetch(package: str, folder: Path) -> Path:
    """The package's archive in `folder`, fetched by npm when it is not there."""
    path = folder / f"{package.removeprefix('@').replace('/', '-').replace('@', '-')}.tgz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True)
    return path


def member(archive: Path, name: str) -> Any:
    """One JSON file of a package."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{name}")
        if file is None:
            raise SystemExit(f"{archive} has no {name}")
        return json.load(file)


def merge(icons: Iterable[Tagged]) -> dict[str, list[str]]:
    """Each concept's labels in the order met, the style variants of one concept taken together."""
    labels_of: dict[str, dict[str, None]] = {}
    for name, keywords in icons:
        query, own = concept(name), plain(name)
        for label in map(plain, keywords):
            if label and label not in (query, own):
                labels_of.setdefault(query, {})[label] = None
    return {query: list(labels) for query, labels in labels_of.items()}


def plain(text: str) -> str:
    """Small letters, with single spaces for hyphens, underscores and white space."""
    return " ".join(re.split(r"[-_\s]+", text.lower())).strip()


def concept(name: str) -> str:
    """What is drawn, whatever the style; a name that is nothing but style stays."""
    words = plain(name).split()
    return " ".join([word for word in words if word not in STYLES and not word.isdigit()] or words)


def rows(labels_of: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """A row a concept; a tenth of the concepts, chosen by hash, are for the test.

    Excluded are the concept's own text where it is a label too and, on test rows, labels that are training concepts
    with this concept among their labels: the pair was seen the other way round.
    """
    known = {label for labels in labels_of.values() for label in labels}
    for query, labels in labels_of.items():
        exclude = [query] if query in known else []
        if is_test(query):
            exclude += [label for label in labels if query in labels_of.get(label, ()) and not is_test(label)]
        yield {"query": query, "labels": labels, "split": "test" if is_test(query) else "train", "exclude": exclude}


def is_test(query: str) -> bool:
    """Whether a concept is held out; a concept stays where it is when others come or go."""
    return int(hashlib.sha1(f"split:{query}".encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
