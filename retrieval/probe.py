"""A bundle opened in a process of its own: what native code makes of a hostile file ends that process and no other.

`python -m retrieval.probe SECONDS FOLDER TRUSTED_KEYS` opens a bundle, asks its golden queries and prints one line of
JSON: the report, or the refusal.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import BundleError, DiptychError

if TYPE_CHECKING:
    from retrieval.golden import GoldenReport

PATIENCE_SECONDS = 60
SLOWEST_BYTES_A_SECOND = 20_000_000  # a bundle on a slow disk is read three times: hashed, checked, loaded


def prove(folder: Path, trusted: Sequence[str] = ()) -> "GoldenReport":
    """Open a bundle in this process and ask its golden queries. Raises BundleError with the figures."""
    from retrieval.retriever import Retriever

    with Retriever.open(folder, trusted=trusted, paused=()) as retriever:
        report = retriever.check_golden()
    if not report.passed:
        raise BundleError(f"{folder} is whole but answers differently here: {report}. Export it again on this machine.")
    return report


def prove_aside(folder: Path, trusted: Sequence[str] = ()) -> "GoldenReport":
    """As `prove`, in a child process, whose death or silence is a BundleError too."""
    from retrieval.golden import GoldenReport

    folder = folder.resolve()
    seconds = _patience(folder)
    command = [sys.executable, "-P", "-m", "retrieval.probe", str(seconds), str(folder), ",".join(trusted)]
    # The child imports from where its parent does, and gets no secret it has no use for.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DIPTYCH_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
    if ended.returncode == -signal.SIGALRM:
        raise BundleError(f"{folder} did not answer within {seconds} s. Export the bundle again.")
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise BundleError(f"{folder} ended the process that opened it ({name}). Export the bundle again.")
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BundleError(f"{folder} cannot be opened ({last}). Export the bundle again.")
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    if "refused" in said:
        raise BundleError(said["refused"])
    return GoldenReport(**said)


def main(arguments: Sequence[str]) -> None:
    """What the child does."""
    from dataclasses import asdict

    seconds, folder, trusted = arguments
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(seconds))  # ends the process wherever it hangs, and though nobody waits for it any more
    try:
        said = asdict(prove(Path(folder), [key for key in trusted.split(",") if key]))
    except DiptychError as refusal:
        said = {"refused": str(refusal)}
    print(json.dumps(said))


def _patience(folder: Path) -> int:
    bytes_to_read = sum(item.stat().st_size for item in folder.iterdir()) if folder.is_dir() else 0
    return PATIENCE_SECONDS + bytes_to_read // SLOWEST_BYTES_A_SECOND


if __name__ == "__main__":
    main(sys.argv[1:])
