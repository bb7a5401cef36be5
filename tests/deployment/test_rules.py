"""Alert rules, dashboards, and the configurations of what watches the server."""

import json
import re
import unittest

import yaml

from places import DEPLOY, ROOT, output_of

WATCH = DEPLOY / "observability"
PROMETHEUS = WATCH / "prometheus"


def alerts():
    rules = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


class Rules(unittest.TestCase):
    def test_promtool_takes_them(self):
        self.assertIn("SUCCESS", output_of("promtool", "check", "rules", PROMETHEUS / "rules.yml"))

    def test_each_fires_when_it_should_and_is_silent_when_not(self):
        output_of("promtool", "test", "rules", "rules.test.yml", "rules-slow.test.yml", cwd=PROMETHEUS)

    def test_each_is_shown_to_fire(self):
        fired = set()
        for name in ("rules.test.yml", "rules-slow.test.yml"):
            for test in yaml.safe_load((PROMETHEUS / name).read_text())["tests"]:
                fired |= {case["alertname"] for case in test["alert_rule_test"] if case.get("exp_alerts")}
        self.assertEqual(fired, {alert["alert"] for alert in alerts()})

    def test_each_has_a_severity_and_a_runbook_that_exists(self):
        headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/OPERATIONS.md").read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        for alert in alerts():
            with self.subTest(alert["alert"]):
                self.assertIn(alert["labels"]["severity"], ("page", "ticket"))
                page, anchor = alert["annotations"]["runbook"].split("#")
                self.assertEqual(page, "docs/OPERATIONS.md")
                self.assertIn(anchor, anchors)

    def test_prometheus_takes_its_configuration(self):
        self.assertIn("SUCCESS", output_of("promtool", "check", "config", PROMETHEUS / "prometheus.yml"))


class Dashboards(unittest.TestCase):
    def test_they_are_what_their_script_writes(self):
        output_of("python3", WATCH / "grafana/make.py", "--check")

    def test_panels_do_not_overlap_and_every_one_says_what_it_shows(self):
        for file in sorted((WATCH / "grafana/dashboards").glob("*.json")):
            dashboard = json.loads(file.read_text())
            taken, ids = set(), [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(ids), len(set(ids)))
            for panel in dashboard["panels"]:
                place = panel["gridPos"]
                cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
                with self.subTest(f"{file.name}: {panel['title']}"):
                    self.assertLessEqual(place["x"] + place["w"], 24)
                    self.assertFalse(taken & cells)
                    self.assertTrue(panel["type"] == "row" or (panel["description"] and panel["targets"]))
                taken |= cells

    def test_variables_that_queries_use_are_defined(self):
        known = {"__rate_interval", "datasource"}
        for file in (WATCH / "grafana/dashboards").glob("*.json"):
            text = file.read_text()
            defined = {v["name"] for v in json.loads(text)["templating"]["list"]} | known
            self.assertEqual({name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__all")} - defined, set(), file.name)


class Collectors(unittest.TestCase):
    def test_pipelines_use_only_what_is_configured_and_all_of_it(self):
        files = sorted((WATCH / "otel").glob("collector*.yaml"))
        self.assertGreaterEqual(len(files), 2)
        for file in files:
            config = yaml.safe_load(file.read_text())
            service = config["service"]
            for part in ("receivers", "processors", "exporters"):
                used = {name for pipeline in service["pipelines"].values() for name in pipeline[part]}
                self.assertEqual(used, set(config[part]), f"{file.name}: {part}")
            self.assertEqual(set(service.get("extensions", [])), set(config.get("extensions", {})))
            for pipeline in service["pipelines"].values():
                self.assertEqual(pipeline["processors"][0], "memory_limiter")
            # The server sends both to OTEL_EXPORTER_OTLP_ENDPOINT.
            self.assertEqual(set(service["pipelines"]), {"traces", "metrics"}, file.name)
            self.assertIn("attributes/no-content", service["pipelines"]["traces"]["processors"])
            actions = config["processors"]["attributes/no-content"]["actions"]
            self.assertLessEqual({"gen_ai.input.messages", "gen_ai.output.messages"}, {a["key"] for a in actions})

    def test_grafana_is_provisioned_with_the_datasource_and_the_folder_of_the_compose_file(self):
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        mounts = {v.split(":")[1] for v in compose["services"]["grafana"]["volumes"]}
        provider = yaml.safe_load((WATCH / "grafana/provisioning/dashboards/dashboards.yaml").read_text())["providers"][0]
        self.assertIn(provider["options"]["path"], mounts)
        sources = yaml.safe_load((WATCH / "grafana/provisioning/datasources/datasources.yaml").read_text())["datasources"]
        hosts = {re.match(r"http://([^:]+):", source["url"]).group(1) for source in sources}
        self.assertLessEqual(hosts, set(compose["services"]))


if __name__ == "__main__":
    unittest.main()
