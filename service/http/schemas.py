"""What goes over the wire, each with an example; the request's limits are the settings', and OpenAPI shows them."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model
from pydantic_core import to_json

from retrieval.search.filters import MAX_ATTRIBUTES, MAX_VALUES
from service.engine.protocol import Query
from service.errors import Refusal, refusal
from service.http.body_limits import DEFAULT_LIMITS, JsonLimits, check_structure
from service.settings import Settings

BUNDLE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Value = str | int | float | bool
State = Literal["serving", "kept", "compared", "draining"]
MAX_ID_CHARS = 1024
MAX_FILTER_BYTES = 65_536  # of JSON; the filter is sent to the engine with every slice of a request
ESCAPES_PER_CHAR = 2  # a pair of surrogates
FIELDS = 64  # names in a body beside those of its filter; enough to report unknown fields by name
NOT_BLANK = r"[^\s\x1c-\x1f]"  # what Python calls white space, which is what the retriever goes by
HIT = {
    "id": "shopping-cart",
    "text": "shopping cart",
    "attributes": {"market": "en"},
    "score": 0.8125,
    "dual_encoder": 0.4375,
    "classifier": 0.375,
}
STORED = {
    "name": "keywords-1",
    "active": True,
    "created": "2026-11-22T12:00:00Z",
    "labels": 16480,
    "bytes": 192_000_000,
    "trouble": None,
}
GENERATION = {"number": 1, "bundle": "keywords-1", "state": "serving", "labels": 16480, "unfinished": 3}
ATTRIBUTE = {"name": "market", "values": ["US", "CA"], "more": False}
ABOUT = {
    "bundle": "keywords-1",
    "labels": 16480,
    "weight": 0.5,
    "attributes": [ATTRIBUTE],
    "max_k": 100,
    "max_query_chars": 512,
    "administration": True,
}
READY = {"ready": True, "bundle": "keywords-1", "detail": "serving"}


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [example]})


class RequestBody(BaseModel):
    """JSON body of a request, with limits that are checked before parsing."""

    json_limits: ClassVar[JsonLimits] = DEFAULT_LIMITS


Body = TypeVar("Body", bound=RequestBody)


class PredictRequest(RequestBody):
    """Texts to find labels for."""

    # without a filter: which attributes there are is the bundle's affair, and an example should be answered by any
    model_config = _example({"queries": ["cheap running shoes", "credit card"], "k": 10, "min_score": 0.2})

    queries: list[str] = Field(description="One answer comes back for each text, in this order.")
    k: int = Field(10, description="Hits for each text.")
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="The classifier's share of the score; the bundle's own choice when left out."
    )
    filter: (
        Annotated[
            # fail_fast: report only the first bad value
            dict[str, Annotated[list[Value], Field(min_length=1, max_length=MAX_VALUES, fail_fast=True)]],
            Field(max_length=MAX_ATTRIBUTES),
        ]
        | None
    ) = Field(None, description="Attributes, and the values of each that a label may have: it must fit all of them.")
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="Labels that score less are left out."
    )

    @property
    def wanted(self) -> Query:
        """What the engine is asked."""
        return Query.create(self.queries, self.k, self.weight, self.filter, self.min_score)


class Hit(BaseModel):
    """One label: `dual_encoder` and `classifier` are the two shares of `score` and add up to it."""

    model_config = _example(HIT)

    id: str
    text: str
    attributes: dict[str, Any]
    score: float
    dual_encoder: float
    classifier: float


class Result(BaseModel):
    """One text and its hits, best first."""

    model_config = _example({"query": "cart", "hits": [HIT]})

    query: str
    hits: list[Hit]


class PredictResponse(BaseModel):
    """Every text's hits, all from one bundle."""

    model_config = _example({"bundle": "keywords-1", "results": [{"query": "cart", "hits": [HIT]}]})

    bundle: str
    results: list[Result]


class ActivateRequest(RequestBody):
    """The bundle to serve from now on."""

    model_config = _example({"bundle": "keywords-2"})

    bundle: str = Field(pattern=BUNDLE_NAME)


class ActivateResponse(BaseModel):
    """What is served now, what was before, and how long the change took."""

    model_config = _example({"bundle": "keywords-2", "previous": "keywords-1", "seconds": 1.6})

    bundle: str
    previous: str | None
    seconds: float


class StoredBundle(BaseModel):
    """One bundle of the store; of one that cannot be read, or is not here yet, only the name is told, and `trouble`."""

    model_config = _example(STORED)

    name: str
    active: bool
    created: str | None = None
    labels: int | None = None
    bytes: int | None = None
    trouble: str | None = None


class ServedGeneration(BaseModel):
    """One opened bundle: `serving`, `kept` for the way back, `compared`, or `draining` until it has answered."""

    model_config = _example(GENERATION)

    number: int
    bundle: str
    state: State
    labels: int | None
    unfinished: int


class BundlesResponse(BaseModel):
    """The store's bundles, oldest first after those not fetched yet; open generations; bundle in preparation."""

    model_config = _example({"bundles": [STORED], "generations": [GENERATION], "preparing": None})

    bundles: list[StoredBundle]
    generations: list[ServedGeneration]
    preparing: str | None


