"""The deployment's files agree with the service and with each other."""

import json
import re
from pathlib import Path

from starlette.testclient import TestClient

from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings

PROJECT = Path(__file__).parents[2]
DASHBOARD = PROJECT / "deploy" / "grafana" / "dashboards" / "slimp.json"


def test_every_metric_of_the_dashboard_is_one_of_the_services() -> None:
    with TestClient(create_app(Settings(log_level="error"))) as client:
        exposed = client.get("/metrics").text
    known = set(re.findall(r"^# TYPE (\w+) ", exposed, re.MULTILINE))
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"slimp_\w+", target["expr"])
    }
    assert len(asked) >= 10
    assert asked <= known
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_labels_of_the_dashboard_are_the_metrics_own() -> None:
    metrics = Metrics()
    labels = {
        metric._name: set(metric._labelnames)
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            grouped = re.findall(r"sum by \(([^)]*)\) \(rate\((slimp_\w+)", target["expr"])
            for names, metric in grouped:
                base = re.sub(r"_(bucket|sum|count|total)$", "", metric)
                assert set(names.split(", ")) - {"le"} <= labels[base], target["expr"]
