"""The deployment's files agree with the service and with each other."""

import json
import re
import subprocess
from pathlib import Path

from starlette.testclient import TestClient

from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings

PROJECT = Path(__file__).parents[2]
COMPOSE = PROJECT / "docker-compose.yml"
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


def test_a_demo_that_is_there_is_never_made_again(tmp_path: Path) -> None:
    """An erasure removes its vectors' files until the service ends."""
    script = re.search(r"- \|\n(.*?)\n\n", COMPOSE.read_text(), re.DOTALL)
    assert script is not None
    (tmp_path / "bin").mkdir()
    made = tmp_path / "bin" / "slimp"
    made.write_text('#!/bin/sh\nmkdir -p "$3" && echo made > "$3/made"\n')
    made.chmod(0o755)
    text = script[1].replace("/data", str(tmp_path / "data"))
    start = ["sh", "-euc", text]
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    subprocess.run(start, env=environment, check=True)
    demo = tmp_path / "data" / "demo"
    assert (demo / "made").exists()
    (demo / "made").unlink()
    (demo / "catalogue").mkdir()
    (demo / "catalogue" / "catalogue.sqlite").write_bytes(b"acknowledged")
    subprocess.run(start, env=environment, check=True)
    assert [path.name for path in demo.iterdir()] == ["catalogue"]
    assert (demo / "catalogue" / "catalogue.sqlite").read_bytes() == b"acknowledged"


def test_the_container_is_given_the_time_that_admitted_requests_have() -> None:
    grace = re.search(r"stop_grace_period: (\d+)s", COMPOSE.read_text())
    assert grace is not None
    assert int(grace[1]) > Settings().request_timeout_s


def test_images_that_are_not_ours_are_of_one_release() -> None:
    images = re.findall(r"^    image: (\S+)$", COMPOSE.read_text(), re.MULTILINE)
    foreign = [image for image in images if not image.startswith("slimp-")]
    assert [image.partition(":")[0] for image in foreign] == ["prom/prometheus", "grafana/grafana"]
    for image in foreign:
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", image), image


def test_nobody_logs_in_to_grafana_and_everybody_there_only_looks() -> None:
    said = dict(re.findall(r"^      (GF_\w+): \"?(\w+)\"?$", COMPOSE.read_text(), re.MULTILINE))
    assert {name: value for name, value in said.items() if "ANALYTICS" not in name} == {
        "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
        "GF_AUTH_DISABLE_LOGIN_FORM": "true",
        "GF_AUTH_BASIC_ENABLED": "false",
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
    }


def test_prometheus_sends_the_key_of_the_file_that_the_site_names() -> None:
    scraped = (PROJECT / "deploy" / "prometheus.yml").read_text()
    file = "/run/secrets/slimp"
    job = f"    authorization:\n      type: Bearer\n      credentials_file: {file}\n"
    assert job in scraped
    assert f"      - ${{SLIMP_SCRAPE_KEY_FILE:-/dev/null}}:{file}:ro\n" in COMPOSE.read_text()


def test_a_service_without_keys_answers_a_scrape_whose_key_is_empty() -> None:
    with TestClient(create_app(Settings(log_level="error"))) as client:
        assert client.get("/metrics", headers={"Authorization": "Bearer"}).status_code == 200
