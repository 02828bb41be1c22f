"""GPUs that bundles are checked for and deployed to: names, memory, and what XLA has to know of them.

The standard library alone: deploying and refusing need no jax. Not every GPU is here, and one that is not is
refused by name: XLA compiles for a compute capability that no card has without a word.

What stands here of A100, H100 and H200 is from the descriptions that XLA has of them, taken on such cards (openxla/xla,
`xla/backends/gpu/target_config/specs`: a100_sxm_40, a100_sxm_80, h100_sxm, h200). XLA has none of T4 and L4. Theirs is
from NVIDIA's data sheets and tuning guides (Turing TU104, Ada AD104), and what CUDA's deviceQuery prints of
them; as XLA has it of a card it leaves the rates of single units out, as its own of A6000 does.
"""

import dataclasses
import math

# What JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
MEMORY_FRACTION = 0.75
MEMORY_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class UnknownCard(ValueError):
    """No card of this name is known; the message lists those that are."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU.

    Attributes:
      name: as options take it.
      title: as JAX names such a device.
      vertex: its type on Vertex AI, as `--accelerator-type`.
      google_cloud: its type on Compute Engine and Kubernetes Engine.
      memory_bytes: that CUDA reports; a driver's version makes some hundred MB of difference.
      capability: compute capability, major and minor.
      accelerated: whether XLA uses what its generation alone has, such as sm_90a.
      multiprocessors: number of them.
      lanes: float32 units of a multiprocessor.
      threads: of a multiprocessor at most.
      shared_bytes: shared memory of a multiprocessor.
      block_shared_bytes: of it, what a block may ask for.
      bandwidth: of the memory, bytes a second.
      l2_bytes: second-level cache.
      clock_ghz: at most.
    """

    name: str
    title: str
    vertex: str
    google_cloud: str
    memory_bytes: int
    capability: tuple[int, int]
    accelerated: bool = False
    multiprocessors: int
    lanes: int
    threads: int
    shared_bytes: int
    block_shared_bytes: int
    bandwidth: int
    l2_bytes: int
    clock_ghz: float

    def usable_bytes(self, fraction: float = MEMORY_FRACTION) -> int:
        """Return the bytes that JAX takes for arrays and programs.

        Args:
          fraction: of the memory.
        """
        return math.floor(self.memory_bytes * fraction)

    @property
    def target_config(self) -> str:
        """Return the card as XLA reads it, a GpuTargetConfigProto in protobuf's text format.

        Where something is missing XLA divides by zero.
        """
        major, minor = self.capability
        extension = "ACCELERATED_FEATURES" if self.accelerated else "NONE"
        fields = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49152,
            "shared_memory_per_core": self.shared_bytes,
            "threads_per_core_limit": self.threads,
            "core_count": self.multiprocessors,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2147483647,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.l2_bytes,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": self.memory_bytes,
            "shared_memory_per_block_optin": self.block_shared_bytes,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
            "thread_dim_limit_x": 1024,
            "thread_dim_limit_y": 1024,
            "thread_dim_limit_z": 64,
            "device_vendor": '"NVIDIA Corporation"',
            "name": f'"{self.title}"',
        }
        lines = [f"  {field}: {value}" for field, value in fields.items()]
        capability = (
            f"  cuda_compute_capability {{ major: {major} minor: {minor} "
            f"feature_extension: {extension} }}"
        )
        return "\n".join(
            [
                *("gpu_device_info {", *lines, capability, "}"),
                'platform_name: "CUDA"',
                f'device_description_str: "{self.title}"',
            ]
        )


CARDS = {
    card.name: card
    for card in (
        Card(
            name="t4",
            title="Tesla T4",
            vertex="NVIDIA_TESLA_T4",
            google_cloud="nvidia-tesla-t4",
            memory_bytes=15_655_829_504,
            capability=(7, 5),
            multiprocessors=40,
            lanes=64,
            threads=1024,
            shared_bytes=65_536,
            block_shared_bytes=65_536,
            bandwidth=320_064_000_000,
            l2_bytes=4_194_304,
            clock_ghz=1.59,
        ),
        Card(
            name="l4",
            title="NVIDIA L4",
            vertex="NVIDIA_L4",
            google_cloud="nvidia-l4",
            memory_bytes=23_583_784_960,
            capability=(8, 9),
            multiprocessors=58,
            lanes=128,
            threads=1536,
            shared_bytes=102_400,
            block_shared_bytes=101_376,
            bandwidth=300_096_000_000,
            l2_bytes=50_331_648,
            clock_ghz=2.04,
        ),
        Card(
            name="a100",
            title="NVIDIA A100-SXM4-40GB",
            vertex="NVIDIA_TESLA_A100",
            google_cloud="nvidia-tesla-a100",
            memory_bytes=42_298_834_944,
            capability=(8, 0),
            multiprocessors=108,
            lanes=64,
            threads=2048,
            shared_bytes=167_936,
            block_shared_bytes=166_912,
            bandwidth=1_555_200_000_000,
            l2_bytes=41_943_040,
            clock_ghz=1.41,
        ),
        Card(
            name="a100-80gb",
            title="NVIDIA A100-SXM4-80GB",
            vertex="NVIDIA_A100_80GB",
            google_cloud="nvidia-a100-80gb",
            memory_bytes=85_100_068_864,
            capability=(8, 0),
            multiprocessors=108,
            lanes=64,
            threads=2048,
            shared_bytes=167_936,
            block_shared_bytes=166_912,
            bandwidth=2_039_040_000_000,
            l2_bytes=41_943_040,
            clock_ghz=1.41,
        ),
        Card(
            name="h100",
            title="NVIDIA H100 80GB HBM3",
            vertex="NVIDIA_H100_80GB",
            google_cloud="nvidia-h100-80gb",
            memory_bytes=84_942_979_072,
            capability=(9, 0),
            accelerated=True,
            multiprocessors=132,
            lanes=128,
            threads=2048,
            shared_bytes=233_472,
            block_shared_bytes=232_448,
            bandwidth=3_352_320_000_000,
            l2_bytes=52_428_800,
            clock_ghz=1.98,
        ),
        Card(
            name="h200",
            title="NVIDIA H200",
            vertex="NVIDIA_H200_141GB",
            google_cloud="nvidia-h200-141gb",
            memory_bytes=151_397_597_184,
            capability=(9, 0),
            accelerated=True,
            multiprocessors=132,
            lanes=128,
            threads=2048,
            shared_bytes=233_472,
            block_shared_bytes=232_448,
            bandwidth=4_800_000_000_000,
            l2_bytes=52_428_800,
            clock_ghz=1.98,
        ),
    )
}


def card_named(name: str) -> Card:
    """Return a card by its name here, on Vertex AI or on Google Cloud.

    Raises:
      UnknownCard: there is none of this name.
    """
    for card in CARDS.values():
        if name in (card.name, card.vertex, card.google_cloud):
            return card
    raise UnknownCard(f"expected a card among {', '.join(CARDS)}, got {name!r}")


def size(count: int) -> str:
    """Write a number of bytes for people, such as `15.7 GB`, with three digits."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
