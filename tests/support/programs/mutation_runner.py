"""Open damaged bundles, each in its own process.

`python -m tests.support.programs.mutation_runner ALONE MANIFEST FIXED SEED`: how many of each group, and the seed.
Prints one line of JSON a case: what it was, and what became of it. The processes are forked from one that has imported
everything and opened nothing, so that a case costs a hundredth of a second and its crash or its hanging only itself.
"""

import json
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from retrieval import open_bundle
from retrieval.errors import BundleError
from tests.support.bundles import VOTES, label_texts, make_bundle
from tests.support.forked import forked, start_forked
from tests.support.mutations import GROUPS, cases, damaged

QUERIES = ["red winter city", "light rain", "cheap"]


def verdict(folder: Path) -> tuple[str, str]:
    """Return the outcome for a bundle: refused, different (golden answers missed), accepted, or an unexpected error."""
    try:
        with open_bundle(folder, threads=1) as retriever:
            retriever.search(QUERIES, 5)
            report = retriever.check_golden()
    except BundleError as refusal:
        return "refused", str(refusal)
    except BaseException as error:  # noqa: BLE001  # also a panic of Rust's, which is no Exception: all are reported
        return "escaped", f"{type(error).__name__}: {error}"
    return ("accepted" if report.passed else "different"), str(report)


def main(arguments: list[str]) -> None:
    counts, seed = [int(one) for one in arguments[:-1]], int(arguments[-1])
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        # in a process of its own: it starts native threads, which forked processes would lack
        maker = start_forked(lambda: make_bundle(whole, [*label_texts(), *label_texts(20)], memory=VOTES))
        assert os.waitpid(maker, 0)[1] == 0
        for group, count in zip(GROUPS, counts, strict=True):
            for number, case in enumerate(cases(group, count, seed)):
                folder = damaged(whole, Path(scratch) / f"{number}", case)
                outcome, how = forked(partial(verdict, folder))
                line = {"group": group, "number": number, "kind": case.kind, "files": case.files}
                print(json.dumps(line | {"outcome": outcome, "how": how.replace(scratch, "")}), flush=True)
                shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
