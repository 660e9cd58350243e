"""A bundle opened in a process of its own: what native code makes of a hostile file ends that process and no other.

`python -m retrieval.probe SECONDS DATA_BYTES MODE FOLDER TRUSTED_KEYS` opens a bundle, asks its golden queries and
prints one line of JSON: the report, or the refusal. It is confined first, see retrieval/sandbox.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import BundleError, DiptychError
from retrieval.sandbox import child_environment, confine, data_limit, folder_bytes, limit, missing, sandbox_mode

if TYPE_CHECKING:
    from retrieval.golden import GoldenReport

LOG = logging.getLogger("diptych")
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

    folder = folder.parent.resolve() / folder.name
    seconds, mode = _patience(folder), sandbox_mode()
    if mode != "off":
        warn_of_missing()
    arguments = (str(seconds), str(data_limit(folder)), mode, str(folder), ",".join(trusted))
    command = [sys.executable, "-P", "-m", "retrieval.probe", *arguments]
    environment = child_environment() | {"OPENBLAS_NUM_THREADS": "1"}  # its threads reserve more than they give here
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
    if ended.returncode in (-signal.SIGALRM, -signal.SIGXCPU):
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


@cache
def warn_of_missing() -> None:
    """Say once in the log what this system lacks to confine children."""
    if lacks := missing():
        LOG.warning(
            "bundles are opened without a full sandbox: %s. Install 'diptych[sandbox]' on Linux 5.13 or newer, or set "
            "DIPTYCH_SANDBOX=off.",
            ", ".join(lacks),
        )


def main(arguments: Sequence[str]) -> None:
    """Be the child: limit and confine this process, then open the bundle."""
    seconds, data, mode, folder, trusted = arguments
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(seconds))  # ends the process wherever it hangs, and though nobody waits for it any more
    try:
        file_bytes = None if mode == "off" else folder_bytes(Path(folder))
        limit(int(data), int(seconds) * (os.cpu_count() or 1), file_bytes)
        confine([Path(folder)], sandbox_mode(mode))
        from dataclasses import asdict

        said = asdict(prove(Path(folder), [key for key in trusted.split(",") if key]))
    except DiptychError as refusal:
        said = {"refused": str(refusal)}
    except MemoryError:
        said = {"refused": f"{folder} takes more than {int(data) >> 20:,} MB of memory. Export the bundle again."}
    print(json.dumps(said))


def _patience(folder: Path) -> int:
    return PATIENCE_SECONDS + folder_bytes(folder) // SLOWEST_BYTES_A_SECOND


if __name__ == "__main__":
    main(sys.argv[1:])
