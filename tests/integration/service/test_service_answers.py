"""Answers of `diptych serve`: equal to those of the retriever, or a refusal of one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieval import Retriever, open_bundle
from retrieval.results import hit_record
from tests.support.bundles import VOTES, WORDS, make_store
from tests.support.service import ADMIN_KEY, Client, Reply, Service, figures, serving

QUERIES = ["cheap running shoes", "red winter city", "light rain", 'unknown "words" \\ 北京 🛒', *WORDS]


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("answers") / "store", "first", "second", memory=VOTES).path


@pytest.fixture(scope="module")
def service(words_store: Path) -> Iterator[Service]:
    with serving(words_store, max_queries=40, max_query_chars=200, max_k=50, max_body_bytes=20_000) as service:
        yield service


@pytest.fixture(scope="module")
def retriever(words_store: Path) -> Iterator[Retriever]:
    with open_bundle(words_store) as retriever:
        yield retriever


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as client:
        yield client


def expected(retriever: Retriever, queries: list[str], k: int, weight: float | None) -> list[dict[str, Any]]:
    found = retriever.search(queries, k, weight=weight)
    return [
        {"query": query, "hits": [hit_record(hit) for hit in hits]} for query, hits in zip(queries, found, strict=True)
    ]


@pytest.mark.parametrize("weight", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_single_queries_equal_the_retriever(client: Client, retriever: Retriever, k: int, weight: float | None) -> None:
    """HTTP would give other labels, attributes, scores or contributions than the library."""
    for query in QUERIES:
        reply = client.post("/predict", {"queries": [query], "k": k, "weight": weight})
        assert reply.status == 200
        assert reply.json() == {"bundle": "first", "results": expected(retriever, [query], k, weight)}


@pytest.mark.parametrize("options", [{"memory_weight": 0.0}, {"memory_weight": 2.5}, {"supporting": 3}])
def test_votes_equal_the_retriever(client: Client, retriever: Retriever, options: dict[str, Any]) -> None:
    """HTTP would ignore the weight of the votes, or name other training queries than the library."""
    results = client.post("/predict", {"queries": QUERIES, "k": 5, **options}).json()["results"]
    found = retriever.search(QUERIES, 5, **options)
    records = [[hit_record(hit, "supporting" in options) for hit in hits] for hits in found]
    assert [result["hits"] for result in results] == json.loads(json.dumps(records))
    assert any(hit["memory"] for result in results for hit in result["hits"]) == (options != {"memory_weight": 0.0})


def test_about_has_the_weight_of_the_votes(client: Client) -> None:
    """The console would start with another weight than the bundle's."""
    assert client.get("/about").json()["memory_weight"] == VOTES.weight


def test_many_queries_keep_their_order(client: Client, retriever: Retriever) -> None:
    """A request that is split into slices would return its texts in another order, twice or not at all."""
    queries = [f"{WORDS[number % 12]} {WORDS[number % 7]}" for number in range(40)]
    results = client.post("/predict", {"queries": queries, "k": 3}).json()["results"]
    wanted = expected(retriever, queries, 3, None)
    assert [one["query"] for one in results] == queries
    assert [[hit["id"] for hit in one["hits"]] for one in results] == [
        [hit["id"] for hit in one["hits"]] for one in wanted
    ]
    for one, other in zip(results, wanted, strict=True):
        for hit, same in zip(one["hits"], other["hits"], strict=True):
            assert hit["score"] == pytest.approx(same["score"], abs=1e-5)


def test_an_answer_names_its_bundle_and_its_stages(client: Client) -> None:
    """Operators could not see which bundle answered, or which stage took the time."""
    headers = client.post("/predict", {"queries": ["red"]}).headers
    assert headers["x-bundle"] == "first"
    assert headers["content-type"] == "application/json"
    stages = [stage.split(";")[0].strip() for stage in headers["server-timing"].split(",")]
    assert stages == ["queue", "tokenize", "encode", "search", "serialize", "total"]


