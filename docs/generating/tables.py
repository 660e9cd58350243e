"""The pages of settings and metrics: a table each, from the classes that the service reads and counts with."""

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from pydantic.fields import FieldInfo

from service.observe.metrics import Metrics
from service.settings import PREFIX, Settings

SETTINGS = """# Settings

Every limit of `diptych serve` is an environment variable. What is not set has the default that stands here; a value
that cannot be used ends the start with one sentence that names it, and a variable called `DIPTYCH_…` that is no setting
is named in a warning. `--store`, `--host` and `--port` come before the environment.

| variable | default | what it is |
|---|---|---|
"""
OTHERS = """
Other commands read these:

| variable | what it is |
|---|---|
| `DIPTYCH_SIGNING_KEY` | the secret key that `diptych bundles sign` signs with; `diptych bundles keygen` prints one |
| `DIPTYCH_TRUSTED_KEYS` | as above, for `search`, `predict`, `bundles`, `export`, `doctor`; Python takes `trusted=` |
| `DIPTYCH_SANDBOX` | as above, for commands that verify a bundle in a child process |
| `DIPTYCH_CACHE` | folder for bundles from URLs and for serial numbers; the user's cache folder when unset |
| `OTEL_EXPORTER_OTLP_ENDPOINT` | where traces go (`pip install 'diptych[otel]'`); none are made when unset |
"""
METRICS = """# Metrics

`GET /metrics` speaks Prometheus. Stages of the engine are counted once a batch, `queue` and `total` once a
request. Histograms come as `_bucket`, `_sum` and `_count`. What to alert on is in
[operating](../operate.md#alerts).

| metric | kind | labels | what it is |
|---|---|---|---|
"""


def settings_page() -> str:
    """The Markdown of the settings' page."""
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
    """The Markdown of the metrics' page."""
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
