"""Every query of every dashboard, asked of a real Prometheus that scraped a real server under load.

A panel whose metrics the server has must have data. One whose metrics it lacks is listed, with the reason.
"""

import pathlib
import re
import tempfile
import time
import unittest

import picture
from watched import Watched, dashboards, filled, panels

GPU = "DCGM's exporter measures it, on machines with a GPU"
LATER = {
    **{("gpu", panel["title"]): GPU for panel in panels(dashboards()["gpu"])},
}
# Nothing by nothing is no number: the engine looks nothing up in a cache of prefixes.
NOT_A_NUMBER = {("engine", "Prefix cache hits")}
METRIC = re.compile(r"\b((?:vllm:|baichuan_|grpc_|DCGM_)\w+)")
WAVES = [(8, 6), (14, 24), (8, 8)]


class UnderLoad(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.watched = cls.enterClassContext(Watched())
        cls.seconds = cls.watched.run(WAVES)
        cls.prometheus = cls.watched.prometheus

    def test_the_traffic_met_what_it_was_made_for(self):
        traffic = self.watched.traffic
        self.assertEqual(traffic.faults, [])
        for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"):
            self.assertGreater(traffic.codes[code], 0, f"{code}: {traffic.codes}")

    def test_every_panel_has_data_or_is_listed_with_its_reason(self):
        known = set(self.prometheus.ask("label/__name__/values"))
        checked = 0
        for name, dashboard in dashboards().items():
            for panel in panels(dashboard):
                place = (name, panel["title"])
                queries = [filled(target["expr"]) for target in panel["targets"]]
                found = [self.prometheus.range(query, self.seconds) for query in queries]
                measured = set(METRIC.findall(" ".join(queries))) & known
                with self.subTest(f"{name}: {panel['title']}"):
                    if place in NOT_A_NUMBER:
                        self.assertTrue(measured)
                    elif place in LATER and not measured:
                        self.assertFalse(any(found))
                    else:
                        empty = [query for query, series in zip(queries, found) if not series]
                        self.assertEqual(empty, [])
                        checked += 1
        self.assertGreaterEqual(checked, 30)
        print(f"\n{checked} panels have data; the others wait: {sorted(set(LATER.values()))}")

    def test_lists_to_choose_from_have_entries(self):
        for name, dashboard in dashboards().items():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] == "query" and variable["name"] not in ("tenant", "host"):
                    with self.subTest(f"{name}: {variable['name']}"):
                        self.assertTrue(self.prometheus.values_of(variable["query"]["query"]))

    def test_prometheus_evaluates_every_rule(self):
        groups = self.prometheus.ask("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        self.assertGreater(len(rules), 20)
        self.assertEqual([rule["name"] for rule in rules if rule["health"] != "ok"], [])
        for recorded in ("baichuan:failed_calls:ratio_rate5m", "baichuan:slow_first_tokens:ratio_rate5m"):
            self.assertTrue(self.prometheus.range(recorded, 10), recorded)

    def test_prometheus_keeps_exemplars_that_name_traces(self):
        for name in ("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"):
            now = time.time()
            found = self.prometheus.ask("query_exemplars", query=f"{name}_bucket", start=now - self.seconds, end=now)
            traces = [exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]]
            self.assertTrue(traces and all(len(trace) == 32 for trace in traces), found)

    def test_the_overview_can_be_drawn(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "overview.png"
            picture.draw(self.prometheus, self.seconds, file)
            self.assertEqual(file.read_bytes()[:4], b"\x89PNG")
            self.assertLess(file.stat().st_size, 300_000)


if __name__ == "__main__":
    unittest.main()