def test_filters_and_least_scores_equal_the_retriever(client: Client, retriever: Retriever) -> None:
    """A market would be shown another's labels, or requests in one batch would get each other's filters."""
    for wanted, least in (({"market": ["CA"]}, None), ({"market": ["US"], "year": [2020, 2021]}, 0.3), ({}, 0.9)):
        for query in QUERIES:
            body = {"queries": [query], "k": 20, "filter": wanted, "min_score": least}
            found = retriever.search([query], 20, filter=wanted, min_score=least)
            assert client.post("/predict", body).json()["results"][0]["hits"] == [hit_record(hit) for hit in found[0]]
    nothing = client.post("/predict", {"queries": ["red"], "filter": {"market": ["ZZ"]}})
    assert nothing.json()["results"] == [{"query": "red", "hits": []}]


def test_a_filter_on_what_labels_do_not_have_is_refused(client: Client) -> None:
    """A misspelt attribute would look like an attribute without matching labels."""
    for filter_, message in (
        ({"country": ["US"]}, "It has: market, year"),
        ({"year": ["2020"]}, "'year' is int64; '2020' is not"),
    ):
        reply = client.post("/predict", {"queries": ["red"], "filter": filter_})
        assert reply.status == 422
        assert message in reply.json()["error"]["message"]


DEEP = b'{"queries":' + b"[" * 5000 + b"]" * 5000 + b"}"
BAD_BODIES = [
    (b"", 400, "not_json"),
    (b"cheap shoes", 400, "not_json"),
    (b'{"queries": ["a"]', 400, "not_json"),
    (b'\xff\xfe{"queries": ["a"]}', 400, "not_json"),
    (b'{"queries": ["\\ud800"]}', 400, "not_json"),
    (DEEP, 422, "too_many_values"),
    (b"[]", 422, "wrong_type"),
    (b"null", 422, "wrong_type"),
    (b"{}", 422, "missing_field"),
    (b'{"queries": "cheap shoes"}', 422, "wrong_type"),
    (b'{"queries": [1]}', 422, "wrong_type"),
    (b'{"queries": [null]}', 422, "wrong_type"),
    (b'{"queries": []}', 422, "no_queries"),
    (b'{"queries": [""]}', 422, "empty_text"),
    (b'{"queries": ["a", " \\t\\u00a0"]}', 422, "blank_text"),
    (b'{"queries": ["\\u001c"]}', 422, "blank_text"),
    (json.dumps({"queries": ["x" * 201]}).encode(), 422, "text_too_long"),
    (json.dumps({"queries": ["x"] * 41}).encode(), 422, "too_many_queries"),
    (b'{"queries": ["a"], "k": 0}', 422, "out_of_range"),
    (b'{"queries": ["a"], "k": -1}', 422, "out_of_range"),
    (b'{"queries": ["a"], "k": 51}', 422, "out_of_range"),
    (b'{"queries": ["a"], "k": 1' + b"0" * 30 + b"}", 422, "out_of_range"),
    (b'{"queries": ["a"], "k": 2.5}', 422, "wrong_type"),
    (b'{"queries": ["a"], "k": "10"}', 422, "wrong_type"),
    (b'{"queries": ["a"], "k": true}', 422, "wrong_type"),
    (b'{"queries": ["a"], "k": null}', 422, "wrong_type"),
    (b'{"queries": ["a"], "filter": []}', 422, "bad_filter"),
    (b'{"queries": ["a"], "filter": {"market": "US"}}', 422, "bad_filter"),
    (b'{"queries": ["a"], "filter": {"market": []}}', 422, "bad_filter"),
    (b'{"queries": ["a"], "filter": {"market": [null]}}', 422, "bad_filter"),
    (b'{"queries": ["a"], "filter": {"market": [{"a": 1}]}}', 422, "bad_filter"),
    (json.dumps({"queries": ["a"], "filter": {"market": ["US"] * 1001}}).encode(), 422, "bad_filter"),
    (json.dumps({"queries": ["a"], "filter": {f"m{n}": [1] for n in range(17)}}).encode(), 422, "bad_filter"),
    (b'{"queries": ["a"], "min_score": NaN}', 422, "out_of_range"),
    (b'{"queries": ["a"], "min_score": "1"}', 422, "wrong_type"),
    (b'{"queries": ["a"], "weight": NaN}', 422, "out_of_range"),
    (b'{"queries": ["a"], "weight": Infinity}', 422, "out_of_range"),
    (b'{"queries": ["a"], "weight": 1.5}', 422, "out_of_range"),
    (b'{"queries": ["a"], "weight": -0.1}', 422, "out_of_range"),
    (b'{"queries": ["a"], "weight": "half"}', 422, "wrong_type"),
    (b'{"queries": ["a"], "memory_weight": -0.1}', 422, "out_of_range"),
    (b'{"queries": ["a"], "memory_weight": 11}', 422, "out_of_range"),
    (b'{"queries": ["a"], "memory_weight": "1"}', 422, "wrong_type"),
    (b'{"queries": ["a"], "supporting": 11}', 422, "out_of_range"),
    (b'{"queries": ["a"], "supporting": true}', 422, "wrong_type"),
    (b'{"queries": ["a"], "top_k": 5}', 422, "unknown_field"),
    (json.dumps({"queries": ["a"], "x" * 5000: 1}).encode(), 422, "unknown_field"),
    (json.dumps({"queries": ["x" * 30_000]}).encode(), 413, "body_too_large"),
]


