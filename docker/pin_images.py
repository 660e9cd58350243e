"""Keep the digests of the base images: a tag can be moved to another image, a digest cannot.

    python docker/pin_images.py          writes the digests that the tags have today (make images)
    python docker/pin_images.py --check  fails where an image has no digest, or a registry does not know it

Needs docker with buildx, and a network.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ["docker-compose.yml", "docker/service.Dockerfile", "docker/training.Dockerfile"]
OURS = ("diptych-service", "diptych-training")
# the name and tag of an image, and its digest where it has one
COMPOSE = re.compile(
    r"^ +image: (?P<name>[\w./-]+):(?P<tag>[\w.-]+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?$", re.MULTILINE
)
PYTHON = re.compile(r"^ARG (?P<name>PYTHON)=(?P<tag>[\w.-]+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?$", re.MULTILINE)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def main() -> int:
    """Returns the exit code; raises CalledProcessError where a registry cannot be asked for a tag."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true")
    if options.parse_args().check:
        wrong = [line for name in FILES for line in check((ROOT / name).read_text(), name)]
        print("\n".join(wrong) or "Every image has a digest that its registry knows.")
        return 1 if wrong else 0
    for name in FILES:
        path = ROOT / name
        path.write_text(pinned(path.read_text()))
    return 0


def images(text: str) -> list[re.Match[str]]:
    """The images that a file takes from a registry."""
    return [*COMPOSE.finditer(text), *PYTHON.finditer(text)]


def reference(image: re.Match[str]) -> str:
    """An image's name and tag, without its digest."""
    return f"{image['name'].lower() if image['name'] == 'PYTHON' else image['name']}:{image['tag']}"


def check(text: str, name: str) -> list[str]:
    """A sentence for each image of a file that has no digest, or one that is nowhere."""
    wrong = []
    for image in images(text):
        if not image["digest"]:
            wrong.append(f"{name}: {reference(image)} has no digest; run `make images`.")
        elif inspect(f"{reference(image)}@{image['digest']}", check=False) != image["digest"]:
            wrong.append(f"{name}: the registry has no {reference(image)}@{image['digest']}; run `make images`.")
    return wrong


def pinned(text: str) -> str:
    """The file with the digests that the tags have today."""
    for image in images(text):
        tagged = image[0].partition("@")[0]
        digest = inspect(reference(image), check=True)
        print(f"{reference(image)}@{digest}")
        text = text.replace(image[0], f"{tagged}@{digest}")
    return text


def inspect(image: str, *, check: bool) -> str:
    """What the registry says is an image's digest, of all processors together."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=check)
    found = DIGEST.search(done.stdout)
    return found[0] if found else ""


if __name__ == "__main__":
    sys.exit(main())
