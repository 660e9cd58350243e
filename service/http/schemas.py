"""Bodies of requests and responses, each with an example. OpenAPI shows the limits of the settings."""

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model
from pydantic_core import to_json

from retrieval.bundle.memory_labels import MAX_MEMORY_WEIGHT
from retrieval.search.arguments import MAX_SUPPORTING
from retrieval.search.filters import MAX_ATTRIBUTES, MAX_VALUES
from service.engine.protocol import Query
from service.errors import Refusal, refusal
from service.http.body_limits import DEFAULT_LIMITS, JsonLimits, check_structure
from service.settings import Settings

Value = str | int | float | bool
MAX_FILTER_BYTES = 65_536  # of JSON; the filter is sent to the engine with every slice of a request
ESCAPES_PER_CHAR = 2  # a pair of surrogates
MAX_FIELDS = 64  # names in a body outside its filter; enough to report unknown fields by name
NOT_BLANK = r"[^\s\x1c-\x1f]"  # white space as Python and the retriever define it
HIT = {
    "id": "shopping-cart",
    "text": "shopping cart",
    "attributes": {"market": "en"},
    "score": 0.8125,
    "dual_encoder": 0.4375,
    "classifier": 0.3125,
    "memory": 0.0625,
}
SUPPORTING = {"query": "buy online", "share": 0.0625}
ATTRIBUTE = {"name": "market", "values": ["US", "CA"], "more": False}
ABOUT = {
    "bundle": "keywords-1",
    "labels": 16480,
    "weight": 0.5,
    "fixed_weight": False,
    "memory_weight": 0.2,
    "attributes": [ATTRIBUTE],
    "max_k": 100,
    "max_query_chars": 512,
    "administration": True,
}
READY = {"ready": True, "bundle": "keywords-1", "detail": "serving"}


def example_config(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [example]})


class RequestBody(BaseModel):
    """JSON body of a request, with limits that are checked before parsing."""

    json_limits: ClassVar[JsonLimits] = DEFAULT_LIMITS


Body = TypeVar("Body", bound=RequestBody)


class PredictRequest(RequestBody):
    """Query texts and options."""

    # without a filter, because any bundle should answer the example
    model_config = example_config({"queries": ["cheap running shoes", "credit card"], "k": 10, "min_score": 0.2})

    queries: list[str] = Field(description="Query texts. The response has one result per text, in the same order.")
    k: int = Field(10, description="Hits per text.")
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Weight of the classifier in the score; default: the weight of the bundle."
    )
    filter: (
        Annotated[
            # fail_fast: report only the first bad value
            dict[str, Annotated[list[Value], Field(min_length=1, max_length=MAX_VALUES, fail_fast=True)]],
            Field(max_length=MAX_ATTRIBUTES),
        ]
        | None
    ) = Field(None, description="Attributes with their allowed values. A label must match all attributes.")
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="Minimum score; labels with a lower score are left out."
    )
    memory_weight: Annotated[float, Field(ge=0, le=MAX_MEMORY_WEIGHT, allow_inf_nan=False)] | None = Field(
        None, description="Weight of the votes of the nearest training queries; default: the weight of the bundle."
    )
    supporting: Annotated[int, Field(ge=0, le=MAX_SUPPORTING)] = Field(
        0, description="Training queries that each hit lists because they voted for it."
    )

    @property
    def query(self) -> Query:
        """The query for the engine."""
        return Query.create(
            self.queries, self.k, self.weight, self.filter, self.min_score, self.memory_weight, self.supporting
        )


class SupportingQuery(BaseModel):
    """A training query that has the label of a hit, and its share of the hit's `memory`."""

    model_config = example_config(SUPPORTING)

    query: str
    share: float


class Hit(BaseModel):
    """One label. `score` is the sum of `dual_encoder`, `classifier` and `memory`, the votes of training queries.

    `supporting` is there if the request asks for it.
    """

    model_config = example_config(HIT)

    id: str
    text: str
    attributes: dict[str, Any]
    score: float
    dual_encoder: float
    classifier: float
    memory: float
    supporting: list[SupportingQuery] | None = None


class Result(BaseModel):
    """One text and its hits, best first."""

    model_config = example_config({"query": "cart", "hits": [HIT]})

    query: str
    hits: list[Hit]


class PredictResponse(BaseModel):
    """The hits of every text, all from one bundle."""

    model_config = example_config({"bundle": "keywords-1", "results": [{"query": "cart", "hits": [HIT]}]})

    bundle: str
    results: list[Result]


class Readiness(BaseModel):
    """Whether requests are answered, from which bundle, and notes for the operator."""

    model_config = example_config(READY)

    ready: bool
    bundle: str | None
    detail: str


class Attribute(BaseModel):
    """One attribute for filters, its most frequent values, and whether there are more values."""

    model_config = example_config(ATTRIBUTE)

    name: str
    values: list[Value]
    more: bool


class About(BaseModel):
    """The served bundle, its default weights, the attributes for filters, and the limits of a request.

    `fixed_weight` is true for a bundle with one head only, which accepts no other weight. `memory_weight` is null for a
    bundle without a query memory.
    """

    model_config = example_config(ABOUT)

    bundle: str
    labels: int
    weight: float
    fixed_weight: bool
    memory_weight: float | None
    attributes: list[Attribute]
    max_k: int
    max_query_chars: int
    administration: bool


class Error(BaseModel):
    """A code for programs and a message of one sentence."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The format of every error response."""

    model_config = example_config({"error": {"code": "out_of_range", "message": "k is 1000; the maximum is 100."}})

    error: Error


def predict_request(settings: Settings) -> type[PredictRequest]:
    """Create PredictRequest with the limits of `settings`, which are checked while the JSON is parsed."""
    text = Annotated[str, StringConstraints(min_length=1, max_length=settings.max_query_chars, pattern=NOT_BLANK)]
    # fail_fast: report only the first of a thousand bad texts
    queries = Annotated[list[text], Field(min_length=1, max_length=settings.max_queries, fail_fast=True)]
    k = Annotated[int, Field(ge=1, le=settings.max_k)]
    base = PredictRequest.model_fields
    fields: dict[str, Any] = {
        "queries": (queries, Field(description=base["queries"].description)),
        "k": (k, Field(min(base["k"].default, settings.max_k), description=base["k"].description)),
    }
    model = create_model("PredictRequest", __base__=PredictRequest, __doc__=PredictRequest.__doc__, **fields)
    names, values = MAX_FIELDS + MAX_ATTRIBUTES, settings.max_queries + MAX_ATTRIBUTES * MAX_VALUES + MAX_FIELDS
    escapes = ESCAPES_PER_CHAR * settings.max_queries * settings.max_query_chars
    model.json_limits = JsonLimits(names, names, values, max(escapes, DEFAULT_LIMITS.escapes))
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
        message = f"filter has {size} bytes; the maximum is {MAX_FILTER_BYTES}. Leave out values or names."
        raise Refusal(422, "bad_filter", message)
