"""What is measured: each server at its best setting, and what is hoped for.

A cell is a server at a number of connections. The settings were found by trying, on two cores,
the sizes, waits and processes around them. Add a server here to measure it.
"""

import dataclasses
from pathlib import Path

from bench.serving import prepare, workload

ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server and how it is started.

    Attributes:
      name: what it is compared as.
      setting: how it was set, for people.
      model: text_classifier or minilm.
      connections: where this setting is its best; 0 stands for no server, the bare programs.
      command: with {port}.
      path: of its predict route.
      dialect: see `workload`.
      cwd: directory to start it in.
      env: beside this process's own environment.
    """

    name: str
    setting: str
    model: str
    connections: tuple[int, ...]
    command: tuple[str, ...]
    path: str = "/predict"
    dialect: str = "vertex"
    cwd: Path = prepare.ROOT
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """Ours divided by another's: throughput at least, or latency at most, so many times."""

    model: str
    other: str
    figure: str  # per_second or p50_us
    connections: int
    times: float
    ours: str = "hloserve"


GOALS = (
    Goal("text_classifier", "mosec", "per_second", 16, 1.2),
    Goal("text_classifier", "mosec", "per_second", 64, 1.2),
    Goal("text_classifier", "triton", "per_second", 16, 1.2),
    Goal("text_classifier", "triton", "per_second", 64, 1.2),
    Goal("text_classifier", "litserve", "per_second", 16, 8.0),
    Goal("text_classifier", "litserve", "per_second", 64, 8.0),
    Goal("text_classifier", "article", "per_second", 16, 12.0),
    Goal("text_classifier", "article", "per_second", 64, 12.0),
    Goal("text_classifier", "mosec", "p50_us", 1, 1.0),
    Goal("text_classifier", "plain grpc.aio", "per_second", 64, 1.3, "hloserve grpc"),
    Goal("text_classifier", "plain grpc.aio", "per_second", 64, 1.3, "hloserve grpc two processes"),
    Goal("text_classifier", "hloserve grpc", "per_second", 64, 1.5, "hloserve stream"),
    Goal("text_classifier", "hloserve oip", "per_second", 64, 1.0, "hloserve binary"),
    Goal("minilm", "hloserve one process", "per_second", 8, 1.1),
    Goal("minilm", "bare programs", "per_second", 64, 0.95),
    Goal("minilm", "padded to 128", "per_second", 64, 2.0),
)


def hloserve(
    name: str,
    model: str,
    bundle: Path,
    connections,
    processes: int | None = None,
    cwd: Path = prepare.ROOT,
) -> Server:
    """Our server, as it is started by default but for its processes; None for what it chooses itself."""
    more = () if processes is None else ("--processes", str(processes))
    settings = {None: "as it comes", 1: "one process", 2: "two processes"}
    return Server(
        name=name,
        setting=settings[processes],
        model=model,
        connections=connections,
        command=(prepare.PYTHON, "-m", "server", "--bundle", str(bundle), *more),
        cwd=cwd,
        env={"AIP_HTTP_PORT": "{port}", "HLOSERVE_GRPC_PORT": "-1"},
    )


def _protocol(name: str, dialect: str, path: str, *more: str) -> Server:
    """Our server, asked in another way."""
    port, other = ("HLOSERVE_GRPC_PORT", "AIP_HTTP_PORT")
    if dialect not in workload.GRPC:
        port, other = other, port
    return Server(
        name=f"hloserve {name}",
        setting="one process, but where its name says otherwise",
        model="text_classifier",
        connections=(64,),
        command=(
            *(prepare.PYTHON, "-m", "server", "--host", "127.0.0.1"),
            *("--bundle", str(prepare.BUNDLES["text_classifier"])),
            *("--processes", "1"),
            *more,
        ),
        path=path,
        dialect=dialect,
        env={port: "{port}", other: "0"},
    )


def protocols() -> list[Server]:
    """Our other ways in, and a plain gRPC server that asks the same model a row at a time."""
    call = "/inference.GRPCInferenceService/ModelInfer"
    stream = "/inference.GRPCInferenceService/ModelStreamInfer"
    return [
        _protocol("oip", "oip", "/v2/models/text_classifier/infer"),
        _protocol("binary", "binary", "/v2/models/text_classifier/infer"),
        _protocol("grpc", "grpc", call),
        _protocol("grpc two processes", "grpc", call, "--processes", "2"),
        _protocol("grpc ngh2", "grpc", call, "--grpc-front", "ngh2"),
        _protocol("stream", "stream", stream),
        _protocol("stream ngh2", "stream", stream, "--grpc-front", "ngh2"),
        Server(
            name="plain grpc.aio",
            setting="unbatched",
            model="text_classifier",
            connections=(64,),
            command=(
                *(prepare.PYTHON, "-m", "bench.serving.servers.plain_grpc"),
                *("{port}", str(prepare.BUNDLES["text_classifier"])),
            ),
            path=call,
            dialect="grpc",
        ),
    ]


