"""Log one line per administrative act, done or refused: name of the key, address, action and outcome.

The action comes from the parsed request, never from the raw body, so the log has no user text.
"""

import logging
from collections.abc import Collection, Iterable

from service.http import paths
from service.request_context import RequestContext

LOG = logging.getLogger("diptych.audit")
READS = frozenset({"GET", "HEAD", "OPTIONS"})
SHOWN_CHARS = 300  # of a path or an id
SHOWN_IDS = 20  # of a list
ACTIONS = {
    ("POST", "/admin/activate"): "activate",
    ("POST", "/admin/rollback"): "rollback",
    ("POST", "/admin/paused"): "pause",
    ("POST", paths.COMPARE): "compare",
    ("GET", "/admin/paused"): "list_paused",
    ("GET", "/admin/bundles"): "list_bundles",
}


def record(context: RequestContext) -> None:
    """Log a request. Successful reads and comparisons are not logged."""
    method, path = context.scope["method"], context.scope["path"]
    if (method in READS or context.route == paths.COMPARE) and context.status in (200, 204):
        return
    fields: dict[str, object] = {
        "key": context.key_name,
        "address": context.address,
        "action": ACTIONS.get((method, path)),
        **context.audit_details,
        "request": f"{method} {path[:SHOWN_CHARS]}",
        "status": context.status or None,
        "error_code": context.error_code,
    }
    LOG.info("administration", extra=fields)


def paused_ids(
    before: Collection[str], after: Collection[str], add: Iterable[str], remove: Iterable[str]
) -> dict[str, object]:
    """Describe a change of the paused labels: the requested ids that were added and removed, the first few by name."""
    was, now = set(before), set(after)
    added = [id_ for id_ in dict.fromkeys(add) if id_ in now and id_ not in was]
    removed = [id_ for id_ in dict.fromkeys(remove) if id_ in was and id_ not in now]
    return {
        "added": [id_[:SHOWN_CHARS] for id_ in added[:SHOWN_IDS]],
        "added_count": len(added),
        "removed": [id_[:SHOWN_CHARS] for id_ in removed[:SHOWN_IDS]],
        "removed_count": len(removed),
        "paused_count": len(now),
    }
