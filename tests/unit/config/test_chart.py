"""The chart lints, renders to valid objects over its options, and refuses wrong values."""

import json
import re
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

import worker
from worker import settings

CHART = Path(__file__).parents[3] / "helm" / "copysieve"
KUBERNETES = ("1.27", kubernetes_validate.latest_version())
OF_OPERATORS = {"PodMonitor", "PrometheusRule", "ScaledObject"}

ALL_ON: dict[str, Any] = {
    "image": {"repository": "registry.example/copysieve", "digest": f"sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "config": {
        "kafka": {"bootstrap_servers": ["a:9092", "b:9092"], "topics": {"uploads": "pictures"}},
        "decode": {"workers": 3},
        "shutdown": {"deadline_seconds": 90.5},
        "http": {"port": 9999},
    },
    "existingSecret": "secrets",
    "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
    "modelVolume": {"persistentVolumeClaim": {"claimName": "models"}},
    "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
    "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
    "gpu": {"count": 2, "resource": "amd.com/gpu"},
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podLabels": {"team": "safety"},
    "podAnnotations": {"note": "yes"},
    "serviceAccount": {"annotations": {"role": "reader"}},
    "podDisruptionBudget": {"maxUnavailable": "25%"},
    "networkPolicy": {
        "enabled": True,
        "egress": [{"ports": [{"port": 9092}, {"port": 6379}]}],
        "metricsFrom": [{"namespaceSelector": {}}],
    },
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "autoscaling": {"enabled": True, "authentication": "kafka"},
}
ON_THE_CPU: dict[str, Any] = {
    "gpu": {"count": 0},
    "resources": {"requests": {"cpu": None}},
    "serviceAccount": {"create": False},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
}
VALUES = {"defaults": {}, "all on": ALL_ON, "on the cpu": ON_THE_CPU}