def _mosec(setting: str, connections, **env: str) -> Server:
    command = ("-m", "bench.serving.servers.mosec_server", "--log-level", "error", "--port")
    return Server(
        name="mosec",
        setting=setting,
        model="text_classifier",
        connections=connections,
        command=(str(prepare.PEERS_PYTHON), *command, "{port}"),
        env={**ONE_THREAD, **env},
    )


def _triton(setting: str, connections, batching: str, instances: int) -> Server:
    folder = prepare.triton_repository(connections[0], batching, instances)
    return Server(
        name="triton",
        setting=setting,
        model="text_classifier",
        connections=connections,
        command=prepare.triton_command(folder),
        path="/v2/models/text_classifier/infer",
        dialect="oip",
        env={**ONE_THREAD, **prepare.triton_env()},
    )


def peers() -> list[Server]:
    """The peers on the article's classifier."""
    python = str(prepare.PEERS_PYTHON)
    found = [
        _mosec("unbatched, one worker", (1,), BENCH_BATCH="1"),
        _mosec("one worker, batches of 16 within 1 ms", (16,), BENCH_BATCH="16"),
        _mosec(
            "two workers, batches of 16 within 1 ms", (64,), BENCH_BATCH="16", BENCH_WORKERS="2"
        ),
        Server(
            name="litserve",
            setting="one API process, one worker, batches of 16 within 1 ms, fast_queue",
            model="text_classifier",
            connections=(16, 64),
            command=(python, "-m", "bench.serving.servers.litserve_server", "{port}"),
            env={**ONE_THREAD, "BENCH_BATCH": "16"},
        ),
        Server(
            name="litserve",
            setting="unbatched",
            model="text_classifier",
            connections=(1,),
            command=(python, "-m", "bench.serving.servers.litserve_server", "{port}"),
            env={**ONE_THREAD, "BENCH_BATCH": "1"},
        ),
        Server(
            name="article",
            setting="gunicorn, 4 sync workers",
            model="text_classifier",
            connections=(1, 16, 64),
            # Without a timeout, since a worker that was paused between cells looks like one that hangs.
            command=(
                *(python, "-m", "gunicorn", "--workers=4", "--timeout=0"),
                *("--bind=127.0.0.1:{port}", "bench.serving.servers.article:app"),
            ),
        ),
    ]
    if prepare.has_triton():
        found += [
            _triton("unbatched, one instance", (1,), "", 1),
            _triton(
                "dynamic batching without delay, one instance", (16, 64), "dynamic_batching { }", 1
            ),
        ]
    return found


def bare(model: str, bundle: Path, name: str = "bare programs") -> Server:
    """The programs of a bundle without a server."""
    return Server(
        name=name,
        setting="no server",
        model=model,
        connections=(0,),
        command=(prepare.PYTHON, "-m", "bench.serving.bare", str(bundle), "{bodies}"),
    )


def defaults(connections: tuple[int, ...] = (8,)) -> list[Server]:
    """Our server as it starts by itself, with one process and with two.

    Args:
      connections: of MiniLM; the classifier has 1, 16 and 64.
    """
    settings = {None: "hloserve", 1: "hloserve one process", 2: "hloserve two processes"}
    return [
        hloserve(name, model, prepare.BUNDLES[model], counts, processes)
        for model, counts in (("text_classifier", (1, 16, 64)), ("minilm", connections))
        for processes, name in settings.items()
    ]


def deciding() -> list[Server]:
    """What decides how many processes are the default: ours, and the fastest peers."""
    return [*defaults(), *(peer for peer in peers() if peer.name in {"mosec", "triton"})]


def servers(against: Path | None) -> list[Server]:
    """All that is measured, ours first."""
    classifier = prepare.BUNDLES["text_classifier"]
    minilm, padded = prepare.BUNDLES["minilm"], prepare.BUNDLES["minilm128"]
    found = [
        *defaults((1, 8, 64)),
        *protocols(),
        *peers(),
        bare("text_classifier", classifier),
        hloserve("padded to 128", "minilm", padded, (64,)),
        bare("minilm", minilm),
    ]
    if against is not None:
        name = f"hloserve in {against.name}"
        found.append(hloserve(name, "text_classifier", classifier, (1, 16, 64), cwd=against))
        found.append(hloserve(name, "minilm", minilm, (1, 64), cwd=against))
    return found
