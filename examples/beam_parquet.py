"""Score Parquet files with Apache Beam, into Parquet files and a folder of rows that were refused.

    python examples/beam_parquet.py --bundle bundle/ --input 'rows/*.parquet' --output scored/ --runner DirectRunner

Rows have a column `id`, and a column for each input of the bundle, which is a classifier. On Dataflow:
--runner DataflowRunner, with the bundle, the input and the output in Cloud Storage. docs/batch.md has the command.
"""

import argparse
import json
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from hloserve.beam import HloserveModelHandler, raise_refused

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("bundle", pa.string()),
    ]
)


def keyed(row: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the key of a row, and its inputs."""
    return row["id"], {name: value for name, value in row.items() if name != "id"}


def written(result: tuple[Any, Any]) -> dict[str, Any]:
    """Return what is written of a prediction."""
    key, found = result
    return {
        "id": key,
        "label": found.inference["label"],
        "confidence": float(found.inference["confidence"]),
        "bundle": found.model_id,
    }


def refusal(dead: Any) -> str:
    """Return what is written of a row that was refused: a dead letter has it and the error."""
    (key, result), _ = dead
    return json.dumps({"id": key, "error": result.inference.error})


def main(argv: list[str] | None = None) -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True, help="a folder, or gs://BUCKET/FOLDER")
    parser.add_argument("--input", required=True, help="pattern of Parquet files")
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--device", help="cpu or cuda")
    arguments, others = parser.parse_known_args(argv)
    handler = HloserveModelHandler(arguments.bundle, device=arguments.device)
    inference = RunInference(KeyedModelHandler(handler).with_postprocess_fn(raise_refused))
    with beam.Pipeline(options=PipelineOptions(others)) as pipeline:
        rows = pipeline | beam.io.ReadFromParquet(arguments.input) | "Key" >> beam.Map(keyed)
        scored, dead = rows | inference.with_exception_handling()
        _ = (
            scored
            | "Write" >> beam.Map(written)
            | beam.io.WriteToParquet(
                f"{arguments.output}/scored", SCHEMA, file_name_suffix=".parquet"
            )
        )
        _ = (
            dead.failed_postprocessing[0]
            | "Refusal" >> beam.Map(refusal)
            | beam.io.WriteToText(f"{arguments.output}/refused", file_name_suffix=".jsonl")
        )
        # A batch that the device failed on: none is lost silently.
        _ = dead.failed_inferences | "Fail" >> beam.Map(fail)


def fail(dead: Any) -> None:
    """End the pipeline on an error that is no row's."""
    _, (_, error, _) = dead
    raise RuntimeError(error)


if __name__ == "__main__":
    main()
