"""Plots of what the serving and the retrieval benchmark wrote, for docs/benchmarks.md.

    python -m benchmarks.plots FOLDER [--out docs/benchmarks]

Draws what FOLDER holds of `serving-*.json`, `speed-N.json`, `growth-N.json`, `compressed-N.json`,
and says which of them it did not find.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

DPI = 120
# Told apart in grey and by people who do not see red or green (Okabe and Ito).
OURS, OTHERS, BARE = "#0072b2", "#999999", "#d55e00"
Report = Mapping[str, Any]


def colour(name: str) -> str:
    if name.startswith("bare"):
        return BARE
    return OURS if name.lower().startswith(("ours", "slimp")) else OTHERS


def bars(axes: Any, values: Mapping[str, float], title: str, form: str) -> None:
    """Draw one bar a name, the first at the top, each with its figure."""
    names = list(values)[::-1]
    drawn = axes.barh(names, [values[n] for n in names], color=[colour(n) for n in names])
    axes.bar_label(drawn, fmt=form, padding=3, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def serving(report: Report) -> Figure:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    # A server that answered nothing has no median.
    rates = {name: found["per_second"] for name, found in report["saturated"].items()}
    medians = {name: found.get("median_ms", 0.0) for name, found in report["alone"].items()}
    bars(left, rates, f"images a second, {report['clients']} clients", "%.1f")
    bars(right, medians, "median ms, one client", "%.1f")
    figure.suptitle(f"Serving, {report['variant']}: {report['machine']}", fontsize=9)
    return figure


def speed(report: Report) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    (one, thousand), (filtered, recall) = figure.subplots(2, 2)
    rows, shares = report["rows"], report["filtered"]
    for axes, batch in ((one, "batch 1"), (thousand, "batch 1000")):
        named = {f"{name} ({row['recall']:.3f})": row[batch] for name, row in rows.items()}
        bars(axes, named, f"queries a second, {batch}", "%.0f")
        axes.tick_params(axis="y", labelsize=7)
    x = [100 * row["share"] for row in shares]
    for name, tint in (("exact", BARE), ("approximate", OURS)):
        filtered.plot(x, [row[f"{name} ms"] for row in shares], "o-", color=tint, label=name)
        recall.plot(x, [row[f"{name} recall"] for row in shares], "o-", color=tint, label=name)
    filtered.set(xscale="log", yscale="log", xlabel="% eligible", ylabel="ms a query")
    recall.set(xscale="log", xlabel="% eligible", ylabel="recall@10")
    filtered.legend(fontsize=8)
    figure.suptitle(
        f"Retrieval, {report['size']:,} x 384 (recall@10): {report['machine']}", fontsize=9
    )
    return figure


def growth(rows: Sequence[Report], compressed: Report | None) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    drawn = (("ms", "ms a query"), ("MB", "MB"), ("build s", "s to build"))
    sizes = [row["size"] for row in rows]
    for axes, (key, label) in zip(panels, drawn, strict=False):
        if f"exact {key}" in rows[0]:
            exact = [row[f"exact {key}"] for row in rows]
            axes.plot(sizes, exact, "o-", color=BARE, label="exact")
        near = [row[f"near {key}"] for row in rows]
        axes.plot(sizes, near, "o-", color=OURS, label="approximate")
        if compressed is not None:
            last = compressed["rows"][-1]["ms"] if key == "ms" else compressed[key]
            axes.plot(compressed["size"], last, "s", color=OTHERS, label=compressed["factory"])
        axes.set(xscale="log", yscale="log", xlabel="vectors", ylabel=label)
        axes.legend(fontsize=8)
    axes = figure.axes[3]
    axes.plot(sizes, [row["recall"] for row in rows], "o-", color=OURS)
    if compressed is not None:
        last = compressed["rows"][-1]["10 nearest in 100"]
        axes.plot(compressed["size"], last, "s", color=OTHERS)
    axes.set(xscale="log", xlabel="vectors", ylabel="recall@10", ylim=(0.0, 1.02))
    figure.suptitle(f"How retrieval grows: {rows[-1]['machine']}", fontsize=9)
    return figure


def drawn_from(folder: Path) -> dict[str, Figure]:
    """Return the figures that the folder's files allow, by file name; print which are missing."""

    def read(pattern: str) -> list[Any]:
        found = [json.loads(path.read_text()) for path in folder.glob(pattern)]
        if not found:
            print(f"{folder / pattern}: not there, not drawn")
        return sorted(found, key=lambda report: report.get("size", 0))

    figures = {}
    for report in read("serving-*.json"):
        figures[f"serving-{report['variant']}.png"] = serving(report)
    for report in read("speed-*.json"):
        figures[f"retrieval-{report['size']}.png"] = speed(report)
    rows, compressed = read("growth-*.json"), read("compressed-*.json")
    if rows:
        figures["growth.png"] = growth(rows, compressed[-1] if compressed else None)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn_from(options.folder).items():
        figure.savefig(options.out / name, dpi=DPI)
        print(options.out / name)


if __name__ == "__main__":
    main()
