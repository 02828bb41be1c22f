"""Kubernetes and KServe take the manifests, and their times agree with the server's."""

import re

import yaml
from pytest import mark

from server.config import BAKED_IN, ServerConfig
from server.options import options
from tests.deploy.resources import DEPLOY, faults, load

MANIFESTS = sorted(
    str(path.relative_to(DEPLOY))
    for folder in ("kubernetes", "kserve", "monitoring")
    for path in (DEPLOY / folder).glob("*.yaml")
    if path.name != "kustomization.yaml"
)
DEFAULT_GRACE_S = 30  # of Kubernetes, where a manifest says nothing


def of(kind, folder="kubernetes"):
    """Return the one resource of a kind in a folder."""
    [found] = [
        resource
        for name in MANIFESTS
        if name.startswith(f"{folder}/")
        for resource in load(name)
        if resource["kind"] == kind
    ]
    return found


def pod():
    """Return the pod of the Deployment."""
    return of("Deployment")["spec"]["template"]


def runtime(name="runtime"):
    """Return a runtime of KServe."""
    [found] = load(f"kserve/{name}.yaml")
    return found


def containers():
    """Return each container that is the server: the Deployment's and KServe's."""
    runtimes = (runtime(), runtime("runtime-grpc"))
    return [pod()["spec"]["containers"][0], *(r["spec"]["containers"][0] for r in runtimes)]


def environ(container):
    """Return the environment that a container is started with."""
    return {variable["name"]: variable["value"] for variable in container["env"]}


@mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_is_published(name):
    """Every key, type and required field is as the schemas say."""
    assert [fault for resource in load(name) for fault in faults(resource)] == []


def test_faults_are_found():
    """A misspelt key, a wrong type and a missing field are each reported, at any depth."""
    deployment = of("Deployment")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    wrong = runtime()
    del wrong["spec"]["containers"]
    wrong["spec"]["multiModel"] = "no"
    service = load("kserve/service-grpc.yaml")[0]
    service["spec"]["predictor"]["model"]["ports"] = [{"containerPort": "8001"}]
    service["spec"]["predictor"]["canaryPercent"] = 10
    rules = of("PrometheusRule", "monitoring")
    rules["spec"]["groups"][0]["rules"][0]["for"] = 15

    [unexpected] = set(faults(deployment))
    assert unexpected.startswith("Deployment.spec.template.spec: Additional properties are not")
    assert "'terminationGracePeriod' was unexpected" in unexpected
    assert faults(wrong) == [
        "ClusterServingRuntime.spec: 'containers' is missing",
        "ClusterServingRuntime.spec.multiModel: 'no' is not of type bool",
    ]
    where = "InferenceService.spec.predictor"
    assert set(faults(service)) == {
        f"{where}.model.ports[0].containerPort: '8001' is not of type 'integer', 'null'",
        f"{where}: 'canaryPercent' is unexpected",
    }
    assert faults(rules) == [
        "PrometheusRule.spec.groups[0].rules[0].for: 15 is not of type 'string'"
    ]


def test_draining_ends_before_the_kill():
    """What the server takes to drain fits in the grace period, with time to spare."""
    defaults = ServerConfig(bundle=BAKED_IN)
    deployed, *of_kserve = containers()
    grace = pod()["spec"]["terminationGracePeriodSeconds"]
    spare = 3

    assert "HLOSERVE_DRAIN_TIMEOUT_S" not in environ(deployed)
    assert defaults.drain_delay_s + defaults.drain_timeout_s + spare <= grace
    for container in of_kserve:
        shorter = float(environ(container)["HLOSERVE_DRAIN_TIMEOUT_S"])
        assert defaults.drain_delay_s + shorter + spare <= DEFAULT_GRACE_S


def test_a_pod_leaves_before_the_server_stops_accepting():
    """A pod that is not ready is removed from the endpoints while the server still answers."""
    assert "preStop" not in str(pod())
    for container in containers():
        probe = container["readinessProbe"]
        assert probe["periodSeconds"] <= ServerConfig(bundle=BAKED_IN).drain_delay_s


def test_ports_are_the_servers():
    """Ports, the Service's targets and what KServe routes to are what the server listens on."""
    defaults = ServerConfig(bundle=BAKED_IN)
    ports = {port["name"]: port["containerPort"] for port in containers()[0]["ports"]}
    assert ports == {"http": defaults.port, "grpc": defaults.grpc_port}
    assert {port["targetPort"] for port in of("Service")["spec"]["ports"]} == set(ports)

    assert defaults.port == 8080  # KServe's own, where a runtime names none
    assert "ports" not in containers()[1]
    [port] = containers()[2]["ports"]
    assert port == {"name": "h2c", "containerPort": defaults.grpc_port, "protocol": "TCP"}


