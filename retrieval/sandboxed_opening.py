"""Verify that a bundle opens and answers as recorded, in a child process: a hostile file can crash only that process.

`python -m retrieval.sandboxed_opening SECONDS DATA_BYTES MODE FOLDER TRUSTED_KEYS SOCKETS`
restricts itself (see system/sandbox.py), opens a bundle, runs its golden queries and prints one line of JSON: the
report, or the reason why the bundle is refused.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retrieval.errors import BundleError, DiptychError
from retrieval.system.sandbox import child_environment, confine, data_limit, folder_bytes, limit, missing, sandbox_mode

if TYPE_CHECKING:
    from retrieval.bundle.golden_answers import GoldenReport

LOG = logging.getLogger("diptych")
LEAST_SECONDS = 60
GRACE_SECONDS = 15  # added by the parent, in case the child cancels its alarm
OUTPUT_BYTES = 1 << 16  # at the end of each output of the child
SLOWEST_BYTES_PER_SECOND = 20_000_000  # of a slow disk; for hashing, checking and loading together

Run = Callable[[Sequence[str], Mapping[str, str], float], tuple[int | None, bytes, bytes]]


def verify_in_process(folder: Path, trusted: Sequence[str] = (), index_sockets: Sequence[int] = ()) -> "GoldenReport":
    """Open a bundle in this process and check its golden answers; return the comparison.

    With `trusted` keys, one of them must have signed the bundle. An index in Milvus is searched through
    `index_sockets`; without them all labels are compared instead. Raises BundleError.
    """
    from retrieval.loading import LoadOptions
    from retrieval.retriever import Retriever

    options = LoadOptions(index_sockets=tuple(index_sockets), without_server=not index_sockets)
    with Retriever.load(folder, options, trusted=trusted) as retriever:
        report = retriever.check_golden()
    if not report.passed:
        raise BundleError(
            f"{folder} is undamaged, but its answers on this machine differ from its golden answers: {report}. Export "
            "it again on this machine."
        )
    return report


def verify_in_subprocess(
    folder: Path,
    trusted: Sequence[str] = (),
    *,
    least_seconds: int = LEAST_SECONDS,
    run: Run | None = None,
    index_sockets: Sequence[int] = (),
) -> "GoldenReport":
    """Verify as `verify_in_process` does, in a child process.

    Args:
        least_seconds: time limit of the child, to which the time for reading the files of the bundle is added.
        run: runs a program; default: `run_program`.
        index_sockets: as for `verify_in_process`.

    Raises BundleError, also if the child dies or does not answer.
    """
    from retrieval.bundle.golden_answers import GoldenReport

    folder = folder.parent.resolve() / folder.name
    seconds, mode = least_seconds + folder_bytes(folder) // SLOWEST_BYTES_PER_SECOND, sandbox_mode()
    if mode != "off":
        warn_of_missing()
    arguments: tuple[str, ...] = (str(seconds), str(data_limit(folder)), mode, str(folder))
    arguments += (",".join(trusted), ",".join(map(str, index_sockets)))
    command = [sys.executable, "-P", "-m", "retrieval.sandboxed_opening", *arguments]
    environment = child_environment() | {"OPENBLAS_NUM_THREADS": "1"}  # more would reserve memory
    run = run or partial(run_program, pass_fds=index_sockets)
    code, output, errors = run(command, environment, seconds + GRACE_SECONDS)
    if code is None or code in (-signal.SIGALRM, -signal.SIGXCPU):
        raise BundleError(f"{folder} did not answer within {seconds} s. Export the bundle again.")
    if code < 0:
        raise BundleError(
            f"{folder} ended the process that opened it ({_signal_name(-code)}). Export the bundle again."
        )
    if code:
        raise BundleError(f"{folder} cannot be opened ({_last_line(errors)}). Export the bundle again.")
    try:
        message: dict[str, Any] = json.loads(_last_line(output))
        if "refused" not in message:
            return GoldenReport(**message)
        refusal = str(message["refused"])
    except (ValueError, TypeError) as error:  # a compromised child can print anything
        raise BundleError(
            f"{folder}: the process that opened it did not print a report. Export the bundle again."
        ) from error
    raise BundleError(refusal)


def run_program(
    command: Sequence[str], environment: Mapping[str, str], seconds: float, pass_fds: Sequence[int] = ()
) -> tuple[int | None, bytes, bytes]:
    """Run a program; return its exit code (None: killed after `seconds`) and the last bytes of both outputs.

    It inherits the descriptors `pass_fds`.
    """
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=pass_fds,
        ) as child,
        ThreadPoolExecutor(2) as readers,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        ends = [readers.submit(_read_end, stream) for stream in (child.stdout, child.stderr)]
        code: int | None
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            child.kill()  # no effect if it has ended
        output, errors = (end.result() for end in ends)
    return code, output, errors


def _read_end(stream: IO[bytes]) -> bytes:
    """Read a stream to its end; return its last OUTPUT_BYTES."""
    end = b""
    while block := stream.read(OUTPUT_BYTES):
        end = (end + block)[-OUTPUT_BYTES:]
    return end


def _last_line(written: bytes) -> str:
    return written.decode(errors="replace").strip().rpartition("\n")[2]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


@cache
def warn_of_missing() -> None:
    """Log once what this system lacks to confine children."""
    if lacks := missing():
        LOG.warning(
            "bundles are opened without a full sandbox: %s. Install 'diptych[sandbox]' on Linux 5.13 or newer, or set "
            "DIPTYCH_SANDBOX=off.",
            ", ".join(lacks),
        )


def main(arguments: Sequence[str]) -> None:
    """Run the child: limit and confine this process, then open the bundle."""
    seconds, data, mode, folder, trusted, sockets = arguments
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(seconds))  # ends the process if it hangs, even without a parent
    try:
        file_bytes = None if mode == "off" else folder_bytes(Path(folder))
        limit(int(data), int(seconds) * (os.cpu_count() or 1), file_bytes)
        confine([Path(folder)], sandbox_mode(mode))
        from dataclasses import asdict

        keys, numbers = ([one for one in listed.split(",") if one] for listed in (trusted, sockets))
        message = asdict(verify_in_process(Path(folder), keys, [int(number) for number in numbers]))
    except DiptychError as refusal:
        message = {"refused": str(refusal)}
    except MemoryError:
        message = {"refused": f"{folder} needs more than {int(data) >> 20:,} MB of memory. Export the bundle again."}
    print(json.dumps(message))


if __name__ == "__main__":
    main(sys.argv[1:])
