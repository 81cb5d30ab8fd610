"""Where tensors are computed."""

import torch

from nadpipe.errors import NadpipeError


def find_device(device: str) -> torch.device:
    """The device of a name; auto is a GPU if there is one. Raises NadpipeError for one that is not usable here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise NadpipeError(f"device: {device} is not usable here ({str(error).splitlines()[0]}); use auto or cpu") from None
    return chosen
