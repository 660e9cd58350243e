"""Pin base images by digest: a tag can be moved to another image, a digest cannot.

    python docker/pin_images.py          write the digests that the tags have now (make images)
    python docker/pin_images.py --check  fail if an image has no digest, or if its registry does not have the digest

Needs docker with buildx, and a network.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ["docker-compose.yml", "docker/service.Dockerfile", "docker/training.Dockerfile"]
# Name, tag and optional digest of an image. Images that compose builds itself have no tag and do not match.
COMPOSE = re.compile(
    r"^ +image: (?P<name>[\w./-]+):(?P<tag>[\w.-]+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?$", re.MULTILINE
)
PYTHON = re.compile(r"^ARG (?P<name>PYTHON)=(?P<tag>[\w.-]+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?$", re.MULTILINE)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def main() -> int:
    """Pin or check the images and return the exit code."""
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
    """Return the images in a file that come from a registry."""
    return [*COMPOSE.finditer(text), *PYTHON.finditer(text)]


def reference(image: re.Match[str]) -> str:
    """Return an image's name and tag, without its digest."""
    return f"{image['name'].lower() if image['name'] == 'PYTHON' else image['name']}:{image['tag']}"


def check(text: str, name: str) -> list[str]:
    """Return a sentence for each image without a digest, or with one that its registry does not have."""
    wrong = []
    for image in images(text):
        if not image["digest"]:
            wrong.append(f"{name}: {reference(image)} has no digest; run `make images`.")
        elif inspect(f"{reference(image)}@{image['digest']}") != image["digest"]:
            wrong.append(f"{name}: the registry has no {reference(image)}@{image['digest']}; run `make images`.")
    return wrong


def pinned(text: str) -> str:
    """Return the file with the digests that the tags have now. Raises SystemExit if a registry does not answer."""

    def with_digest(image: re.Match[str]) -> str:
        digest = inspect(reference(image))
        if not digest:
            raise SystemExit(f"No registry gave a digest for {reference(image)}. Check the tag and the network.")
        print(f"{reference(image)}@{digest}")
        return f"{image[0].partition('@')[0]}@{digest}"

    return PYTHON.sub(with_digest, COMPOSE.sub(with_digest, text))


def inspect(image: str) -> str:
    """Return an image's digest for all platforms from its registry; empty if the registry does not give one."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    digest = DIGEST.search(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout)
    return digest[0] if digest else ""


if __name__ == "__main__":
    sys.exit(main())
