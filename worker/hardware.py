"""What this machine computes in."""

import ctypes
from contextlib import suppress

import torch


def cpu_computes(precision: str) -> bool:
    """Whether the CPU multiplies matrices in bf16 or fp16, rather than by way of fp32.

    By its instructions, on x86-64: oneDNN also takes bf16 where AVX-512 has to emulate it, and is
    slow. Arm is not measured, so it is not told to.
    """
    has = torch.cpu.get_capabilities()
    return any(has.get(f"{unit}_{precision}", False) for unit in ("avx512", "amx"))


def release_memory() -> None:
    """Give what is free back to the system: glibc keeps what many small pieces have left."""
    with suppress(AttributeError):  # another libc has no such call
        ctypes.CDLL(None).malloc_trim(0)
