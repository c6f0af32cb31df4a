"""Which device tensors are computed on."""

from __future__ import annotations

import torch

from chemscale.errors import InputError


def choose_device(name: str | None = None) -> torch.device:
    """The device asked for, or a CUDA device where there is one.

    Raises
    ------
    InputError
        No such device, or a GPU where torch sees none.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no kind of device called {name!r}", "cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch {torch.__version__} sees {torch.cuda.device_count()} GPU(s)"
        raise InputError(f"device {name!r}: {seen}", "--device cpu; `chemscale doctor` says what is there")
    return device


def free_memory(device: torch.device | str) -> int:
    """Bytes that are free on a GPU; 0 for a device that is none."""
    device = torch.device(device)
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
