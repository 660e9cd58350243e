"""The Helm chart, rendered by Helm's engine and checked with Kubernetes' schemas."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.containers.test_compose import CHART

URL: dict[str, Any] = {"store": {"url": "s3://bucket/store"}}
CLAIM: dict[str, Any] = {
    "store": {"existingClaim": "bundles"},
    "settings": {"DIPTYCH_MAX_K": "50"},
    "envFrom": [{"secretRef": {"name": "keys"}}],
    "autoscaling": {"enabled": True},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}]},
    "serviceMonitor": {"enabled": True},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}


def test_the_charts_values_fit_its_schema_and_its_templates() -> None:
    """`helm install` would refuse the chart's own defaults, or a template would read a value that does not exist."""
    values, schema = (
        yaml.safe_load((CHART / "values.yaml").read_text()),
        json.loads((CHART / "values.schema.json").read_text()),
    )
    assert set(values) | {"global"} == set(schema["properties"])
    for name, part in schema["properties"].items():
        if part.get("additionalProperties") is False:
            assert set(values[name]) == set(part["properties"]), name
    for template in (CHART / "templates").iterdir():
        text = template.read_text()
        opened = re.findall(r"\{\{-? (?:if|with|range|define)\b", text)
        assert len(opened) == len(re.findall(r"\{\{-? end\b", text)), template.name
        for path in re.findall(r"\.Values((?:\.\w+)+)", text):
            found: Any = values
            for word in path.strip(".").split("."):
                assert word in found, f"{template.name}: .Values{path}"
                found = found[word]


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Render the chart with Helm for a release named diptych, check it, and return its objects by kind."""
    helm = pytest.importorskip("helm_python", reason="Helm's own engine is not installed (pip install helm-python-sdk)")
    chart = helm.Chart.load(str(CHART))
    chart.validate_schema(values)
    assert not helm.lint(str(CHART), values, strict=True)["errors"]
    made = (yaml.safe_load_all(text) for text in chart.render(values, name="diptych").values())
    return {one["kind"]: one for texts in made for one in texts if one}


@pytest.mark.parametrize("values", [URL, CLAIM, URL | {"networkPolicy": {"enabled": True}}, URL | {"cacheClaim": "c"}])
def test_kubernetes_accepts_what_the_chart_makes(values: dict[str, Any]) -> None:
    """`helm install` would fail, or Kubernetes would ignore a misspelt field and run without what it says."""
    made = rendered(values)
    kubernetes = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for kind in set(made) - {"ServiceMonitor"}:  # the Prometheus operator's, not Kubernetes' own
        kubernetes.validate(made[kind], kubernetes.latest_version(), strict=True)
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= set(made)


def test_a_release_named_diptych_starts_and_is_stopped_in_time() -> None:
    """Kubernetes' variables for a service called diptych would be read as settings; pods would be killed draining."""
    pod = rendered(URL)["Deployment"]["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False
    set_by_chart = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    waits = float(set_by_chart["DIPTYCH_GRACE_SECONDS"]) + float(set_by_chart["DIPTYCH_DRAIN_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] > waits


def test_the_address_of_milvus_reaches_the_service() -> None:
    """A bundle whose index is in Milvus could not be served on Kubernetes."""
    pods = [
        rendered(values)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]
        for values in (URL | {"milvus": {"url": "http://milvus:19530", "prefix": "shop"}}, URL)
    ]
    with_milvus, without = ({one["name"]: one["value"] for one in variables} for variables in pods)
    assert with_milvus["DIPTYCH_MILVUS_URL"] == "http://milvus:19530"
    assert with_milvus["DIPTYCH_MILVUS_PREFIX"] == "shop"
    assert "DIPTYCH_MILVUS_URL" not in without


def test_the_cache_folder_is_on_a_claim_if_one_is_set() -> None:
    """The serial numbers of signed bundles would be lost with each pod, and an older bundle would be accepted again."""
    pods = [rendered(values)["Deployment"]["spec"]["template"]["spec"] for values in (URL | {"cacheClaim": "c"}, URL)]
    claimed, default = [next(one for one in pod["volumes"] if one["name"] == "cache") for pod in pods]
    assert claimed == {"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}
    assert "emptyDir" in default


def test_a_chart_without_a_store_is_refused_in_a_sentence() -> None:
    """Pods would restart forever without a store."""
    with pytest.raises(Exception, match=r"store\.url or store\.existingClaim must say where the bundles are\."):
        rendered({})
