"""Which precision a device is fast in, and how far a precision may move descriptors."""

import torch

from worker.hardware import cpu_computes

_FIRST_WITH_BF16 = (8, 0)
"""Compute capability of Ampere. Before it bf16 is emulated: that is exact as well, and slow."""

LOWEST_COSINE = 0.999
"""The bound on drift: no picture's descriptor may be further from its fp32 one.

Descriptors of replicas and references in different precisions meet in one hot set. Within the bound
a cosine of two descriptors moves by 0.045 at most for each of them that is not fp32, the length of
the difference of unit vectors at that cosine, and in practice by far less, since rounding knows no
direction. `copysieve bench describe` measures.
"""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def automatic(device: torch.device) -> str:
    """The precision that `auto` stands for: bf16 where the hardware computes in it, else fp32.

    Never fp16, though older GPUs are fast in it: weights that overflow there fail every upload.
    """
    if device.type == "cuda":
        computes = torch.cuda.get_device_capability(device) >= _FIRST_WITH_BF16
        return "bf16" if computes or torch.version.hip is not None else "fp32"
    return "bf16" if cpu_computes("bf16") else "fp32"
