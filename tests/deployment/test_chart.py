"""The Helm chart, the plain manifests and the meshes' objects."""

import tempfile
import unittest

import helm_python as helm
import yaml

import manifests
from places import DEPLOY, ROOT, check_config

CHART = DEPLOY / "helm" / "baichuan-serve"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EVERYTHING = {
    "gpu": {"count": 2, "runtimeClassName": "nvidia"},
    "otlp": {"endpoint": "http://collector.monitoring.svc:4317"},
    "monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboards")},
    "image": {"pullSecrets": [{"name": "registry"}]},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
    "podAnnotations": {"linkerd.io/inject": "enabled"},
    "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}]},
}
INSTALLATIONS = {
    "defaults": {},
    "pvc": {"model": {"source": "pvc", "pvc": {"claimName": "weights", "subPath": "m1"}}},
    "hub": {"model": {"source": "hub", "hub": {"revision": COMMIT, "tokenSecret": "hub"}}},
    "hub, kept": {"model": {"source": "hub", "hub": {"revision": COMMIT, "cacheClaimName": "kept"}}},
    "oci": {"model": {"source": "oci", "oci": {"reference": "registry.example/m1:1"}}},
    "guarded": {"auth": {"allowAnonymous": False, "tokensSecret": "tokens"}, "tls": {"secret": "certificate"}},
    "hpa": {"autoscaling": {"hpa": {"enabled": True}}},
    "keda": {"autoscaling": {"keda": {"enabled": True}}},
    "behind llm-d": yaml.safe_load((DEPLOY / "llm-d" / "baichuan-serve-values.yaml").read_text()),
    "everything": EVERYTHING,
    "nothing": {"podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False}, "serviceAccount": {"name": "own"}},
}


def rendered(values):
    files = helm.Chart.load(CHART).render(values, name="prod", namespace="inference")
    return [found for name, text in files.items() if not name.endswith(".txt") for found in manifests.objects(text)]


def one(found, kind, name=None):
    chosen = [o for o in found if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(chosen) == 1, f"{len(chosen)} objects of kind {kind}"
    return chosen[0]


class Chart(unittest.TestCase):
    def test_it_has_no_fault_for_helms_own_linter(self):
        report = helm.lint(CHART, strict=True)
        faults = [m for m in report["messages"] if m["severity"] > 1]
        self.assertEqual((faults, report["errors"], report["total_charts_linted"]), ([], [], 1))

    def test_every_installation_is_what_kubernetes_and_the_operators_take(self):
        for name, values in INSTALLATIONS.items():
            with self.subTest(name):
                found = rendered(values)
                self.assertGreater(len(found), 4)
                self.assertEqual([p for o in found for p in manifests.problems(o)], [])

    def test_a_key_that_no_kind_has_is_found(self):
        for kind, values in [("Deployment", {}), ("ServiceMonitor", EVERYTHING)]:
            broken = one(rendered(values), kind)
            broken["spec"]["replicaz"] = 3
            self.assertEqual(len(manifests.problems(broken, versions=("1.37",))), 1)

    def test_values_that_do_not_exist_or_do_not_fit_are_refused(self):
        for values in [{"replica": 2}, {"model": {"source": "ftp"}}, {"shutdown": {"margin": 1}}, {"model": {"hub": {"revision": "main"}}}]:
            with self.subTest(values), self.assertRaises(helm.HelmError):
                helm.Chart.load(CHART).validate_schema(values)

    def test_contradictions_and_missing_sources_are_named(self):
        both = {"hpa": {"enabled": True}, "keda": {"enabled": True}}
        for values, word in [({"autoscaling": both}, "hpa or keda"), ({"model": {"source": "pvc"}}, "claimName"), ({"model": {"source": "hub"}}, "revision"), ({"model": {"source": "oci"}}, "reference")]:
            with self.subTest(word), self.assertRaisesRegex(helm.HelmError, word):
                rendered(values)

    def test_a_rollout_has_time_for_a_start_and_can_do_without_a_spare_gpu(self):
        for values in ({}, {"strategy": {"maxSurge": 0, "maxUnavailable": 1}}, {"strategy": {"maxSurge": "25%"}}):
            spec = one(rendered(values), "Deployment")["spec"]
            wanted = {"maxSurge": 1, "maxUnavailable": 0, **values.get("strategy", {})}
            self.assertEqual(spec["strategy"]["rollingUpdate"], wanted)
            probe = spec["template"]["spec"]["containers"][0]["startupProbe"]
            self.assertGreater(spec["progressDeadlineSeconds"], probe["periodSeconds"] * probe["failureThreshold"])
        with self.assertRaisesRegex(helm.HelmError, "progressDeadlineSeconds must be above the 6000 s"):
            rendered({"startupProbe": {"failureThreshold": 1200}})

    def test_a_replica_with_gpus_runs_on_them_or_not_at_all(self):
        def devices(count, **gpu):
            server = one(rendered({"gpu": {"count": count, **gpu}}), "Deployment")["spec"]["template"]["spec"]["containers"][0]
            return {e["name"].removeprefix("BAICHUAN_MODEL__"): e["value"] for e in server["env"] if "__DEVICE" in e["name"]}

        self.assertEqual(devices(0), {})
        self.assertEqual(devices(1), {"DEVICE": "cuda"})
        self.assertEqual(devices(2), {"DEVICE": "cuda", "DEVICE_MAP": "auto"})
        self.assertEqual(devices(2, deviceMap="0:20;1:20")["DEVICE_MAP"], "0:20;1:20")
        variables = {f"BAICHUAN_MODEL__{k}": v for k, v in devices(2).items()}
        effective = self.effective("", {"BAICHUAN_MODEL__PATH": str(ROOT / "models/baichuan-m1-wordnet"), **variables})
        self.assertIn('device = "cuda"', effective)
        self.assertIn('device_map = "auto"', effective)

    def test_its_own_test_speaks_tls_where_the_server_does_and_is_let_in(self):
        def test_of(values):
            found = rendered(values)
            pod = one(found, "Pod")
            env = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}
            policies = [o for o in found if o["kind"] == "NetworkPolicy"]
            return pod, env, policies

        pod, env, policies = test_of({})
        self.assertEqual(env, {"BAICHUAN_SERVER": "http://prod-baichuan-serve:50051"})
        self.assertEqual(len(policies), 1)
        self.assertNotIn("volumes", pod["spec"])

        pod, env, policies = test_of({**INSTALLATIONS["guarded"], "networkPolicy": EVERYTHING["networkPolicy"]})
        self.assertEqual(env["BAICHUAN_SERVER"], "https://prod-baichuan-serve:50051")
        self.assertEqual(env["BAICHUAN_TLS_SERVER_NAME"], "prod-baichuan-serve.inference.svc")
        mounted = pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"]
        self.assertEqual(env["BAICHUAN_TLS_CA"], f"{mounted}/ca.crt")
        self.assertEqual([i["key"] for i in pod["spec"]["volumes"][0]["secret"]["items"]], ["ca.crt"])
        own = [p for p in policies if p["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"]
        self.assertEqual(len(own), 1)
        allowed = own[0]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
        self.assertLessEqual(allowed.items(), pod["metadata"]["labels"].items())

        system = test_of({"tls": {"secret": "certificate", "caKey": "", "serverName": "m1.example.com"}})[1]
        self.assertEqual(system["BAICHUAN_TLS_SERVER_NAME"], "m1.example.com")
        self.assertNotIn("BAICHUAN_TLS_CA", system)

    def test_what_prometheus_does_not_know_scales_nothing(self):
        scaled = one(rendered(INSTALLATIONS["keda"]), "ScaledObject")
        self.assertEqual([t["metadata"]["ignoreNullValues"] for t in scaled["spec"]["triggers"]], ["false"] * 2)

    def test_a_pod_is_killed_only_after_the_server_has_drained(self):
        for shutdown in ({}, {"drainDelay": 0, "drainTimeout": 600, "margin": 20}):
            pod = one(rendered({"shutdown": shutdown}), "Deployment")["spec"]["template"]["spec"]
            env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
            seconds = {k: int(env[f"BAICHUAN_SHUTDOWN__{k}"].removesuffix("s")) for k in ("DRAIN_DELAY", "DRAIN_TIMEOUT", "HARD_TIMEOUT")}
            self.assertLess(seconds["DRAIN_DELAY"] + seconds["DRAIN_TIMEOUT"], seconds["HARD_TIMEOUT"])
            self.assertLess(seconds["HARD_TIMEOUT"], pod["terminationGracePeriodSeconds"])

    def test_pods_may_do_nothing_that_serving_does_not_need(self):
        for name, values in INSTALLATIONS.items():
            for found in rendered(values):
                if found["kind"] not in ("Deployment", "Pod"):
                    continue
                pod = found["spec"]["template"]["spec"] if found["kind"] == "Deployment" else found["spec"]
                with self.subTest(f"{name}: {found['kind']}"):
                    self.assertIs(pod["automountServiceAccountToken"], False)
                    self.assertIs(pod["enableServiceLinks"], False)
                    self.assertIs(pod["securityContext"]["runAsNonRoot"], True)
                    self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                    for container in pod["containers"] + pod.get("initContainers", []):
                        security = container["securityContext"]
                        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
                        self.assertIs(security["readOnlyRootFilesystem"], True)
                        self.assertIs(security["allowPrivilegeEscalation"], False)
                        self.assertIn("memory", container["resources"]["limits"])

    def test_probes_ask_for_readiness_and_liveness_by_grpc(self):
        server = one(rendered({}), "Deployment")["spec"]["template"]["spec"]["containers"][0]
        asked = {probe: server[probe]["grpc"].get("service", "") for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        readiness = "baichuan.v1.InferenceService"
        self.assertEqual(asked, {"startupProbe": readiness, "readinessProbe": readiness, "livenessProbe": ""})

    def test_the_server_accepts_the_configuration_that_the_chart_writes(self):
        found = rendered({})
        server = one(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        env = {e["name"]: e["value"] for e in server["env"]}
        self.assertEqual(env["BAICHUAN_MODEL__PATH"], "/usr/share/baichuan-serve/models/baichuan-m1-wordnet")
        # The same folder, where this test has it.
        env["BAICHUAN_MODEL__PATH"] = str(ROOT / "models/baichuan-m1-wordnet")
        effective = self.effective(one(found, "ConfigMap")["data"]["config.toml"], env)
        self.assertIn('drain_timeout = "2m"', effective)
        self.assertIn('name = "baichuan-m1"', effective)
        self.assertIn('grpc = "0.0.0.0:50051"', effective)

    def test_behind_tls_probes_speak_http_and_secrets_are_where_the_server_is_told_they_are(self):
        pod = one(rendered(INSTALLATIONS["guarded"]), "Deployment")["spec"]["template"]["spec"]
        server = pod["containers"][0]
        asked = {probe: server[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        self.assertEqual(asked, {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"})
        env = {e["name"]: e.get("value") for e in server["env"]}
        self.assertNotIn("BAICHUAN_AUTH__ALLOW_ANONYMOUS", env)
        mounts = [m["mountPath"] for m in server["volumeMounts"]]
        for file in ("BAICHUAN_TLS__CERT", "BAICHUAN_TLS__KEY", "BAICHUAN_AUTH__TOKENS"):
            self.assertIn(env[file].rsplit("/", 1)[0], mounts)

    def effective(self, config, env):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(config)
            file.flush()
            return check_config(file.name, **env)

    def test_rules_and_dashboards_are_the_files_of_observability(self):
        found = rendered(EVERYTHING)
        rules = yaml.safe_load((DEPLOY / "observability/prometheus/rules.yml").read_text())
        self.assertEqual(one(found, "PrometheusRule")["spec"], rules)
        shipped = {f"baichuan-{f.name}": f.read_text() for f in (DEPLOY / "observability/grafana/dashboards").glob("*.json")}
        self.assertEqual(one(found, "ConfigMap", "prod-baichuan-serve-dashboards")["data"], shipped)

    def test_it_can_be_packed(self):
        with tempfile.TemporaryDirectory() as folder:
            archive = helm.package(CHART, destination=folder)
            self.assertIn("baichuan-serve-", str(archive))


class Manifests(unittest.TestCase):
    def test_they_are_what_kubernetes_and_the_operators_take(self):
        for file in [*(DEPLOY / "kubernetes").glob("*.yaml"), *(DEPLOY / "mesh").glob("*/baichuan-serve.yaml")]:
            if file.name in ("kustomization.yaml", "prometheus-adapter-values.yaml"):
                continue
            with self.subTest(file.name):
                found = manifests.objects(file.read_text())
                self.assertTrue(found)
                self.assertEqual([p for o in found for p in manifests.problems(o)], [])

    def test_the_kustomization_names_what_is_there(self):
        wanted = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
        for resource in wanted["resources"]:
            found = manifests.objects((DEPLOY / "kubernetes" / resource).read_text())
            deployment = one(found, "Deployment")
            self.assertEqual([r["name"] for r in wanted["replicas"]], [deployment["metadata"]["name"]])
            images = [c["image"] for c in deployment["spec"]["template"]["spec"]["containers"]]
            self.assertEqual([i["name"] for i in wanted["images"]], images)

    def test_the_plain_pod_is_the_charts_pod(self):
        plain = one(manifests.objects((DEPLOY / "kubernetes/baichuan-serve.yaml").read_text()), "Deployment")
        chart = one(rendered({}), "Deployment")
        pod, like = (d["spec"]["template"]["spec"] for d in (plain, chart))
        self.assertEqual(pod["terminationGracePeriodSeconds"], like["terminationGracePeriodSeconds"])
        self.assertEqual(plain["spec"]["strategy"], chart["spec"]["strategy"])
        startup = pod["containers"][0]["startupProbe"]
        self.assertGreater(plain["spec"]["progressDeadlineSeconds"], startup["periodSeconds"] * startup["failureThreshold"])
        for key in ("startupProbe", "readinessProbe", "livenessProbe", "securityContext", "ports", "args"):
            self.assertEqual(pod["containers"][0][key], like["containers"][0][key], key)

    def test_the_server_accepts_the_plain_configuration(self):
        found = manifests.objects((DEPLOY / "kubernetes/baichuan-serve.yaml").read_text())
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(one(found, "ConfigMap")["data"]["config.toml"])
            file.flush()
            effective = check_config(file.name, BAICHUAN_MODEL__PATH=str(ROOT / "models/baichuan-m1-wordnet"))
        self.assertIn('hard_timeout = "2m 25s"', effective)


if __name__ == "__main__":
    unittest.main()
