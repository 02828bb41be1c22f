"""A plan and its lowered programs, written as a staged bundle with its manifest."""

import datetime as dt
import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

from export import goldens as golden_rules
from export.errors import ExportError
from export.jaxprs import floating_dtypes
from export.lowering import Lowered
from export.outputs import Key
from export.plan import Plan
from runtime.entries import Argument, Golden, Params, ProgramEntry
from runtime.manifest import Manifest
from runtime.preprocessing.raw_goldens import write_raw
from runtime.raw_inputs import Stage
from runtime.release import version
from runtime.signature import join_bucket_name
from runtime.tensors import Array
from runtime.writer import BundleWriter

# safetensors files above this are split, so that no single file becomes unwieldy.
SHARD_BYTES = 5 * 1000**3

# Stands until verification has looked; an unverified bundle keeps it.
_MAYBE_MIXED = ("rows may depend on each other: it was allowed, and nothing has looked yet",)


def write(writer: BundleWriter, plan: Plan, programs: Mapping[Key, Lowered]) -> Manifest:
    """Write programs, params and goldens; return the manifest, not yet written.

    What is known only once the programs have run (verified, drift, row_mixing) is still empty.
    """
    spec, signature = plan.spec, plan.signature
    names = [axis.name for axis in signature.axes]
    entries = []
    for key, lowered in programs.items():
        bucket = join_bucket_name(names, key[1], key[0])
        entries.append(
            ProgramEntry(
                batch=key[0],
                axes=dict(zip(names, key[1], strict=True)),
                exported=writer.write(f"programs/{bucket}.exported", lowered.exported),
                stablehlo=writer.write(f"programs/{bucket}.stablehlo", lowered.stablehlo),
                custom_calls=lowered.custom_calls,
            )
        )
    return Manifest(
        name=spec.name,
        version=spec.version,
        created=_now(),
        exporter=_versions(next(iter(programs.values())), plan),
        platforms=tuple(spec.platforms),
        verified=(),
        x64=plan.x64,
        matmul_precision=spec.matmul_precision,
        signature=signature,
        buckets=tuple(spec.buckets),
        output_format=plan.output_format,
        tolerances=tolerances(plan),
        drift={},
        row_mixing=_MAYBE_MIXED if spec.allow_row_mixing else (),
        params=_write_params(writer, plan),
        programs=tuple(entries),
        goldens=_write_goldens(writer, plan),
        preprocess=_write_stages(writer, plan),
        passthrough=tuple(spec.passthrough),
        page_sample=spec.page_sample,
    )


def _write_stages(writer: BundleWriter, plan: Plan) -> tuple[Stage, ...]:
    for path, data in plan.raw.files:
        writer.write(path, data)
    return plan.raw.stages


def _write_params(writer: BundleWriter, plan: Plan) -> Params:
    shards: list[dict[str, Array]] = [{}]
    for name, array in plan.arguments.items():
        if shards[-1] and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = array
    total = len(shards)
    paths = [
        "params.safetensors" if total == 1 else f"params-{i + 1:05}-of-{total:05}.safetensors"
        for i in range(total)
    ]
    files = [writer.write_tensors(path, shard) for path, shard in zip(paths, shards, strict=True)]
    arguments = [
        Argument(name=name, dtype=a.dtype.name, shape=tuple(a.shape), file=path)
        for path, shard in zip(paths, shards, strict=True)
        for name, a in shard.items()
    ]
    return Params(files=tuple(files), arguments=tuple(arguments), entries=plan.packing.entries)


def _write_goldens(writer: BundleWriter, plan: Plan) -> tuple[Golden, ...]:
    found = []
    for i, ((sizes, inputs, expected), rows) in enumerate(
        zip(plan.goldens, plan.raw_goldens, strict=True)
    ):
        tensors = {f"input/{s.name}": a for s, a in zip(plan.signature.inputs, inputs, strict=True)}
        tensors |= {
            f"output/{s.name}": a for s, a in zip(plan.signature.outputs, expected, strict=True)
        }
        file = writer.write_tensors(f"golden/{i}.safetensors", tensors)
        raw = None if rows is None else writer.write(f"golden/{i}.jsonl", write_raw(rows))
        found.append(Golden(axes=sizes, rows=len(inputs[0]), file=file, raw=raw))
    return tuple(found)


def tolerances(plan: Plan) -> dict[str, Any]:
    """Return the accepted difference for each platform and output."""
    dtypes = floating_dtypes(next(iter(plan.traced.values())).jaxpr)
    precision = plan.spec.matmul_precision
    return {
        platform: {
            output.name: golden_rules.tolerance(
                platform,
                dtypes[i],
                output,
                [expected[i] for _, _, expected in plan.goldens],
                precision,
            )
            for i, output in enumerate(plan.signature.outputs)
        }
        for platform in plan.spec.platforms
    }


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None and not epoch.isdigit():
        raise ExportError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {epoch!r}")
    now = dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def _versions(lowered: Lowered, plan: Plan) -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    return {
        "hloserve": version(),
        **packages,
        "stablehlo": lowered.stablehlo_version,
        "calling_convention": str(lowered.calling_convention),
        "serialization": str(lowered.serialization),
        **plan.raw.libraries,
    }
