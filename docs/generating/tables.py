"""Generate the pages of settings and metrics from the service's classes."""

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from pydantic.fields import FieldInfo

from service.observe.metrics import Metrics
from service.settings import PREFIX, Settings

SETTINGS = """# Settings

Every limit of `diptych serve` is an environment variable with a default. An invalid value ends the start with a
message that names it. A variable `DIPTYCH_…` that is not a setting causes a warning. The options `--store`, `--host`
and `--port` override the environment.

| variable | default | description |
|---|---|---|
"""
OTHERS = """
Other commands read these variables:

| variable | description |
|---|---|
| `DIPTYCH_SIGNING_KEY` | secret key for `diptych bundles sign`; `diptych bundles keygen` prints one |
| `DIPTYCH_TRUSTED_KEYS` | as above, for `search`, `predict`, `bundles`, `export`, `doctor`; Python takes `trusted=` |
| `DIPTYCH_SANDBOX` | as above, for commands that verify a bundle in a child process |
| `DIPTYCH_CACHE` | folder for bundles from URLs and for serial numbers; default: the user's cache folder |
| `DIPTYCH_MILVUS_…` | as above, for commands that open or change bundles whose index is in Milvus |
| `OTEL_EXPORTER_OTLP_ENDPOINT` | destination of traces (`pip install 'diptych[otel]'`); no traces if unset |
"""
METRICS = """# Metrics

`GET /metrics` returns all metrics in Prometheus format. Stages of the engine are counted once per batch, `queue` and
`total` once per request. Histograms have the suffixes `_bucket`, `_sum` and `_count`.
See [alerts](../operate.md#alerts).

| metric | kind | labels | description |
|---|---|---|---|
"""


def settings_page() -> str:
    """Render the page of settings as Markdown."""
    rows = [_setting(name, field) for name, field in Settings.model_fields.items()]
    return SETTINGS + "\n".join(rows) + "\n" + OTHERS


def _setting(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else _written(field.default)
    return f"| `{PREFIX}{name.upper()}` | {default} | {_sentence(name, field)} |"


def _sentence(name: str, field: FieldInfo) -> str:
    return (field.description or name.replace("_", " ")).replace("|", "\\|").replace("<", "&lt;")


def _written(value: object) -> str:
    if value is None or value == "":
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def metrics_page() -> str:
    """Render the page of metrics as Markdown."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    names = {part._name: part._labelnames for part in vars(metrics).values() if isinstance(part, MetricWrapperBase)}
    rows = []
    for family in registry.collect():
        labels = names.get(family.name) or getattr(family, "_labelnames", ())
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(
            f"| `{name}` | {family.type} | {', '.join(f'`{one}`' for one in labels) or '–'} | {family.documentation} |"
        )
    return METRICS + "\n".join(sorted(rows)) + "\n"
