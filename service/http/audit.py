"""Log one line per administrative act, done or refused: name of the key, address, action and outcome.

The action comes from the parsed request, never from the raw body, so the log has no user text.
"""

import logging
from collections.abc import Collection, Iterable

from service.http.middleware import COMPARE, Exchange

LOG = logging.getLogger("diptych.audit")
READS = frozenset({"GET", "HEAD", "OPTIONS"})
SHOWN_CHARS = 300  # of a path or an id
SHOWN_IDS = 20  # of a list
ACTIONS = {
    ("POST", "/admin/activate"): "activate",
    ("POST", "/admin/rollback"): "rollback",
    ("POST", "/admin/paused"): "pause",
    ("POST", COMPARE): "compare",
    ("GET", "/admin/paused"): "list_paused",
    ("GET", "/admin/bundles"): "list_bundles",
}


def record(exchange: Exchange) -> None:
    """Log a request. Successful reads and comparisons are not logged."""
    method, path = exchange.scope["method"], exchange.scope["path"]
    if (method in READS or exchange.route == COMPARE) and exchange.status in (200, 204):
        return
    about: dict[str, object] = {
        "key": exchange.key_name,
        "address": exchange.address,
        "action": ACTIONS.get((method, path)),
        **exchange.act,
        "request": f"{method} {path[:SHOWN_CHARS]}",
        "status": exchange.status or None,
        "refusal": exchange.refusal,
    }
    LOG.info("administration", extra=about)


def paused_ids(
    before: Collection[str], after: Collection[str], add: Iterable[str], remove: Iterable[str]
) -> dict[str, object]:
    """Describe a change of the paused labels: the requested ids that were added and removed, the first few by name."""
    was, now = set(before), set(after)
    added = [one for one in dict.fromkeys(add) if one in now and one not in was]
    removed = [one for one in dict.fromkeys(remove) if one in was and one not in now]
    return {
        "added": [one[:SHOWN_CHARS] for one in added[:SHOWN_IDS]],
        "added_count": len(added),
        "removed": [one[:SHOWN_CHARS] for one in removed[:SHOWN_IDS]],
        "removed_count": len(removed),
        "paused_count": len(now),
    }
