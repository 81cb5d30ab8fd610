"""Checkpoints: safetensors, state dicts of torch.save, and the TorchScript archives that OpenAI published.

Only tensors are unpickled, so loading a file runs none of its code.
"""

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nadpipe.errors import NadpipeError

_OPENAI_BUFFERS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives, in addition to the weights
_UNREADABLE = (
    SafetensorError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    zipfile.BadZipFile,
)


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the tensors of a checkpoint by name. The second value is True for an archive from OpenAI.

    A state dict may be stored under the key `state_dict`, and its names may start with `module.`.
    Raises NadpipeError if the format is not supported, or if the file contains an object that is not a tensor.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path), False
        if _is_torchscript(path):
            state = _read_torchscript(path)
            openai = all(name in state for name in _OPENAI_BUFFERS)
            return {name: value for name, value in state.items() if name not in _OPENAI_BUFFERS}, openai
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NadpipeError(
            f"{path}: not readable ({reason[:160]}); give safetensors, a plain state dict or a TorchScript archive"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise NadpipeError(f"{path}: not a state dict of names and tensors; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in state.items()}, False


def fill_model(model: torch.nn.Module, state: dict[str, Tensor], path: Path, architecture: str) -> None:
    """Load a state dict into a model.

    path, architecture: origin of the state dict and of the model, for messages.
    Raises NadpipeError if a weight is missing, unknown, of another shape or not finite.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    mismatched = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", mismatched)):
        if names:
            raise NadpipeError(
                f"{path}: does not fit {architecture}: {len(names)} weights {problem}, first {names[0]}; "
                "set model.architecture to the checkpoint's own"
            )
    invalid = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if invalid:
        raise NadpipeError(
            f"{path}: {len(invalid)} weights hold NaN or infinity, first {invalid[0]}; replace the broken checkpoint"
        )
    model.load_state_dict(state, strict=False)


def state_sha256(state: dict[str, Tensor]) -> str:
    """Return a hash of all weights as float32, in the order of their names. It does not depend on the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(state[name].float().cpu().numpy()).data)
    return digest.hexdigest()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive without running or compiling its code."""
    with zipfile.ZipFile(path) as archive:
        data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        module = _TensorUnpickler(archive, data.removesuffix("data.pkl")).load()
    state: dict[str, Tensor] = {}
    _collect_tensors(module, "", state)
    return state


class _ScriptedModule:
    """Stand in for any class of a TorchScript archive: attributes, no code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickle tensors, containers and attribute holders; refuse every other class."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _ScriptedModule
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _SCRIPT_LISTS:
            return _keep_values
        raise pickle.UnpicklingError(f"the archive contains {module}.{name}, which is not a tensor")

    def persistent_load(self, identifier: tuple[Any, ...]) -> Tensor:
        _, dtype, key, _, count = identifier
        content = self._archive.read(f"{self._folder}data/{key}")
        return torch.frombuffer(bytearray(content), dtype=dtype)[:count] if count else torch.empty(0, dtype=dtype)


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_SCRIPT_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _keep_values(values: Any, *_: Any) -> Any:
    return values


def _collect_tensors(module: Any, prefix: str, state: dict[str, Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            state[prefix + name] = value
        elif isinstance(value, _ScriptedModule):
            _collect_tensors(value, f"{prefix}{name}.", state)