def render(values: dict[str, Any], name: str = "demo") -> dict[str, dict[str, Any]]:
    """Objects by kind: the chart has one of each."""
    with helm.Chart.load(str(CHART)) as chart:
        manifests = chart.render(values, name=name, namespace="prod")
    documents = [
        document
        for path, text in manifests.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


def pod(values: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = render(values)["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_it_lints(values: dict[str, Any]) -> None:
    report = helm.lint(str(CHART), values, strict=True)
    assert report["errors"] == []
    assert all("icon" in message["error"] for message in report["messages"])


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_objects_are_valid(values: dict[str, Any], version: str) -> None:
    for kind, document in render(values).items():
        if kind not in OF_OPERATORS:
            kubernetes_validate.validate(document, version, strict=True)


def test_options_add_their_objects() -> None:
    default = {
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ServiceAccount",
    }
    assert set(render({})) == default
    assert set(render(ALL_ON)) == default | OF_OPERATORS
    assert set(render(ON_THE_CPU)) == {"ConfigMap", "Deployment"}


def test_the_version_is_the_workers() -> None:
    with helm.Chart.load(str(CHART)) as chart:
        assert chart.values["image"]["tag"] == ""
    assert pod({})["containers"][0]["image"] == f"copysieve:{worker.__version__}"


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_worker_takes_its_settings(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text(render(values)["ConfigMap"]["data"]["worker.yaml"])
    loaded = settings.load(file)
    spec = pod(values)
    container = spec["containers"][0]
    assert spec["terminationGracePeriodSeconds"] >= loaded.shutdown.deadline_seconds + 10
    assert container["ports"] == [{"name": "http", "containerPort": loaded.http.port}]
    given = {name["name"] for name in container["env"] if name["name"].startswith(settings.PREFIX)}
    assert given <= {
        "COPYSIEVE_REPLICA__NAME",
        "COPYSIEVE_DECODE__WORKERS",
        "COPYSIEVE_MODEL__CACHE",
    }
    file_has_workers = "decode" in values.get("config", {})
    no_cpu_is_requested = values is ON_THE_CPU
    counted_by_kubernetes = "COPYSIEVE_DECODE__WORKERS" in given
    assert counted_by_kubernetes != (file_has_workers or no_cpu_is_requested)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_hot_set_lasts_as_long_as_the_pod(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text(render(values)["ConfigMap"]["data"]["worker.yaml"])
    folder = settings.load(file).hotset.folder
    assert folder is not None
    spec = pod(values)
    mounts = {mount["mountPath"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    mount = mounts[str(folder.parent)]
    assert "readOnly" not in mount
    assert {"name": mount["name"], "emptyDir": {}} in spec["volumes"]


def test_the_hot_set_need_not_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "worker.yaml"
    rendered = render({"config": {"hotset": {"folder": None}}})
    file.write_text(rendered["ConfigMap"]["data"]["worker.yaml"])
    assert settings.load(file).hotset.folder is None


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_pod_is_locked_down(values: dict[str, Any]) -> None:
    spec = pod(values)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    security = spec["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_a_gpu_is_a_limit_and_optional() -> None:
    assert pod({})["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod(ALL_ON)["containers"][0]["resources"]["limits"] == {
        "amd.com/gpu": 2,
        "memory": "7Gi",
    }
    assert set(pod(ON_THE_CPU)["containers"][0]["resources"]["limits"]) == {"memory"}


def test_changed_settings_restart_the_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = render(values)["Deployment"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"replicas": 3})
    assert checksum({}) != checksum({"config": {"log": {"level": "debug"}}})


def test_autoscaling_owns_the_number_of_replicas_and_follows_the_settings() -> None:
    assert render({"replicas": 3})["Deployment"]["spec"]["replicas"] == 3
    objects = render(ALL_ON)
    assert "replicas" not in objects["Deployment"]["spec"]
    scaled = objects["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    trigger = scaled["triggers"][0]
    assert trigger["metadata"] == {
        "bootstrapServers": "a:9092,b:9092",
        "consumerGroup": settings.Kafka().group_id,
        "topic": "pictures",
        "lagThreshold": "1000",
        "offsetResetPolicy": "earliest",
        "excludePersistentLag": "false",
    }
    assert trigger["authenticationRef"] == {"name": "kafka"}
    default = render({"autoscaling": {"enabled": True}})["ScaledObject"]["spec"]["triggers"][0]
    assert default["metadata"]["topic"] == settings.Topics().uploads


def test_the_network_policy_keeps_from_metadata_and_private_addresses() -> None:
    egress = render(ALL_ON)["NetworkPolicy"]["spec"]["egress"]
    blocks = [to["ipBlock"] for rule in egress for to in rule.get("to", []) if "ipBlock" in to]
    assert {"169.254.0.0/16", "10.0.0.0/8"} <= set(blocks[0]["except"])
    unrestricted = [rule["ports"] for rule in egress if "to" not in rule]
    assert unrestricted[0] == [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    assert unrestricted[1:] == [rule["ports"] for rule in ALL_ON["networkPolicy"]["egress"]]


def test_metrics_are_for_the_own_namespace_unless_others_are_named() -> None:
    policy = render({})["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    assert rule == {"ports": [{"port": "http"}], "from": [{"podSelector": {}}]}
    (rule,) = render(ALL_ON)["NetworkPolicy"]["spec"]["ingress"]
    assert rule["from"] == ALL_ON["networkPolicy"]["metricsFrom"]


def test_only_in_a_pod_the_port_is_open_to_other_machines(tmp_path: Path) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text(render(ALL_ON)["ConfigMap"]["data"]["worker.yaml"])
    assert settings.load(file).http.host == "0.0.0.0"
    assert settings.Http().host == "127.0.0.1"


def test_the_rules_are_those_of_config() -> None:
    file = CHART.parents[1] / "config" / "alerts" / "copysieve.yaml"
    assert render(ALL_ON)["PrometheusRule"]["spec"] == yaml.safe_load(file.read_text())


def test_all_objects_find_the_pods() -> None:
    objects = render(ALL_ON)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    constraint = pod(ALL_ON)["topologySpreadConstraints"][0]
    selectors = [
        objects["Deployment"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"],
        objects["PodMonitor"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"],
        constraint["labelSelector"],
    ]
    assert all(selector["matchLabels"].items() <= labels for selector in selectors)


def test_names_fit_whatever_the_release_is_called() -> None:
    assert render({}, name="copysieve")["Deployment"]["metadata"]["name"] == "copysieve"
    name = render({}, name="r" * 53)["Deployment"]["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 2},
        {"replicas": -1},
        {"gpu": {"count": "one"}},
        {"image": {"digest": "latest"}},
        {"networkPolicy": {"egress": {}}},
        {"autoscaling": {"minReplicas": 0}},
        {"podMonitor": {"intervall": "5s"}},
        {"config": {"http": {"port": 80}}},
    ],
    ids=json.dumps,
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with helm.Chart.load(str(CHART)) as chart, pytest.raises(helm.HelmError) as refusal:
        chart.render(wrong, name="demo")
    assert "schema" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("kafka.sasl.password", {"kafka": {"sasl": {"password": "hunter2"}}}),
        ("kafka.ssl.password", {"kafka": {"ssl": {"password": "hunter2"}}}),
        ("redis.ssl.password", {"redis": {"ssl": {"password": "hunter2"}}}),
        ("redis.url", {"redis": {"url": "redis://:hunter2@redis:6379/0"}}),
    ],
)
def test_secrets_are_refused_and_not_shown(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmRenderError, match=f"config.{name}: ") as refusal:
        render({"config": config})
    assert "hunter2" not in str(refusal.value)
    harmless = yaml.safe_load(
        json.dumps(config).replace(":hunter2@", "").replace("hunter2", "file:/run/it")
    )
    assert "ConfigMap" in render({"config": harmless})
