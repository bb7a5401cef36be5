"""A real server, a real Prometheus that scrapes it, and what the dashboards' queries return."""

import json
import math
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from pair import Observed
from places import DEPLOY
from ports import free_port
from traffic import Traffic

DASHBOARDS = DEPLOY / "observability/grafana/dashboards"
RULES = DEPLOY / "observability/prometheus/rules.yml"
# Grafana's own, at a scrape a second.
RATE_INTERVAL = "10s"
# Small enough that the traffic fills it.
TIGHT = [
    "engine.max_context=512", "engine.max_sequences=8", "engine.max_waiting=6",
    "engine.cache.context_tokens=1024",
    # Never met: a quota shows how much of it is in use.
    "tenants.anonymous.tokens_per_minute=1000000000",
]
STARTUP_SECONDS = 60


class Prometheus:
    """Debian's Prometheus with one target and the shipped rules; a context manager."""

    def __init__(self, target):
        self.port = free_port()
        self.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.folder.name)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "2s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "baichuan-serve", "static_configs": [{"targets": [target]}]}],
        }
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.log = open(folder / "log", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{self.port}", "--enable-feature=exemplar-storage",
            ],
            stdout=self.log, stderr=subprocess.STDOUT,
        )

    def __enter__(self):
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5):
                    return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError(f"Prometheus did not start:\n{pathlib.Path(self.log.name).read_text()}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()
        self.folder.cleanup()

    def ask(self, path, **parameters):
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def range(self, query, seconds, step=1):
        """Series of the last seconds: labels and points; points that are not numbers are left out."""
        now = time.time()
        found = self.ask("query_range", query=query, start=now - seconds, end=now, step=step)["result"]
        series = []
        for one in found:
            points = [(at, float(value)) for at, value in one["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                series.append((one["metric"], points))
        return series

    def values_of(self, variable):
        """What a dashboard's `label_values(selector, label)` offers."""
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable).groups()
        return self.ask(f"label/{label}/values", **{"match[]": filled(selector)})


def filled(query):
    """A query as Grafana sends it, with everything chosen in every list."""
    return re.sub(r"\$\w+", ".*", query.replace("$__rate_interval", RATE_INTERVAL))


def dashboards():
    return {file.stem: json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


class Watched:
    """The three together, under traffic that comes in waves; a context manager."""

    def __init__(self, callers=24, settings=TIGHT):
        self.callers, self.settings = callers, settings

    def __enter__(self):
        self.server = Observed(*self.settings)
        self.server.__enter__()
        self.prometheus = Prometheus(f"127.0.0.1:{self.server.admin_port}")
        try:
            self.prometheus.__enter__()
        except BaseException:
            self.server.__exit__()
            raise
        self.traffic = Traffic(self.server.address, self.callers)
        return self

    def __exit__(self, *_):
        self.prometheus.__exit__()
        self.server.__exit__()

    def run(self, waves):
        """Runs the traffic: for each `(seconds, callers)` that long with so many at work."""
        with self.traffic as traffic:
            for seconds, callers in waves:
                traffic.set_active(callers)
                traffic.stopped.wait(seconds)
        return sum(seconds for seconds, _ in waves)
