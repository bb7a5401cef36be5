"""Draws the overview dashboard from what a Prometheus holds, as Grafana would lay it out.

usage: picture.py OUT.png      by tests/deployment/run.sh's environment; see docs/images in the README
"""

import sys

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: E402

from watched import Watched, dashboards, filled  # noqa: E402

INK, PAPER, PANEL = "#ccccdc", "#111217", "#181b1f"
COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#96d98d", "#ffb357"]
WAVES = [(15, 4), (20, 10), (20, 26), (15, 8)]
# Names that fit below a graph; the largest series come first.
LEGEND = 6


def human(value, unit):
    if value == 0:
        return "0"
    if unit == "s":
        return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"
    if unit == "percentunit":
        return f"{value * 100:.0f} %" if value >= 0.01 else f"{value * 100:.2f} %"
    if unit == "reqps":
        return f"{value:.1f}/s" if value < 100 else f"{value:.0f}/s"
    return f"{value / 1000:.1f} k" if value >= 10_000 else f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def legend_of(template, labels):
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def draw(prometheus, seconds, file):
    """Every panel of the overview over the last seconds, as one picture."""
    shown = [panel for panel in dashboards()["overview"]["panels"]]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in shown)
    figure = pyplot.figure(figsize=(14.4, height * 0.28), facecolor=PAPER)
    for panel in shown:
        place = panel["gridPos"]
        box = [place["x"] / 24, 1 - (place["y"] + place["h"]) / height, place["w"] / 24, place["h"] / height]
        if panel["type"] == "row":
            figure.text(box[0] + 0.006, box[1] + box[3] / 2, panel["title"], color=INK, fontsize=10, va="center", weight="bold")
            continue
        frame = figure.add_axes([box[0] + 0.003, box[1] + 0.004, box[2] - 0.006, box[3] - 0.008])
        frame.set(facecolor=PANEL, xticks=[], yticks=[])
        for spine in frame.spines.values():
            spine.set_color("#2a2d33")
        frame.text(0.02, 0.97, panel["title"], color=INK, fontsize=9, va="top", transform=frame.transAxes)
        series = []
        for target in panel["targets"]:
            for labels, points in prometheus.range(filled(target["expr"]), seconds):
                series.append((legend_of(target["legendFormat"], labels), points))
        if panel["type"] == "stat":
            draw_stat(frame, panel, series)
        else:
            axes = figure.add_axes([box[0] + 0.04, box[1] + 0.055, box[2] - 0.055, box[3] - 0.1])
            draw_graph(axes, panel, series)
    figure.savefig(file, dpi=100, facecolor=PAPER)
    pyplot.close(figure)


def draw_stat(frame, panel, series):
    unit, value = panel["fieldConfig"]["defaults"]["unit"], series[0][1][-1][1] if series else float("nan")
    colour = "#73bf69"
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}[step["color"]]
    frame.text(0.5, 0.42, human(value, unit), color=colour, fontsize=22, ha="center", va="center", transform=frame.transAxes)


def draw_graph(axes, panel, series):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    start = min((points[0][0] for _, points in series), default=0)
    # The largest first, so that the legend names what matters.
    series.sort(key=lambda one: -sum(value for _, value in one[1]))
    below = {}
    for number, (name, points) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        times = [at - start for at, _ in points]
        base = [below.get(at, 0.0) if stacked else 0.0 for at, _ in points]
        top = [low + value for low, (_, value) in zip(base, points)]
        below.update({at: high for (at, _), high in zip(points, top)} if stacked else {})
        axes.plot(times, top, color=colour, linewidth=1.1, label=name)
        axes.fill_between(times, base, top, color=colour, alpha=0.25 if stacked else 0.06, linewidth=0)
    axes.set_facecolor(PANEL)
    axes.set_ylim(bottom=0, top=panel["fieldConfig"]["defaults"].get("max"))
    axes.margins(x=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(colors=INK, labelsize=7, length=0)
    axes.grid(color="#2a2d33", linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if series:
        handles, names = axes.get_legend_handles_labels()
        axes.legend(
            handles[:LEGEND], names[:LEGEND], loc="upper center", bbox_to_anchor=(0.47, -0.13), ncols=3, fontsize=6.5, frameon=False, labelcolor=INK,
            handlelength=1.0, columnspacing=1.0, handletextpad=0.4, borderaxespad=0,
        )


def main():
    # Roomier than the test's, so that the picture shows a server at work and one wave that is too much for it.
    settings = ["engine.max_context=512", "engine.max_sequences=16", "engine.max_waiting=8", "engine.cache.context_tokens=3072"]
    with Watched(callers=26, settings=settings) as watched:
        seconds = watched.run(WAVES)
        draw(watched.prometheus, seconds, sys.argv[1])


if __name__ == "__main__":
    main()
