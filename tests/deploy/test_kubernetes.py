"""deploy/kubernetes: what the manifests say, rendered by kubectl and checked against the published schemas."""

import re
import shutil
import subprocess
import time

import pytest
from conftest import wait_for
from duo import make_events

from deploy.common import ROOT
from deploy.containers import KUBERNETES, TENANTS, Tenant, ending, kubectl, kustomize, module, run


@pytest.mark.parametrize("version", ["1.29", "1.31", "latest"])
def test_kubernetes_knows_every_field(rendered, version):
    validator = module("kubernetes_validate", "PyPI: kubernetes-validate")
    version = validator.latest_version() if version == "latest" else version
    rendering = [kustomize(KUBERNETES / "base"), *map(rendered, TENANTS)]
    assert [len(tenant.objects) for tenant in rendering] == [5, 7, 8]
    for tenant in rendering:
        for manifest in tenant.objects:
            used = validator.validate(manifest, version, strict=True)
            assert version.startswith(used)  # by the schema of that version


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenant_refers_to_its_own_objects_only(rendered, tenant):
    rendering = rendered(tenant)
    assert {o["metadata"]["namespace"] for o in rendering.objects} == {"duo-collector"}
    assert all(o["metadata"]["name"].endswith(f"-{tenant}") for o in rendering.objects)
    volumes = {volume["name"]: volume for volume in rendering.pod["volumes"]}
    settings, secret = volumes["settings"]["projected"]["sources"]
    assert "duo.env" in rendering.named("ConfigMap", settings["configMap"]["name"])["data"]
    assert "duo.key" in rendering.named("Secret", secret["secret"]["name"])["data"]
    # Every five minutes, on a minute of its own.
    assert re.fullmatch(r"[0-4]-59/5 \* \* \* \*", rendering.schedule["schedule"])
    own = {"app.kubernetes.io/name": "duo-collector", "app.kubernetes.io/instance": tenant}
    shipper = rendering.named("Deployment", f"duo-shipper-{tenant}")["spec"]
    pods = [
        cronjob["spec"]["jobTemplate"]["spec"]["template"] for cronjob in rendering.of("CronJob")
    ]
    for pod in [*pods, shipper["template"]]:
        assert own.items() <= pod["metadata"]["labels"].items()
    # What reads the events, and what writes them, have one volume, and so one node.
    claims = [volume for pod in [*pods, shipper["template"]] for volume in pod["spec"]["volumes"]]
    names = {
        one["persistentVolumeClaim"]["claimName"]
        for one in claims
        if "persistentVolumeClaim" in one
    }
    assert names == {f"duo-state-{tenant}"}
    rendering.named("PersistentVolumeClaim", *names)
    selector = {"app.kubernetes.io/component": "shipper", "app.kubernetes.io/instance": tenant}
    assert shipper["selector"]["matchLabels"] == selector
    for pod in pods:
        (term,) = pod["spec"]["affinity"]["podAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["labelSelector"]["matchLabels"] == selector
        assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "collector"


def test_the_shipper_reads_what_the_collector_writes(rendered):
    rendering = rendered("acme")
    shipper = rendering.named("Deployment", "duo-shipper-acme")["spec"]["template"]["spec"]
    (container,) = shipper["containers"]
    events = {"name": "state", "mountPath": "/var/log/duo", "subPath": "events"}
    assert events in rendering.container["volumeMounts"]
    assert {**events, "readOnly": True} in container["volumeMounts"]
    assert container["env"] == [{"name": "SIEM_ADDRESS", "value": "siem.example.com:6514"}]
    # Positions outlive the pod.
    data = {"name": "state", "mountPath": "/var/lib/vector", "subPath": "shipper"}
    assert data in container["volumeMounts"]
    yaml = module("yaml", "PyPI: PyYAML")
    text = rendering.named("ConfigMap", "duo-shipper-acme")["data"]["vector.yaml"]
    config = yaml.safe_load(text.replace("${SIEM_ADDRESS}", "siem.example.com:6514"))
    assert config == yaml.safe_load((ROOT / "deploy/shippers/vector.yaml").read_text())
    for pod in (rendering.pod, shipper):
        (one,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_globex_has_a_private_ca_a_proxy_and_a_network_policy(rendered):
    rendering = rendered("globex")
    data = rendering.named("ConfigMap", "duo-settings-globex")["data"]
    assert data["ca.pem"].startswith("-----BEGIN CERTIFICATE-----")
    assert "\nREQUESTS_CA_BUNDLE=/etc/duo-collector/ca.pem\n" in data["duo.env"]
    (proxy_port,) = re.findall(r"^HTTPS_PROXY=http://\S+:(\d+)$", data["duo.env"], re.MULTILINE)
    policy = rendering.named("NetworkPolicy", "duo-collector-globex")["spec"]
    selected = policy["podSelector"]["matchLabels"]
    for pod in rendering.pod_templates():
        assert selected.items() <= pod["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 443, int(proxy_port), 6514}


def test_events_to_the_log_need_no_shipper(rendered, tmp_path):
    rendered("acme")
    overlay = tmp_path / "kubernetes/overlays/acme"
    text = (overlay / "kustomization.yaml").read_text()
    head = text.split("  # Where the shipper sends to")[0]
    (overlay / "kustomization.yaml").write_text(
        head.replace("resources:", "components: [../../components/events-to-log]\nresources:", 1)
    )
    rendering = kustomize(overlay)
    kinds = sorted(o["kind"] for o in rendering.objects)
    assert kinds == ["ConfigMap", "CronJob", "PersistentVolumeClaim", "Secret"]
    assert rendering.container["args"] == ["duo", "--once"]


def test_the_daily_job_differs_in_its_arguments_only(rendered):
    collecting = rendered("globex")
    daily = Tenant(collecting.objects, "duo-collector-missing")
    assert re.fullmatch(r"\d+ \d+ \* \* \*", daily.schedule["schedule"])
    assert daily.container.pop("args") != collecting.container.pop("args")
    assert daily.job == collecting.job


def test_tenants_do_not_start_in_the_same_minute(rendered):
    assert len({rendered(tenant).schedule["schedule"] for tenant in TENANTS}) == len(TENANTS)


def test_without_its_key_a_tenant_is_not_rendered(tmp_path):
    command = [kubectl(), "kustomize", tmp_path / "kubernetes/overlays/acme"]
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("*.key"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "duo.key" in done.stderr


def test_git_leaves_keys_out():
    if not (ROOT / ".git").exists():
        pytest.skip("not a Git checkout")
    keys = [f"deploy/kubernetes/overlays/{tenant}/duo.key" for tenant in [*TENANTS, "another"]]
    assert run("git", "check-ignore", "--no-index", *keys, cwd=ROOT).split() == keys


def decision(job, status, conditions=()):
    """What the Job controller does about a pod that ended so: the first rule that fits, or else the pod is counted."""
    assert (
        job["template"]["spec"]["restartPolicy"] == "Never"
    )  # or Kubernetes does not take the policy
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and codes["operator"] == "In" and status in codes["values"]:
            return rule["action"]
        if any(condition["type"] in conditions for condition in rule.get("onPodConditions", [])):
            return rule["action"]
    return "Count"


def test_only_what_a_user_has_to_mend_fails_the_job_at_once(rendered, collector, duo):
    job = rendered("acme").job
    assert job["backoffLimit"] > 0
    collector.seed(authentication=time.time_ns() // 1_000_000 - 3_600_000)

    def ended(*options, **environ):
        return decision(
            job, collector.once("--log-types", "authentication", *options, environ=environ).status
        )

    assert ended("--nonsense") == "FailJob"
    assert ended(DUO_INTERVAL="soon") == "FailJob"
    duo.rules.no_permission = True
    assert ended() == "FailJob"
    duo.rules.no_permission = False
    with open("/dev/full", "w") as full:
        duo.add(
            "authentication",
            make_events("authentication", 1, duo.now_ms() - 600_000, duo.now_ms() - 500_000),
        )
        assert decision(job, collector.once(stdout=full).status) == "Count"
    before = len(duo.requests)
    holder = collector.start()
    with ending(holder, 30):
        wait_for(
            lambda: len(duo.requests) > before, "request of the run that holds the checkpoint file"
        )
        assert ended() == "Count"
    assert decision(job, 75, ["DisruptionTarget"]) == "Ignore"  # a drained node
