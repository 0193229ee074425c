"""The CPU that rows are trained on, as precisely as their bytes depend on it."""

import platform
from functools import cache


@cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that change how a CPU rounds, as short names."""
    lines = _cpu_info()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    named = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "avx512": ("avx512f",), "avx2": ("avx2",)}
    return tuple(name for name, alternatives in named.items() if any(flag in flags for flag in alternatives))


def cpu_name() -> str:
    """The CPU's model, and its instruction sets."""
    models = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model} ({' '.join(cpu_features()) or platform.machine()})"


def _cpu_info() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.readlines()
    except OSError:
        return []