def assert_refused(reply: Any, status: int, code: str) -> None:
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (status, code)
    assert set(reply.json()) == {"error"}
    assert set(error) == {"code", "message"}
    assert error["message"].endswith(".")
    assert len(error["message"]) < 250
    assert not any(leak in error["message"] for leak in ("Traceback", "/tmp", ".py", "pydantic"))


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES)
def test_a_bad_body_is_refused_in_one_sentence(client: Client, body: bytes, status: int, code: str) -> None:
    """A caller's mistake would look like the service's, expose internals, or be answered as if it were valid."""
    assert_refused(client.post("/predict", body), status, code)
    assert client.post("/predict", {"queries": ["red"]}).status == 200


def test_a_refusal_names_field_value_and_limit(client: Client) -> None:
    """A caller could not see which of many texts is invalid, or what would be valid."""
    message = client.post("/predict", {"queries": ["a", "b", ""]}).json()["error"]["message"]
    assert message == "queries[2] is empty; give it text or leave it out."
    assert "51; the maximum is 50" in client.post("/predict", {"queries": ["a"], "k": 51}).json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/predict/", 404, "not_found"),
        ("GET", "/predict", 405, "wrong_method"),
        ("DELETE", "/livez", 405, "wrong_method"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_a_wrong_path_or_method_has_the_same_shape(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    """Clients would need two parsers for errors; /docs would load scripts from a foreign server."""
    assert_refused(client.send(method, path, b""), status, code)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/predict", "OPTIONS, POST"),
        ("/admin/paused", "GET, HEAD, OPTIONS, POST"),
        ("/livez", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_refused_with_the_right_ones(client: Client, path: str, methods: str) -> None:
    """A path of several routes would name the methods of its first alone."""
    reply = client.send("PATCH", path, b"")
    assert (reply.status, reply.headers["allow"]) == (405, methods)


def test_a_streamed_body_is_bounded_too(service: Service) -> None:
    """A body without a declared length would be read into memory completely."""
    chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    with service.client() as client:
        client.begin_chunked("/predict", [chunk] * 3)
        assert_refused(client.finish(), 413, "body_too_large")


@pytest.mark.parametrize("key", ["", "wrong", ADMIN_KEY + "x", "schlüssel"])
def test_administration_needs_the_key(service: Service, key: str) -> None:
    """Any client that reaches the port could change the served bundle."""
    assert_refused(service.ask("POST", "/admin/activate", {"bundle": "second"}, X_Admin_Key=key), 401, "wrong_key")
    assert_refused(service.ask("POST", "/admin/activate", {"bundle": "second"}), 401, "wrong_key")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "missing_field"),
        ({"bundle": "../../etc"}, 422, "bad_name"),
        ({"bundle": "second", "force": True}, 422, "unknown_field"),
        ({"bundle": "absent"}, 404, "not_activated"),
    ],
)
def test_a_bad_activation_changes_nothing(service: Service, body: Any, status: int, code: str) -> None:
    """A misspelt bundle name would end the served bundle, or reach files outside the store."""
    assert_refused(service.ask("POST", "/admin/activate", body, X_Admin_Key=ADMIN_KEY), status, code)
    assert service.ask("POST", "/predict", {"queries": ["red"]}).headers["x-bundle"] == "first"


