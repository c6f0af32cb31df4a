"""Manifests against the schemas of the Dask operator and of Kubernetes, overlays applied; no API server is needed."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate")
jsonpatch = pytest.importorskip("jsonpatch")
jsonschema = pytest.importorskip("jsonschema")
dask_kubernetes = pytest.importorskip("dask_kubernetes")

VERSION = "1.30"
DASK_KINDS = ("DaskCluster", "DaskAutoscaler", "DaskWorkerGroup")


def strict(schema):
    """A CRD schema that refuses what the API server would drop without a word."""
    schema = copy.deepcopy(schema)

    def visit(node):
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            if node.get("x-kubernetes-int-or-string"):
                node.pop("type", None)
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(schema)
    schema["properties"] |= {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    return schema


@pytest.fixture(scope="module")
def crds():
    """Schemas of the operator's resources, by kind, out of its wheel."""
    folder = Path(dask_kubernetes.__file__).parent / "operator/deployment/helm/dask-kubernetes-operator/crds"
    found = {}
    for file in folder.glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        found[crd["spec"]["names"]["kind"]] = strict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    assert set(DASK_KINDS) <= set(found)
    return found


def check(document: dict, crds: dict) -> None:
    kind = document["kind"]
    if kind == "Kustomization":
        return
    if kind not in DASK_KINDS:
        kubernetes_validate.validate(document, VERSION, strict=True)
        return
    jsonschema.validate(document, crds[kind])
    parts = [document["spec"].get(p, {}).get("spec") for p in ("worker", "scheduler")]
    for pod in filter(None, parts):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
        kubernetes_validate.validate(whole, VERSION, strict=True)


def resources(folder: Path) -> list[dict]:
    """What ``kubectl kustomize`` would make of a folder: resources with the patches of the overlays applied."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[dict] = []
    for entry in kustomization["resources"]:
        path = (folder / entry).resolve()
        found += resources(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for entry in kustomization.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in entry["files"]}
        same = [d for d in found if d["kind"] == "ConfigMap" and d["metadata"]["name"] == entry["name"]]
        assert bool(same) == (entry.get("behavior") == "merge")
        if same:
            assert set(data) <= set(same[0]["data"])
            same[0]["data"] |= data
        else:
            found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data})
    for patch in kustomization.get("patches", []):
        target = patch["target"]
        match = [d for d in found if d["kind"] == target["kind"] and d["metadata"]["name"] == target["name"]]
        assert len(match) == 1, target
        place = found.index(match[0])
        found[place] = jsonpatch.apply_patch(match[0], yaml.safe_load(patch["patch"]))
    return found


@pytest.mark.parametrize("name", ["base", "overlays/cpu", "overlays/gpu", "overlays/s3"])
def test_manifests_are_valid(deploy, crds, name):
    found = resources(deploy / "kubernetes" / name)
    kinds = [d["kind"] for d in found]
    assert {"DaskCluster", "DaskAutoscaler", "NetworkPolicy", "Job", "ConfigMap"} <= set(kinds)
    for document in found:
        check(document, crds)


def test_the_check_can_fail(deploy, crds):
    cluster = next(d for d in resources(deploy / "kubernetes/base") if d["kind"] == "DaskCluster")
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["worker"]["replica"] = 3
    with pytest.raises(jsonschema.ValidationError):
        check(wrong, crds)
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["worker"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(wrong, crds)


def test_nothing_is_exposed_or_privileged(deploy):
    """ClusterIP, TLS for every role, no API token, no root, no secret in the files."""
    for name in ("base", "overlays/gpu", "overlays/s3"):
        for document in resources(deploy / "kubernetes" / name):
            text = yaml.safe_dump(document)
            assert "PRIVATE KEY" not in text and "AWS_SECRET" not in text
            if document["kind"] == "DaskCluster":
                assert document["spec"]["scheduler"]["service"]["type"] == "ClusterIP"
            for pod in pods(document):
                assert pod["automountServiceAccountToken"] is False
                assert pod["securityContext"]["runAsNonRoot"] is True
                for container in pod["containers"]:
                    env = {e["name"]: e.get("value") for e in container["env"]}
                    assert env["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "true"
                    assert container["securityContext"]["allowPrivilegeEscalation"] is False


def pods(document: dict) -> list[dict]:
    spec = document.get("spec", {})
    if document["kind"] == "Job":
        return [spec["template"]["spec"]]
    if document["kind"] in DASK_KINDS:
        return [spec[p]["spec"] for p in ("worker", "scheduler") if "spec" in spec.get(p, {})]
    return []


def test_the_job_can_read_its_pipeline_and_cluster(deploy):
    from chemscale.runtime.settings import from_mapping

    base = deploy / "kubernetes/base"
    table = tomllib.loads((base / "cluster.toml").read_text())["cluster"]
    settings = from_mapping(table)
    assert settings.address == "tls://chemscale-scheduler.chemscale.svc:8786"
    for file in (base / "pipeline.toml", deploy / "kubernetes/overlays/s3/pipeline.toml"):
        from chemscale.cli import command
        from chemscale.pipeline.file import load

        assert [s.name for s in load(file, command()).stages] == ["ingest", "fit", "evaluate", "report"]


def test_spec_made_for_connect_is_valid(crds):
    from chemscale.runtime.backends.kubernetes import kubernetes_spec
    from chemscale.runtime.settings import KubernetesSettings

    settings = KubernetesSettings(kind="kubernetes", workers=3, memory="8 GiB", environment={"A": "b"})
    spec = kubernetes_spec(settings)
    check(spec, crds)
    container = spec["spec"]["worker"]["spec"]["containers"][0]
    assert "--dashboard" not in container["args"]
    assert container["resources"]["limits"]["memory"] == "8Gi"
