"""Choose a device and its float32 arithmetic."""

import contextlib

import torch

from nadpipe.errors import NadpipeError


def find_device(device: str) -> torch.device:
    """Return the device with this name. `auto` selects a GPU if there is one.

    Raises NadpipeError if this machine cannot use the device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise NadpipeError(f"device: {device} is not usable here ({str(error).splitlines()[0]}); use auto or cpu") from None
    return chosen


def full_float32() -> contextlib.AbstractContextManager[None]:
    """Return a context in which convolutions on a GPU use float32 instead of TF32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
