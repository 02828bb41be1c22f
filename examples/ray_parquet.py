"""Score Parquet files with Ray Data, into Parquet files; a row that does not fit has an error instead.

    python examples/ray_parquet.py --bundle bundle/ --input rows/ --output scored/ --actors 2

Rows have a column `id`, and a column for each input of the bundle. It runs on the cluster of RAY_ADDRESS, or
starts Ray on this machine.
"""

import argparse
import os

import ray.data

from hloserve.ray import HloservePredictor
from runtime import open_bundle


def main(argv: list[str] | None = None) -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True, help="a folder that all nodes have")
    parser.add_argument("--input", required=True, help="Parquet file, or folder of them")
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=1, help="of each actor")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    arguments = parser.parse_args(argv)
    bundle = os.path.abspath(arguments.bundle)
    rows = ray.data.read_parquet(os.path.abspath(arguments.input))
    scored = rows.map_batches(
        HloservePredictor,
        fn_constructor_kwargs={
            "bundle": bundle,
            "require_digest": f"sha256:{open_bundle(bundle).digest}",
            "passthrough": ["id"],
            "error_column": "error",
        },
        batch_size=256,
        compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        num_cpus=arguments.cpus,
        num_gpus=arguments.gpus,
    )
    scored.write_parquet(os.path.abspath(arguments.output))


if __name__ == "__main__":
    main()
