"""deploy/llm-d: that its parts name each other's labels and ports, and that the server takes its configuration.

What llm-d reads of the server itself is tested in crates/server/tests/serving/llm_d.rs.
"""

import os
import pathlib
import subprocess
import tomllib

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "baichuan-serve"
RELEASE = "m1"


def read(name):
    return yaml.safe_load((DEPLOY / "llm-d" / name).read_text(encoding="utf-8"))


def workers():
    return read("baichuan-serve-values.yaml")


def router():
    return read("router-values.yaml")["router"]


def picker():
    epp = router()["epp"]
    return yaml.safe_load(epp["pluginsCustomConfig"][epp["pluginsConfigFile"]])


def pool():
    return next(yaml.safe_load_all((DEPLOY / "llm-d" / "inferencepool.yaml").read_text(encoding="utf-8")))


def test_the_workers_serve_the_facade_and_are_labelled_vllm(tmp_path):
    assert workers()["podLabels"] == {"llm-d.ai/engine-type": "vllm"}
    assert tomllib.loads(workers()["config"])["grpc"]["vllm_facade"] is True
    config = tmp_path / "config.toml"
    config.write_text(workers()["config"], encoding="utf-8")
    command = [os.environ["BAICHUAN_SERVER_BINARY"], "check-config", "--config", config, "--model", os.environ["BAICHUAN_CHECKPOINT"]]
    # To the server, every variable that begins so is a setting.
    env = {name: value for name, value in os.environ.items() if not name.startswith("BAICHUAN_")}
    checked = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    assert tomllib.loads(checked.stdout)["grpc"]["vllm_facade"] is True


def test_the_values_are_keys_of_the_chart():
    known = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert workers().keys() <= known.keys()
    assert workers()["networkPolicy"].keys() <= known["networkPolicy"].keys()


def test_the_pool_selects_the_charts_pods_by_their_port():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["name"]
    labels = {"app.kubernetes.io/name": chart, "app.kubernetes.io/instance": RELEASE}
    port = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["service"]["port"]
    servers = router()["modelServers"]
    assert (servers["matchLabels"], servers["targetPorts"]) == (labels, [{"number": port}])
    # By which llm-d's chart gives the pool `appProtocol: kubernetes.io/h2c` and the picker its gRPC parser.
    assert (servers["type"], servers["protocol"]) == ("vllm", "grpc")
    spec = pool()["spec"]
    assert pool()["apiVersion"] == "inference.networking.k8s.io/v1"
    assert (spec["selector"]["matchLabels"], spec["targetPorts"], spec["appProtocol"]) == (labels, [{"number": port}], "kubernetes.io/h2c")


def test_the_picker_parses_the_facade_and_reads_the_admin_port():
    plugins = {plugin["type"]: plugin.get("parameters", {}) for plugin in picker()["plugins"]}
    assert "vllmgrpc-parser" in plugins
    template = (CHART / "templates" / "deployment.yaml").read_text(encoding="utf-8")
    assert f"containerPort: {plugins['metrics-data-source']['port']}" in template
    used = [parser["pluginRef"] for parser in picker()["requestHandler"]["parsers"]]
    used += [plugin["pluginRef"] for profile in picker()["schedulingProfiles"] for plugin in profile["plugins"]]
    assert set(used) <= plugins.keys()
    # Nothing is cached across requests.
    assert not any("prefix" in name for name in plugins)
