"""Alerts and the dashboard query metrics that the server exports."""

import itertools
import json
import re

import promql_parser
from prometheus_client.parser import text_string_to_metric_families
from pytest import fixture, mark

from tests.deploy.resources import DEPLOY, load
from tests.serving import serving

# What Prometheus adds, and what histograms are asked by.
TARGET = {"namespace", "job", "pod", "instance"}
# Devices other than CPUs have the first two, and bundles of texts or images the last; the server's
# own tests see them.
ELSEWHERE = {
    "hloserve_device_memory_bytes": set(),
    "hloserve_device_memory_in_use_bytes": {"device"},
    "hloserve_preprocess_duration_seconds_bucket": {"le"},
}

[RULES] = load("monitoring/rules.yaml")
ALERTS = [rule for group in RULES["spec"]["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
EXPRESSIONS = {
    **{alert["alert"]: alert["expr"] for alert in ALERTS},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel["targets"]
    },
}


@fixture(scope="module")
def exported_metrics(classifier_bundle):
    """Each sample that a server exports once it was asked, and its labels."""
    with serving("--bundle", str(classifier_bundle)) as served:
        served.post({"instances": [[1, 2, 3, 4]]})
        page = served.get("/metrics")
    found = dict(ELSEWHERE)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def parsed(expression):
    """Read PromQL as Grafana sends it, with its variables filled in."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def asked(expression):
    """Return each selected metric with the labels that it is selected or grouped by."""
    metrics, labels = set(), set()

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            metrics.add(node.name)
            labels.update(matcher.name for matcher in node.matchers.matchers)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)

    promql_parser.walk(parsed(expression), visit)
    return metrics, labels


@mark.e2e
@mark.parametrize("name", EXPRESSIONS)
def test_what_is_asked_is_exported(name, exported_metrics):
    """Each expression parses, and its metrics and labels are on the server's page."""
    metrics, labels = asked(EXPRESSIONS[name])

    assert metrics
    assert metrics <= set(exported_metrics)
    known = set().union(*(exported_metrics[metric] for metric in metrics))
    assert labels <= known | TARGET


def test_a_metric_that_is_not_exported_is_seen():
    """The look at an expression sees selectors, matchers and groups, however deep they are."""
    deep = 'a / on (x) sum by (pod) (rate(b_total{code="200"}[$__rate_interval])) > 2 * c'

    assert asked(deep) == ({"a", "b_total", "c"}, {"pod", "code"})


def test_alerts_say_what_they_mean():
    """Each alert has a severity and says what it is about, in labels that its result has."""
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert set(alert["annotations"]) == {"summary", "description"}
        grouped = asked(alert["expr"])[1] & TARGET
        named = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        assert named <= (grouped or TARGET)


def test_alerts_that_wait_for_ready_outlast_the_startup_probe():
    """No alert fires while a pod takes as long to become ready as its startup probe allows."""
    [deployment] = [r for r in load("kubernetes/deployment.yaml") if r["kind"] == "Deployment"]
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    allowed_s = probe["periodSeconds"] * probe["failureThreshold"]
    [alert] = [alert for alert in ALERTS if alert["alert"] == "HloserveNotReady"]

    assert alert["for"] == "15m"
    assert allowed_s < 15 * 60
    assert allowed_s < deployment["spec"]["progressDeadlineSeconds"]


def test_panels_lie_side_by_side():
    """No two panels overlap, none leaves the 24 columns, and each has a number of its own."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_panels_ask_for_what_was_chosen():
    """Every panel follows the dashboard's variables, and uses the chosen data source."""
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "namespace", "job"}
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            selectors = re.findall(r"\{(.*?)\}", target["expr"])
            assert set(selectors) == {'namespace=~"$namespace", job=~"$job"'}
