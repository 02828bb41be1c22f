"""compose.yaml starts a server, Prometheus and Grafana that find each other."""

import json
import re
import subprocess

import yaml
from pytest import fixture

from server.config import BAKED_IN, ServerConfig
from server.options import options
from tests.deploy.resources import DEPLOY, load

ROOT = DEPLOY.parent
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
PROMETHEUS = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())


def mounts(service):
    """Return the files of this repository that a service is given: target to source."""
    bound = (text.split(":") for text in SERVICES[service]["volumes"] if text.startswith("./"))
    return {target: ROOT / source for source, target, _ in bound}


@fixture
def provisioned():
    """Grafana's data source and provider of dashboards, by the folder that it reads them in."""
    return {
        target.split("/")[-2]: yaml.safe_load(source.read_text())
        for target, source in mounts("grafana").items()
        if "/provisioning/" in target
    }


def test_mounted_files_exist():
    """Every file that a service mounts from this repository is there, and read-only."""
    for service in ("prometheus", "grafana"):
        assert all(path.is_file() for path in mounts(service).values())
        assert all(text.endswith(":ro") for text in SERVICES[service]["volumes"] if "./" in text)


def test_the_server_takes_its_variables():
    """Every variable of the server is an option, and it listens where the ports lead to."""
    known = {variable for option in options() for variable in option.variables}
    defaults = ServerConfig(bundle=BAKED_IN)

    assert set(SERVICES["server"]["environment"]) <= known
    targets = [int(port.rpartition(":")[2]) for port in SERVICES["server"]["ports"]]
    assert targets == [defaults.port, defaults.grpc_port]
    test = SERVICES["server"]["healthcheck"]["test"]
    assert f":{defaults.port}{defaults.health_route}" in test[-1]
    compile(test[-1], "healthcheck", "exec")


def test_the_server_is_as_safe_as_in_kubernetes():
    """The root is read-only, no capability is kept, and /tmp has a size."""
    server = SERVICES["server"]

    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert [text.partition(":")[0] for text in server["tmpfs"]] == ["/tmp"]  # noqa: S108


def test_draining_ends_before_the_kill():
    """What the server takes to drain fits in the grace period, with time to spare."""
    defaults = ServerConfig(bundle=BAKED_IN)
    grace = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))

    assert defaults.drain_delay_s + defaults.drain_timeout_s + 3 <= grace


def test_nothing_is_open_to_the_network():
    """Every port is published on the loopback address alone."""
    ports = [port for service in SERVICES.values() for port in service["ports"]]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_the_server():
    """Prometheus scrapes the server's port, and adds the labels that alerts and panels group by."""
    [scrape] = PROMETHEUS["scrape_configs"]
    [static] = scrape["static_configs"]

    assert static["targets"] == [f"server:{ServerConfig(bundle=BAKED_IN).port}"]
    assert {"namespace", "pod"} <= set(static["labels"])


def test_prometheus_gets_the_alerts_of_kubernetes(tmp_path):
    """What the container makes of the operator's resource are its groups, in Prometheus' own form."""
    shell, flags, script = SERVICES["prometheus"]["entrypoint"]
    [cut, start] = script.replace("$$", "$").splitlines()
    here = mounts("prometheus")["/etc/hloserve/rules.yaml"]
    [written] = re.findall(r">(\S+)$", cut)
    assert PROMETHEUS["rule_files"] == [written]
    assert start.startswith("exec prometheus --config.file=/etc/prometheus/prometheus.yml ")

    cut = cut.replace("/etc/hloserve/rules.yaml", str(here)).replace(written, f"{tmp_path}/rules")
    subprocess.run([shell, flags, cut], check=True)

    [rules] = load("monitoring/rules.yaml")
    assert yaml.safe_load((tmp_path / "rules").read_text()) == rules["spec"]


def test_grafana_shows_the_dashboard(provisioned):
    """Grafana asks Prometheus, and reads the dashboard from where it is mounted."""
    [source] = provisioned["datasources"]["datasources"]
    [provider] = provisioned["dashboards"]["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert source["url"] == "http://prometheus:9090"
    assert source["type"] == "prometheus"
    assert home.startswith(provider["options"]["path"] + "/")
    dashboard = json.loads(mounts("grafana")[home].read_text())
    assert dashboard["title"] == "hloserve"
