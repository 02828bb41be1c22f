"""The device that programs run on: found by name, and what it says of itself.

Stands on what JAX promises alone; what it does not promise is in `program`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from runtime.errors import DeviceUnavailable, first_line

Device = Any

# As `which` of `find_devices`: every device that there is.
ALL = "all"

_DRIVER = Path("/proc/driver/nvidia/version")
_MEMORY = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/proc/cpuinfo")
# Features whose name in Linux is not LLVM's without underscores.
_LLVM_NAMES = (
    *(("lm", "64bit"), ("pni", "sse3"), ("sse4_1", "sse4.1"), ("sse4_2", "sse4.2")),
    *(("sse4_2", "crc32"), ("lahf_lm", "sahf"), ("abm", "lzcnt"), ("sha_ni", "sha")),
    *(("pclmulqdq", "pclmul"), ("3dnowprefetch", "prfchw"), ("bmi1", "bmi"), ("rdrand", "rdrnd")),
    *(("amx_tile", "amx-tile"), ("amx_int8", "amx-int8"), ("amx_bf16", "amx-bf16")),
    ("user_shstk", "shstk"),
)


def find_device(wanted: object | None) -> Device:
    """Return the device to serve from.

    Args:
      wanted: None for JAX's default device, which `jax_default_device` can name, a platform
        ("cpu", "cuda"), a platform and an index ("cuda:1"), or a jax device.

    Raises:
      DeviceUnavailable: it is not there. There is no fall-back to another platform.
    """
    wanted = _or_default(wanted)
    if isinstance(wanted, jax.Device):
        return wanted
    if wanted is not None and not isinstance(wanted, str):
        raise DeviceUnavailable(
            "device: expected None, a name such as 'cpu' or 'cuda:1', or a jax device, got "
            f"{type(wanted).__name__}"
        )
    platform, _, index = (wanted or "").partition(":")
    reason = "no such index"
    try:
        devices = jax.local_devices(backend=platform or None)
        if (index or "0").isdecimal() and int(index or 0) < len(devices):
            return devices[int(index or 0)]
    except RuntimeError as error:
        reason = first_line(error)
    raise DeviceUnavailable(
        f"device {wanted or 'default'!r}: expected one of {_available()}, got none ({reason})"
    )


def find_devices(wanted: object | None, which: str = "") -> tuple[Device, ...]:
    """Return the devices to serve from, in the order in which they are asked for.

    Args:
      wanted: as for `find_device`; with `which`, the platform whose devices are meant.
      which: nothing for the one device of `wanted`; indexes such as "0,1"; or `ALL`, which is one
        device where `wanted` names one.

    Raises:
      DeviceUnavailable: one is not there, or they are of several kinds: programs compiled for
        one kind do not run on another.
    """
    first = find_device(first_named(wanted, which))
    if not which or (which == ALL and _index_of(wanted)):
        return (first,)
    local = jax.local_devices(backend=first.platform)
    if which == ALL:
        found = tuple(local)
    else:
        platform = platform_of(first)
        found = tuple(find_device(f"{platform}:{index}") for index in which.split(","))
    kinds = {device_kind(device): named(device) for device in reversed(found)}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} {kind}" for kind, name in sorted(kinds.items()))
        raise DeviceUnavailable(
            f"devices {which}: expected devices of one kind, got {listed}; name those of one kind, "
            "such as --devices 0,1"
        )
    return found


def first_named(wanted: object | None, which: str) -> object | None:
    """Return the first of `find_devices`, as `find_device` takes it. No device is touched."""
    if which in ("", ALL):
        return wanted
    return f"{_platform_named(wanted)}:{which.partition(',')[0]}"


def _platform_named(wanted: object | None) -> str:
    wanted = _or_default(wanted)
    return platform_of(wanted) if isinstance(wanted, jax.Device) else str(wanted or "")


def _index_of(wanted: object | None) -> bool:
    """Whether a device is meant, and not any of a platform."""
    wanted = _or_default(wanted)
    return isinstance(wanted, jax.Device) or ":" in str(wanted or "")


def named(wanted: object | None) -> str:
    """Return the name that `find_device` knows a device by; empty for JAX's default."""
    wanted = _or_default(wanted)
    if isinstance(wanted, jax.Device):
        return f"{platform_of(wanted)}:{jax.local_devices(backend=wanted.platform).index(wanted)}"
    return str(wanted or "")


