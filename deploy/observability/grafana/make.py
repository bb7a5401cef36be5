#!/usr/bin/env python3
"""Writes the dashboards in dashboards/ from the panels below; with --check, fails if they differ.

The JSON is what Grafana loads and what is shipped; this is where it is edited. A panel is a title, what it shows, and
PromQL; the rest is the same for all of them.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent / "dashboards"
# Calls to generate or to embed, of applications and, through the facade, of routers.
SERVICE = 'grpc_service=~"baichuan.v1.InferenceService|vllm.grpc.engine.VllmEngine",grpc_method=~"Generate.*|Embed.*"'
# Of one model on the chosen servers; of the chosen servers; of the chosen GPU hosts.
M = 'model_name=~"$model",job=~"$job",instance=~"$instance"'
S = 'job=~"$job",instance=~"$instance"'
G = 'Hostname=~"$host"'
RATE = "[$__rate_interval]"


def quantiles(metric, labels=M, by="", quantiles=(0.5, 0.95, 0.99)):
    """One line per quantile of a histogram (and per value of the label `by`)."""
    group = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return [
        (f"histogram_quantile({q}, sum by ({group}) (rate({metric}_bucket{{{labels}}}{RATE})))", f"p{q * 100:g}{legend}")
        for q in quantiles
    ]


def rate(metric, labels=M, by=None, legend=None):
    group = f" by ({by})" if by else ""
    names = [name.strip() for name in by.split(",")] if by else []
    return (f"sum{group} (rate({metric}{{{labels}}}{RATE}))", legend or " ".join(f"{{{{{n}}}}}" for n in names))


def stat(title, what, query, unit, steps=()):
    return {"kind": "stat", "title": title, "what": what, "queries": [(query, "")], "unit": unit, "steps": steps}


def graph(title, what, queries, unit, stack=False, most=None):
    queries = queries if isinstance(queries, list) else [queries]
    return {"kind": "timeseries", "title": title, "what": what, "queries": queries, "unit": unit, "stack": stack, "max": most}


def table(title, what, query):
    return {"kind": "table", "title": title, "what": what, "queries": [(query, "")], "unit": "none"}


POOL = f"sum by (pool) (baichuan_kv_pool_blocks_used{{{M}}}) / (sum by (pool) (baichuan_kv_pool_blocks_total{{{M}}}) > 0)"
FAILED = (
    f'(sum(rate(grpc_server_handled_total{{{SERVICE},grpc_code=~"Internal|Unknown|DataLoss|Unavailable",{S}}}{RATE})) or vector(0))'
    f" / sum(rate(grpc_server_handled_total{{{SERVICE},{S}}}{RATE}))"
)

OVERVIEW = [
    ("Now", [
        stat("Servers ready", "Servers that take requests.", f"sum(baichuan_ready{{{S}}})", "none", [("red", None), ("green", 1)]),
        stat("Requests", "Calls to generate or to embed begun per second.", f"sum(rate(grpc_server_started_total{{{SERVICE},{S}}}{RATE}))", "reqps"),
        stat("Tokens generated", "Per second, over all servers.", f"sum(rate(vllm:generation_tokens_total{{{M}}}{RATE}))", "none"),
        stat("First token, p95", "From arrival to the first token; the objective is 2.5 s.", quantiles("vllm:time_to_first_token_seconds", quantiles=[0.95])[0][0], "s", [("green", None), ("orange", 1), ("red", 2.5)]),
        stat("Calls failed", "By the server's fault; the objective is 0.5 %.", FAILED, "percentunit", [("green", None), ("red", 0.005)]),
        stat("Waiting", "Sequences that wait for cache memory.", f"sum(vllm:num_requests_waiting{{{M}}})", "none", [("green", None), ("orange", 1)]),
    ]),
    ("Traffic", [
        graph("Calls by outcome", "Calls to generate or to embed ended per second.", rate("grpc_server_handled_total", f"{SERVICE},{S}", "grpc_method, grpc_code"), "reqps", stack=True),
        graph("Tokens", "Per second: read from prompts, and generated.", [rate("vllm:prompt_tokens_total", legend="prompt"), rate("vllm:generation_tokens_total", legend="generated")], "none"),
        graph("Completions by end", "Per second, by why they ended.", rate("vllm:request_success_total", by="finished_reason"), "reqps", stack=True),
    ]),
    ("Waits", [
        graph("Time to first token", "From arrival to the first token.", quantiles("vllm:time_to_first_token_seconds"), "s"),
        graph("Time between tokens", "Of one completion.", quantiles("vllm:inter_token_latency_seconds"), "s"),
        graph("Whole request", "From arrival to the last token.", quantiles("vllm:e2e_request_latency_seconds"), "s"),
    ]),
    ("Room", [
        graph("Sequences", "Those that hold cache memory, and those that wait for it.", [(f"sum(vllm:num_requests_running{{{M}}})", "running"), (f"sum(vllm:num_requests_waiting{{{M}}})", "waiting")], "none"),
        graph("Cache pools in use", "Share of blocks in some sequence's table, per pool.", (POOL, "{{pool}}"), "percentunit", most=1),
        graph("Refused, cancelled, out of time", "Per second: requests refused by reason, left by their callers, and past their deadline.", [
            rate("baichuan_requests_rejected_total", S, "reason", "refused: {{reason}}"),
            rate("baichuan_requests_cancelled_total", S, "phase", "cancelled: {{phase}}"),
            rate("baichuan_deadline_exceeded_total", S, "phase", "deadline: {{phase}}"),
        ], "reqps"),
    ]),
]

ENGINE = [
    ("A request's life", [
        graph("In the queue", "From arrival to admission.", quantiles("vllm:request_queue_time_seconds"), "s"),
        graph("Prefill", "From admission to the first token.", quantiles("vllm:request_prefill_time_seconds"), "s"),
        graph("Decode", "From the first token to the last.", quantiles("vllm:request_decode_time_seconds"), "s"),
        graph("Time per output token", "Mean of each completion.", quantiles("vllm:request_time_per_output_token_seconds"), "s"),
        graph("Prompt tokens of a request", "How long prompts are.", quantiles("vllm:request_prompt_tokens"), "none"),
        graph("Generated tokens of a completion", "How long answers are.", quantiles("vllm:request_generation_tokens"), "none"),
    ]),
    ("Steps", [
        graph("Duration of a step", "p50 and p95 by what the step did.", quantiles("baichuan_step_duration_seconds", by="phase", quantiles=(0.5, 0.95)), "s"),
        graph("Tokens of a step", "Decodes and prefill chunks together.", quantiles("vllm:iteration_tokens_total"), "none"),
        graph("From cancel to free memory", "Until the blocks of a request nobody waits for are free.", quantiles("baichuan_cancel_to_free_seconds", S), "s"),
    ]),
    ("Caches", [
        graph("Blocks in use by server", "Share of each pool.", (f"baichuan_kv_pool_blocks_used{{{M}}} / (baichuan_kv_pool_blocks_total{{{M}}} > 0)", "{{instance}} {{model_name}} {{pool}}"), "percentunit", most=1),
        graph("Fuller pool", "Usage that routers balance by: the maximum over the pools.", (f"vllm:kv_cache_usage_perc{{{M}}}", "{{instance}} {{model_name}}"), "percentunit", most=1),
        graph("Preemptions", "Sequences paused per second to make room, and computed again.", rate("vllm:num_preemptions_total", by="instance"), "none"),
        graph("Prefix cache hits", "Share of prompt tokens found in the cache.", (f"sum(rate(vllm:prefix_cache_hits_total{{{M}}}{RATE})) / sum(rate(vllm:prefix_cache_queries_total{{{M}}}{RATE}))", "hits"), "percentunit", most=1),
    ]),
    ("Embeddings", [
        graph("Embed calls and inputs", "Per second.", [rate("baichuan_embed_requests_total", legend="calls"), rate("baichuan_embed_inputs_total", legend="inputs")], "reqps"),
        graph("Tokens of an input", "How long embedded texts are.", quantiles("baichuan_embed_input_tokens"), "none"),
    ]),
    ("Telemetry", [
        graph("Spans over OTLP", "Per second: those a collector took, and those dropped by reason. Without an endpoint there are none.", [
            rate("baichuan_otlp_spans_exported_total", S, legend="sent"), rate("baichuan_otlp_spans_dropped_total", S, "reason", "dropped: {{reason}}"),
        ], "none"),
    ]),
    ("What runs", [
        table("Models", "Architecture, type, device, and fingerprint of the weights.", f"baichuan_model_info{{{M}}}"),
        table("Caches", "Blocks of each pool.", f"vllm:cache_config_info{{{M}}}"),
        table("Programs", "Version and commit of each server.", f"baichuan_build_info{{{S}}}"),
    ]),
]

T = f'tenant=~"$tenant",{S}'
TENANTS = [
    ("Use", [
        graph("Requests", "Calls per second by tenant and outcome.", rate("baichuan_tenant_requests_total", T, "tenant, grpc_code"), "reqps", stack=True),
        graph("Tokens", "Per second by tenant, prompts and answers.", rate("baichuan_tenant_tokens_total", T, "tenant, kind"), "none", stack=True),
        graph("Running", "Sequences that hold cache memory.", (f"sum by (tenant) (baichuan_tenant_running{{{T}}})", "{{tenant}}"), "none", stack=True),
        graph("Waiting", "Sequences that wait for it.", (f"sum by (tenant) (baichuan_tenant_waiting{{{T}}})", "{{tenant}}"), "none", stack=True),
    ]),
    ("Limits", [
        graph("Refused", "Requests refused per second, by tenant and reason.", rate("baichuan_tenant_rejected_total", T, "tenant, reason"), "reqps", stack=True),
        graph("Quota in use", "Share of the tokens that a tenant may have per minute.", (f"sum by (tenant) (baichuan_tenant_quota_used_ratio{{{T}}})", "{{tenant}}"), "percentunit", most=1),
    ]),
]

GPU = [
    ("Work", [
        graph("Utilisation", "Share of time in which a kernel ran.", (f"DCGM_FI_DEV_GPU_UTIL{{{G}}} / 100", "{{Hostname}} GPU {{gpu}}"), "percentunit", most=1),
        graph("Memory interface busy", "A decode is bound by this.", (f"DCGM_FI_PROF_DRAM_ACTIVE{{{G}}}", "{{Hostname}} GPU {{gpu}}"), "percentunit", most=1),
        graph("Tensor cores busy", "A prefill is bound by this.", (f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{G}}}", "{{Hostname}} GPU {{gpu}}"), "percentunit", most=1),
        graph("Memory used", "Weights, caches and what a step needs.", (f"DCGM_FI_DEV_FB_USED{{{G}}} * 1048576", "{{Hostname}} GPU {{gpu}}"), "bytes"),
    ]),
    ("Health", [
        graph("Power", "Draw.", (f"DCGM_FI_DEV_POWER_USAGE{{{G}}}", "{{Hostname}} GPU {{gpu}}"), "watt"),
        graph("Temperature", "Of the chip.", (f"DCGM_FI_DEV_GPU_TEMP{{{G}}}", "{{Hostname}} GPU {{gpu}}"), "celsius"),
        graph("Clock", "Of the multiprocessors; a fall under load is throttling.", (f"DCGM_FI_DEV_SM_CLOCK{{{G}}} * 1e6", "{{Hostname}} GPU {{gpu}}"), "hertz"),
        graph("Last Xid", "Number of the driver's last error; 0 is none.", (f"DCGM_FI_DEV_XID_ERRORS{{{G}}}", "{{Hostname}} GPU {{gpu}}"), "none"),
    ]),
]

SERVERS = [
    ("job", "Job", "label_values(baichuan_build_info, job)"),
    ("instance", "Server", 'label_values(baichuan_build_info{job=~"$job"}, instance)'),
]
MODEL = ("model", "Model", 'label_values(vllm:num_requests_running{job=~"$job"}, model_name)')
TENANT = ("tenant", "Tenant", 'label_values(baichuan_tenant_requests_total{job=~"$job"}, tenant)')
HOST = ("host", "Host", "label_values(DCGM_FI_DEV_GPU_UTIL, Hostname)")

DASHBOARDS = {
    "overview": ("Overview", OVERVIEW, [*SERVERS, MODEL]),
    "engine": ("Engine and caches", ENGINE, [*SERVERS, MODEL]),
    "tenants": ("Tenants", TENANTS, [*SERVERS, TENANT]),
    "gpu": ("GPU", GPU, [HOST]),
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panel_json(panel, number, place):
    kind = panel["kind"]
    custom = {}
    if kind == "timeseries":
        custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if panel["stack"] else "none"}}
    defaults = {"unit": panel["unit"], "min": 0, "custom": custom}
    if panel.get("max"):
        defaults["max"] = panel["max"]
    if panel.get("steps"):
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": c, "value": v} for c, v in panel["steps"]]}
    options = {
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"},
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "table": {"showHeader": True},
    }[kind]
    targets = [
        {
            "refId": chr(ord("A") + n), "datasource": SOURCE, "expr": expr, "legendFormat": legend,
            "exemplar": kind == "timeseries" and "histogram_quantile" in expr,
            **({"instant": True, "format": "table"} if kind == "table" else {}),
        }
        for n, (expr, legend) in enumerate(panel["queries"])
    ]
    hidden = {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True}}}
    return {
        "id": number, "type": kind, "title": panel["title"], "description": panel["what"], "datasource": SOURCE,
        "gridPos": place, "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options, "targets": targets,
        **({"transformations": [hidden]} if kind == "table" else {}),
    }


def rows_json(rows):
    panels, y = [], 0
    for title, row in rows:
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y += 1
        per_line = {"stat": 6, "timeseries": 2 if len(row) in (2, 4) else 3, "table": 1}[row[0]["kind"]]
        height = {"stat": 4, "timeseries": 8, "table": 6}[row[0]["kind"]]
        width = 24 // per_line
        for n, panel in enumerate(row):
            place = {"h": height, "w": width, "x": n % per_line * width, "y": y + n // per_line * height}
            panels.append(panel_json(panel, len(panels) + 1, place))
        y += -(-len(row) // per_line) * height
    return panels


def dashboard_json(name):
    title, rows, variables = DASHBOARDS[name]
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}
    lists = [
        {
            "name": name, "label": label, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name},
            "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }
        for name, label, query in variables
    ]
    others = [{"type": "dashboards", "title": "baichuan-serve", "tags": ["baichuan-serve"], "asDropdown": True, "keepTime": True, "includeVars": True}]
    return {
        "uid": f"baichuan-{name}", "title": f"baichuan-serve: {title}", "tags": ["baichuan-serve"], "schemaVersion": 39, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "links": others, "templating": {"list": [source, *lists]}, "annotations": {"list": []}, "panels": rows_json(rows),
    }


def main():
    stale = []
    for name in DASHBOARDS:
        file = HERE / f"{name}.json"
        text = json.dumps(dashboard_json(name), indent=1) + "\n"
        if "--check" in sys.argv[1:]:
            if not file.is_file() or file.read_text() != text:
                stale.append(str(file))
        else:
            file.write_text(text)
    if stale:
        sys.exit(f"not what make.py writes: {', '.join(stale)}")


if __name__ == "__main__":
    main()