def test_the_runtime_for_grpc_is_the_other_but_for_its_port():
    """Both runtimes are the same server; probes of one go to the port that Knative lets in."""
    http, grpc = runtime(), runtime("runtime-grpc")
    grpc["metadata"]["name"] = http["metadata"]["name"]
    protocols = [http["spec"].pop("protocolVersions"), grpc["spec"].pop("protocolVersions")]
    assert protocols == [["v1", "v2"], ["grpc-v2"]]
    [port] = grpc["spec"]["containers"][0].pop("ports")
    for probe in ("readinessProbe", "livenessProbe"):
        del http["spec"]["containers"][0][probe]["httpGet"]
        kept = grpc["spec"]["containers"][0][probe]
        [asked] = {"grpc", "tcpSocket"} & set(kept)
        assert kept.pop(asked) == {"port": port["containerPort"]}

    assert grpc == http


def test_services_add_to_their_runtime_what_cannot_clash():
    """KServe merges a service into its runtime, where a second kind of probe would be too many."""
    for name in ("service", "canary", "service-grpc"):
        [service] = load(f"kserve/{name}.yaml")
        assert set(service["spec"]["predictor"]["model"]) == {
            *("modelFormat", "protocolVersion", "storageUri", "env"),
        }


def test_bundles_are_pinned():
    """Wherever a bundle is named its digest is, so that no other is served and none tried first."""
    digest = {"name": "HLOSERVE_REQUIRE_DIGEST"}
    pinned = [containers()[0]["env"]] + [
        load(f"kserve/{name}.yaml")[0]["spec"]["predictor"]["model"]["env"]
        for name in ("service", "canary", "service-grpc")
    ]
    for env in pinned:
        [value] = [v["value"] for v in env if v["name"] == digest["name"]]
        assert re.fullmatch(r"sha256:(DIGEST|NEXT)", value)


def test_variables_are_options():
    """Every variable that a manifest sets is one that the server reads, and none is Vertex AI's."""
    known = {variable for option in options() for variable in option.variables}
    for container in containers():
        assert set(environ(container)) <= {name for name in known if name.startswith("HLOSERVE_")}


def test_containers_are_as_safe_as_the_image():
    """The root is read-only, no container runs as root, and everything written has its own volume."""
    for container in containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108
    [user] = re.findall(
        r"^USER (\d+):\1$", (DEPLOY.parent / "Dockerfile").read_text(), re.MULTILINE
    )
    assert pod()["spec"]["securityContext"]["runAsUser"] == int(user)


def test_resources_find_each_other():
    """Selectors, the autoscaler's target and volumes name what there is."""
    labels = pod()["metadata"]["labels"].items()
    selectors = [
        of("Service")["spec"]["selector"],
        of("Deployment")["spec"]["selector"]["matchLabels"],
        of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of("PodMonitor", "monitoring")["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)
    target = of("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    deployment = of("Deployment")
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # an apply would undo what the autoscaler did
    assert pod()["spec"]["serviceAccountName"] == of("ServiceAccount")["metadata"]["name"]
    [endpoint] = of("PodMonitor", "monitoring")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in containers()[0]["ports"]}
    volumes = {volume["name"] for volume in pod()["spec"]["volumes"]}
    assert {mount["name"] for mount in containers()[0]["volumeMounts"]} == volumes


def test_services_ask_for_the_runtime():
    """Each InferenceService names the format and a protocol that the runtime is for."""
    for name in ("service", "canary", "service-grpc"):
        spec = runtime("runtime-grpc" if name == "service-grpc" else "runtime")["spec"]
        [form] = spec["supportedModelFormats"]
        [service] = load(f"kserve/{name}.yaml")
        model = service["spec"]["predictor"]["model"]
        assert model["modelFormat"] == {key: form[key] for key in ("name", "version")}
        assert model["protocolVersion"] in spec["protocolVersions"]


def test_the_canary_is_the_service_with_another_bundle():
    """The canary differs from the service in its share of the traffic and its bundle, only."""
    [service], [canary] = load("kserve/service.yaml"), load("kserve/canary.yaml")
    assert canary["spec"]["predictor"].pop("canaryTrafficPercent") == 10
    for key in ("storageUri", "env"):
        was, now = (r["spec"]["predictor"]["model"].pop(key) for r in (service, canary))
        assert was != now
    assert canary == service


@mark.parametrize("folder", ["kubernetes-gpu"])
def test_an_overlay_stands_beside_its_base(folder):
    """kustomize takes a base that contains its overlay for a cycle."""
    [kustomization] = yaml.safe_load_all((DEPLOY / folder / "kustomization.yaml").read_text())
    [base] = kustomization["resources"]
    place = (DEPLOY / folder).resolve()
    assert (place / base / "kustomization.yaml").is_file()
    assert not place.is_relative_to((place / base).resolve())


@mark.parametrize("folder", ["kubernetes", "monitoring"])
def test_kustomizations_name_all_there_is(folder):
    """`kubectl apply -k` applies every manifest of the folder, and finds every file."""
    [kustomization] = yaml.safe_load_all((DEPLOY / folder / "kustomization.yaml").read_text())
    there = {path.name for path in (DEPLOY / folder).iterdir() if path.is_file()}
    files = [file for maps in kustomization.get("configMapGenerator", ()) for file in maps["files"]]
    assert {*kustomization["resources"], *files} == there - {"kustomization.yaml"}
    images = {image["name"] for image in kustomization.get("images", ())}
    assert images == ({containers()[0]["image"]} if folder == "kubernetes" else set())
