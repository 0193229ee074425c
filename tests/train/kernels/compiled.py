"""Triton kernels compiled for a GPU that is not there, as a launch would compile them."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Binary:
    name: str
    arguments: tuple[str, ...]
    constants: dict[str, Any]
    ptx: str
    cubin: bytes
    shared: int
    """Bytes of shared memory that a program asks for."""

    def widths(self, instruction: str) -> set[int]:
        """Bytes that a thread moves at once with `ld` or `st` to and from global memory."""
        kinds = re.findall(rf"\b{instruction}\.global\S*?(?:\.v(\d))?\.[busf](\d+)\s", self.ptx)
        return {int(lanes or 1) * int(bits) // 8 for lanes, bits in kinds}

    def resources(self) -> dict[str, int]:
        """REG, STACK and LOCAL as cuobjdump tells them."""
        program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.cubin"
            file.write_bytes(self.cubin)
            told = subprocess.run([program, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
        return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told.stdout)}


@contextmanager
def recorded() -> Iterator[list[Binary]]:
    """Within it, a launch compiles its kernel for a Hopper GPU and notes it, and runs nothing; tensors may be meta."""
    binaries: list[Binary] = []
    known: dict[str, Binary] = {}

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "enable_fp_fusion")}
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        assert set(values) == set(kernel.arg_names), kernel
        key = f"{kernel.__name__} {_types(kernel, values)} {options}"
        if key not in known:
            known[key] = _compiled(kernel, values, options)
            binaries.append(known[key])

    original, JITFunction.run = JITFunction.run, run
    try:
        yield binaries
    finally:
        JITFunction.run = original


def _types(kernel: JITFunction, values: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Signature, constants and divisibility by 16 of a launch's arguments, by which Triton tells launches apart."""
    signature, constants, divisible = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value, name = values[parameter.name], parameter.name
        special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            special, value = True, value.storage_offset() * value.element_size()
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if signature[name] != "constexpr" and special and value % 16 == 0:
            divisible[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, divisible


def _compiled(kernel: JITFunction, values: dict[str, Any], options: dict[str, int]) -> Binary:
    signature, constants, divisible = _types(kernel, values)
    binary = triton.compile(ASTSource(kernel, signature, constants, divisible), target=HOPPER, options=options)
    return Binary(
        kernel.__name__,
        tuple(kernel.arg_names),
        constants,
        binary.asm["ptx"],
        binary.asm["cubin"],
        binary.metadata.shared,
    )