class PausedRequest(RequestBody):
    """Ids of labels to leave out of every answer, and of labels to show again; an id in both is shown."""

    model_config = _example({"add": ["shopping-cart"], "remove": []})

    add: list[str] = Field([], description="Labels not to be shown from now on, known to the bundle or not.")
    remove: list[str] = Field([], description="Labels to be shown again.")


class PausedResponse(BaseModel):
    """The paused labels, and those that the served bundle does not have (null: not reported by its engine yet)."""

    model_config = _example({"paused": ["shopping-cart", "old-campaign"], "unknown": ["old-campaign"]})

    paused: list[str]
    unknown: list[str] | None


class Readiness(BaseModel):
    """Whether requests are answered, from which bundle, and what an operator should know."""

    model_config = _example(READY)

    ready: bool
    bundle: str | None
    detail: str


class Attribute(BaseModel):
    """One attribute that a filter may name: its most frequent values, and whether there are more of them."""

    model_config = _example(ATTRIBUTE)

    name: str
    values: list[Value]
    more: bool


class About(BaseModel):
    """The bundle that is served, its weight where a request names none, what to filter by, and what may be asked."""

    model_config = _example(ABOUT)

    bundle: str
    labels: int
    weight: float
    attributes: list[Attribute]
    max_k: int
    max_query_chars: int
    administration: bool


class Error(BaseModel):
    """A code for programs and one sentence for a person."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The one shape of every answer that is not a success."""

    model_config = _example({"error": {"code": "out_of_range", "message": "k is 1000; the most is 100."}})

    error: Error


def predict_request(settings: Settings) -> type[PredictRequest]:
    """PredictRequest under the limits of `settings`, so that they are checked while the JSON is parsed."""
    text = Annotated[str, StringConstraints(min_length=1, max_length=settings.max_query_chars, pattern=NOT_BLANK)]
    # fail_fast: report only the first of a thousand bad texts
    queries = Annotated[list[text], Field(min_length=1, max_length=settings.max_queries, fail_fast=True)]
    k = Annotated[int, Field(ge=1, le=settings.max_k)]
    plain = PredictRequest.model_fields
    fields: dict[str, Any] = {
        "queries": (queries, Field(description=plain["queries"].description)),
        "k": (k, Field(min(plain["k"].default, settings.max_k), description=plain["k"].description)),
    }
    model = create_model("PredictRequest", __base__=PredictRequest, __doc__=PredictRequest.__doc__, **fields)
    names, values = FIELDS + MAX_ATTRIBUTES, settings.max_queries + MAX_ATTRIBUTES * MAX_VALUES + FIELDS
    escapes = ESCAPES_PER_CHAR * settings.max_queries * settings.max_query_chars
    model.json_limits = JsonLimits(names, names, values, max(escapes, DEFAULT_LIMITS.escapes))
    return model


class CompareRequest(PredictRequest):
    """Texts to ask of another bundle, which is opened beside the one that is served."""

    model_config = _example({"bundle": "keywords-2", "queries": ["cheap running shoes"], "k": 10})

    bundle: str


def compare_request(model: type[PredictRequest]) -> type[CompareRequest]:
    """Create CompareRequest with the limits of `model`, the result of `predict_request`."""
    fields: dict[str, Any] = {
        "bundle": (str, Field(pattern=BUNDLE_NAME, description="The bundle to ask.")),
        **{name: (model.model_fields[name].annotation, model.model_fields[name]) for name in ("queries", "k")},
    }
    compared = create_model("CompareRequest", __base__=CompareRequest, __doc__=CompareRequest.__doc__, **fields)
    compared.json_limits = model.json_limits
    return compared


def paused_request(settings: Settings) -> type[PausedRequest]:
    """Create PausedRequest with the limits of `settings`."""
    label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
    ids = Annotated[list[label], Field(max_length=settings.max_paused, fail_fast=True)]
    plain = PausedRequest.model_fields
    fields: dict[str, Any] = {
        name: (ids, Field(default_factory=list, description=plain[name].description)) for name in ("add", "remove")
    }
    model = create_model("PausedRequest", __base__=PausedRequest, __doc__=PausedRequest.__doc__, **fields)
    model.json_limits = DEFAULT_LIMITS._replace(values=2 * settings.max_paused + FIELDS)
    return model


def parse(model: type[Body], body: bytes) -> Body:
    """Parse a request's body as `model`. Raises Refusal."""
    check_structure(body, model.json_limits)
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error) from error
    if isinstance(request, PredictRequest) and len(body) > MAX_FILTER_BYTES:
        _check_filter_size(request)
    return request


def _check_filter_size(request: PredictRequest) -> None:
    if request.filter and (size := len(to_json(request.filter))) > MAX_FILTER_BYTES:
        message = f"filter has {size} bytes; the most is {MAX_FILTER_BYTES}. Leave out values or names."
        raise Refusal(422, "bad_filter", message)
