"""Bodies of the admin routes, each with an example."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, create_model

from service.http.body_limits import DEFAULT_LIMITS
from service.http.schemas import MAX_FIELDS, PredictRequest, RequestBody, example_config
from service.settings import Settings

BUNDLE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
State = Literal["serving", "kept", "compared", "draining"]
MAX_ID_CHARS = 1024
STORED = {
    "name": "keywords-1",
    "active": True,
    "created": "2026-11-22T12:00:00Z",
    "labels": 16480,
    "bytes": 192_000_000,
    "trouble": None,
}
GENERATION = {"number": 1, "bundle": "keywords-1", "state": "serving", "labels": 16480, "unfinished": 3}


class ActivateRequest(RequestBody):
    """The bundle to activate."""

    model_config = example_config({"bundle": "keywords-2"})

    bundle: str = Field(pattern=BUNDLE_NAME)


class ActivateResponse(BaseModel):
    """The served bundle, the previous one, and the duration of the switch."""

    model_config = example_config({"bundle": "keywords-2", "previous": "keywords-1", "seconds": 1.6})

    bundle: str
    previous: str | None
    seconds: float


class StoredBundle(BaseModel):
    """One bundle of the store. A bundle that cannot be read or is not fetched yet has only a name and `trouble`."""

    model_config = example_config(STORED)

    name: str
    active: bool
    created: str | None = None
    labels: int | None = None
    bytes: int | None = None
    trouble: str | None = None


class ServedGeneration(BaseModel):
    """One open bundle: `serving`, `kept` for a rollback, `compared`, or `draining` until its requests are answered."""

    model_config = example_config(GENERATION)

    number: int
    bundle: str
    state: State
    labels: int | None
    unfinished: int


class BundlesResponse(BaseModel):
    """The store's bundles (those not fetched yet, then by age), open generations, and the bundle in preparation."""

    model_config = example_config({"bundles": [STORED], "generations": [GENERATION], "preparing": None})

    bundles: list[StoredBundle]
    generations: list[ServedGeneration]
    preparing: str | None


class PausedRequest(RequestBody):
    """Ids of labels to pause and to resume. An id in both lists is resumed."""

    model_config = example_config({"add": ["shopping-cart"], "remove": []})

    add: list[str] = Field([], description="Ids of labels to pause; the bundle need not have them.")
    remove: list[str] = Field([], description="Ids of labels to resume.")


class PausedResponse(BaseModel):
    """The paused labels, and those that the served bundle does not have (null: not reported by the engine yet)."""

    model_config = example_config({"paused": ["shopping-cart", "old-campaign"], "unknown": ["old-campaign"]})

    paused: list[str]
    unknown: list[str] | None


class CompareRequest(PredictRequest):
    """A request to another bundle, which is opened next to the served one."""

    model_config = example_config({"bundle": "keywords-2", "queries": ["cheap running shoes"], "k": 10})

    bundle: str


def compare_request(model: type[PredictRequest]) -> type[CompareRequest]:
    """Create CompareRequest with the limits of `model`, the result of `predict_request`."""
    fields: dict[str, Any] = {
        "bundle": (str, Field(pattern=BUNDLE_NAME, description="The bundle that answers the request.")),
        **{name: (model.model_fields[name].annotation, model.model_fields[name]) for name in ("queries", "k")},
    }
    compared = create_model("CompareRequest", __base__=CompareRequest, __doc__=CompareRequest.__doc__, **fields)
    compared.json_limits = model.json_limits
    return compared


def paused_request(settings: Settings) -> type[PausedRequest]:
    """Create PausedRequest with the limits of `settings`."""
    label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
    ids = Annotated[list[label], Field(max_length=settings.max_paused, fail_fast=True)]
    base = PausedRequest.model_fields
    fields: dict[str, Any] = {
        name: (ids, Field(default_factory=list, description=base[name].description)) for name in ("add", "remove")
    }
    model = create_model("PausedRequest", __base__=PausedRequest, __doc__=PausedRequest.__doc__, **fields)
    model.json_limits = DEFAULT_LIMITS._replace(values=2 * settings.max_paused + MAX_FIELDS)
    return model
