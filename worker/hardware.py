"""What this machine computes in."""

import ctypes
import sys
from contextlib import suppress

import torch


def cpu_computes(precision: str) -> bool:
    """Whether the CPU multiplies matrices in bf16 or fp16, rather than by way of fp32.

    By its instructions, on x86-64: oneDNN also takes bf16 where AVX-512 has to emulate it, and is
    slow. Arm is not measured, so it is not told to.
    """
    has = torch.cpu.get_capabilities()
    return any(has.get(f"{unit}_{precision}", False) for unit in ("avx512", "amx"))


def share_interpreter() -> None:
    """Let threads take turns every 0.3 ms, not every 5.

    A search goes to the device and back some hundred times, and each time it waits for its turn:
    behind a thread that takes changes in, that would be half a second.
    """
    sys.setswitchinterval(0.0003)


def release_memory() -> None:
    """Give what is free back to the system: glibc keeps what many small pieces have left."""
    with suppress(AttributeError):  # another libc has no such call
        ctypes.CDLL(None).malloc_trim(0)