def _or_default(wanted: object | None) -> object | None:
    """Return the device asked for, or else the one that the caller has made JAX's default."""
    return jax.config.jax_default_device if wanted is None else wanted


def platform_of(device: Device) -> str:
    """Name a device's platform as jax.export does: cpu, cuda, rocm, tpu."""
    if device.platform == "gpu":
        return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return str(device.platform)


def device_kind(device: Device) -> str:
    """Name a device's model, such as `cpu` or `NVIDIA H200`."""
    return str(device.device_kind)


def _available() -> list[str]:
    try:
        return [f"{platform_of(d)}:{d.id}" for d in jax.local_devices()]
    except RuntimeError:
        return []


def memory_in_use(device: Device) -> int | None:
    """Return the bytes in use on a device, None where it does not say."""
    statistics = device.memory_stats()
    return None if statistics is None else int(statistics["bytes_in_use"])


def live_arrays(platform: str) -> int:
    """Count the arrays on a platform's devices that this process still holds."""
    return len(jax.live_arrays(platform))


def free_memory(device: Device) -> int | None:
    """Return the bytes that a device, or this machine for a CPU, has left; None if unknown."""
    statistics = device.memory_stats()
    if statistics is not None and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"]) - int(statistics["bytes_in_use"])
    return host_memory_free() if device.platform == "cpu" else None


def params_memory(device: Device) -> int | None:
    """Return the bytes that there are for params on a device; None if unknown.

    On a CPU they are used in the file's own pages, which make way, or are memory already. So
    what is free for the moment says little, and what there is at all is the limit.
    """
    return host_memory() if device.platform == "cpu" else free_memory(device)


def host_memory() -> int | None:
    """Return the bytes that this machine, or the container, has at all; None if unknown."""
    limit = _lines(_CGROUP / "memory.max")
    container = int(limit[0]) if limit and limit[0] != "max" else None
    return _smallest(_system_memory("MemTotal"), container)


def host_memory_free() -> int | None:
    """Return the bytes that this machine, or the container, has left; None if unknown."""
    return _smallest(_system_memory("MemAvailable"), _container_memory())


def _smallest(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


def _system_memory(wanted: str) -> int | None:
    for line in _lines(_MEMORY):
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0]) * 1024
    return None


def _container_memory() -> int | None:
    """Return what a container may still take, where it has a limit (cgroup 2)."""
    limit, used = _lines(_CGROUP / "memory.max"), _lines(_CGROUP / "memory.current")
    if not limit or not used or limit[0] == "max":
        return None
    # Files that were read, a bundle's among them, count as used but make way for other uses.
    counts = dict(line.split() for line in _lines(_CGROUP / "memory.stat"))
    files = sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(int(limit[0]) - int(used[0]) + files, 0)


def driver_versions(device: Device) -> Mapping[str, str]:
    """Return the versions below JAX: `runtime` as the device has it, `driver` where there is one."""
    found = {}
    if device.platform != "cpu":
        runtime = str(device.client.platform_version).split("\n")
        found["runtime"] = ", ".join(line for line in runtime if line)
    for line in _lines(_DRIVER) if platform_of(device) == "cuda" else []:
        if line.startswith("NVRM version:"):
            found["driver"] = line.partition(":")[2].strip()
    return found


def cpu_model() -> str:
    """Return the name of this machine's CPU; empty if unknown."""
    return next(iter(_cpu_fields("model name")), "")


def cpu_features() -> frozenset[str] | None:
    """Return the instruction sets of this machine's CPU by LLVM's names; None where it is no x86.

    Linux has names of its own for some of them (arch/x86/include/asm/cpufeatures.h).
    """
    flags = {flag for line in _cpu_fields("flags") for flag in line.split()}
    if not flags:
        return None
    plain = {flag.replace("_", "") for flag in flags} | flags
    return frozenset(plain | {llvm for linux, llvm in _LLVM_NAMES if linux in flags})


def _cpu_fields(wanted: str) -> list[str]:
    """Return the values of a field of /proc/cpuinfo, each once."""
    found: dict[str, None] = {}
    for line in _lines(_CPUS):
        name, _, value = line.partition(":")
        if name.strip() == wanted:
            found[value.strip()] = None
    return list(found)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