def test_probes_and_index(client: Client) -> None:
    """Orchestrators could not distinguish alive from ready, and new users would find no endpoint."""
    assert client.get("/livez").json() == {"live": True}
    ready = client.get("/readyz")
    assert (ready.status, ready.json()["ready"], ready.json()["bundle"]) == (200, True, "first")
    assert client.get("/").json()["predict"] == "POST /predict"


def test_metrics_count_what_happened(client: Client) -> None:
    """Prometheus would miss requests, or count each unknown path as a route."""

    def figures() -> dict[str, float]:
        lines = client.get("/metrics").body.decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = figures()
    client.post("/predict", {"queries": ["red", "blue"]})
    client.post("/predict", b"")
    client.get("/some/path")
    after = figures()
    for name, more in {
        'diptych_requests_total{code="200",route="/predict"}': 1,
        'diptych_requests_total{code="400",route="/predict"}': 1,
        'diptych_requests_total{code="404",route="other"}': 1,
        'diptych_stage_seconds_count{stage="total"}': 1,
        'diptych_stage_seconds_count{stage="encode"}': 1,
        "diptych_batch_queries_sum": 2,
    }.items():
        assert after[name] - before.get(name, 0) == more, name
    assert after['diptych_generation_info{bundle="first",generation="1"}'] == 1
    assert after["diptych_waiting_queries"] == after["diptych_unfinished_requests"] == 0
    assert 'diptych_stage_seconds_bucket{le="0.0001",stage="search"}' in after


def test_openapi_examples_work_and_every_answer_is_documented(client: Client) -> None:
    """A client generated from the document would send requests that are refused, or get undocumented answers."""
    document = client.get("/openapi.json").json()
    predict = document["paths"]["/predict"]["post"]
    schema = predict["requestBody"]["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    for example in schema["examples"]:
        assert client.post("/predict", example).status == 200
    assert {str(status) for _, status, _ in BAD_BODIES} <= predict["responses"].keys()
    models = document["components"]["schemas"]
    assert models["PredictResponse"]["examples"][0]["results"][0]["hits"]
    assert models["ErrorResponse"]["examples"]
    assert {"/livez", "/readyz", "/metrics", "/admin/activate"} <= document["paths"].keys()


def test_a_cached_answer_is_used_only_while_it_is_valid(tmp_path: Path) -> None:
    """A cache that outlives a switch or a pause would return answers of another bundle, or a paused label."""
    store = make_store(tmp_path / "store", "one", "two")
    asked = {"queries": ["red winter city", "light rain"], "k": 7}
    with serving(store.path, cache_bytes=1_000_000) as service:

        def ask(**more: Any) -> Reply:
            reply = service.ask("POST", "/predict", asked | more)
            assert reply.status == 200
            return reply

        def hits() -> float:
            return figures(service).get('diptych_cache_requests_total{result="hit"}', 0.0)

        first, again = ask(), ask()
        assert (first.body, hits()) == (again.body, 1)
        assert (again.headers["x-bundle"], again.headers["server-timing"][:5]) == ("one", "total")
        others = (
            {"k": 6},
            {"weight": 0.25},
            {"supporting": 1},
            {"memory_weight": 0},
            {"min_score": 0.1},
            {"filter": {"market": ["US"]}},
            {"queries": ["red"]},
        )
        for other in others:
            ask(**other)
        assert hits() == 1
        shown = first.json()["results"][0]["hits"][0]["id"]
        service.ask("POST", "/admin/paused", {"add": [shown]}, X_Admin_Key=ADMIN_KEY)
        assert shown.encode() not in ask().body
        service.ask("POST", "/admin/paused", {"remove": [shown]}, X_Admin_Key=ADMIN_KEY)
        assert ask().body == first.body
        service.activate("two")
        switched = ask()
        assert (switched.json()["bundle"], switched.headers["x-bundle"], hits()) == ("two", "two", 1)
        assert (ask().body, hits()) == (switched.body, 2)


def test_the_cache_is_bounded_in_bytes(words_store: Path) -> None:
    """The number of distinct queries is unbounded: the service would grow until the container is killed."""
    with serving(words_store, cache_bytes=100_000) as service:
        for number in range(400):
            service.ask("POST", "/predict", {"queries": [f"red shoes {number}"], "k": 3})
        found = figures(service)
        assert 50_000 < found["diptych_cache_bytes"] <= 100_000
        assert found['diptych_cache_requests_total{result="miss"}'] == 400
