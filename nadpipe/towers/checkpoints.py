"""Checkpoints: safetensors, state dicts of torch.save, and the TorchScript archives that OpenAI published.

Only tensors are unpickled, so loading a file runs none of its code. Memory is bounded by the size of the file: archives are not
compressed, pickles are short, and tensors together are at most twice as large as the file.
"""

import hashlib
import io
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from nadpipe.errors import NadpipeError, first_line, printable
from nadpipe.store.files import open_regular

LARGEST_CHECKPOINT = 64 * 2**30  # bytes of a file; open_clip's largest model takes 20 GB in float32
LARGEST_PICKLE = 32 * 2**20  # bytes of the pickle in an archive, which describes the tensors; 0.3 MB for RN50x64
MOST_STEPS = 2_000_000  # of a pickle; a state dict takes about 30 per tensor
MOST_ENTRIES = 100_000  # of an archive; one per tensor
_SHARED = 2  # tensors together may be this many times as large as the file, because they may share memory

_OPENAI_BUFFERS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives, in addition to the weights
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int64, torch.int32)
_CODE = re.compile(r"^[^/]+/code/|\.debug_pkl$")  # entries of a TorchScript archive that are never read and may be compressed
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_REFUSED_GLOBALS = ("builtins bytearray",)  # torch's unpickler allows it, and it allocates as much as the file asks for
_LEGACY_PICKLES = 5  # at the start of a file that torch.save wrote before version 1.6


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the tensors of a checkpoint by name. The second value is True for an archive from OpenAI.

    A state dict may be stored under the key `state_dict`, and its names may start with `module.`.
    Raises NadpipeError if the format is not supported, if the file contains an object that is not a tensor, or if it would take
    much more memory than its size.
    """
    with open_regular(path, LARGEST_CHECKPOINT, "checkpoint") as stream:
        size = stream.seek(0, io.SEEK_END)
        if size == 0:
            raise NadpipeError(f"{_name(path)}: empty; download or save the checkpoint again")
        stream.seek(0)
        try:
            state, openai = _read_tensors(path, stream)
        except Exception as error:  # damaged files raise errors of many types
            raise NadpipeError(
                f"{_name(path)}: not readable ({first_line(error)}); "
                "give safetensors, a plain state dict or a TorchScript archive"
            ) from None
    _check_tensors(path, state, size)
    names = {name: name.removeprefix("module.") for name in state}
    if len(set(names.values())) < len(names):
        raise NadpipeError(f"{_name(path)}: names of weights occur with and without `module.`; save model.state_dict()")
    return {names[name]: value.detach() for name, value in state.items()}, openai


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, architecture: str) -> None:
    """Raise NadpipeError if a weight is missing, unknown, of another shape, of another kind of number, or not finite.

    expected: state dict of the model, of which only names, shapes and types count, so it may be on the device `meta`.
    path, architecture: origin of the state dict and of the model, for messages.
    """
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    mismatched = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", mismatched)):
        if names:
            raise NadpipeError(
                f"{_name(path)}: does not fit {printable(architecture)}: {len(names)} weights {problem}, "
                f"first {first_line(names[0])}; set model.architecture to the checkpoint's own"
            )
    for name, value in state.items():
        allowed = _FLOATS if expected[name].is_floating_point() else _INTEGERS
        if value.dtype not in allowed:
            types = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise NadpipeError(
                f"{_name(path)}: weight {first_line(name)} has the type {str(value.dtype).removeprefix('torch.')}; "
                f"save it as {types}"
            )
    invalid = [name for name, value in state.items() if not torch.isfinite(value.to(expected[name].dtype)).all()]
    if invalid:
        raise NadpipeError(
            f"{_name(path)}: {len(invalid)} weights hold NaN or infinity, first {first_line(invalid[0])}; "
            "replace the broken checkpoint"
        )


def state_sha256(state: dict[str, Tensor]) -> str:
    """Return a hash of all weights as float32, in the order of their names. It does not depend on the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(state[name].float().cpu().numpy()).data)
    return digest.hexdigest()


def _name(path: Path) -> str:
    return printable(str(path))


def _read_tensors(path: Path, stream: io.BufferedReader) -> tuple[dict[str, Any], bool]:
    """Return the values of a checkpoint of any format by name, and whether it is an archive from OpenAI."""
    if path.suffix == ".safetensors":
        return load_file(path), False
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            folder = _check_archive(archive, stream.seek(0, io.SEEK_END))
            if f"{folder}constants.pkl" in archive.namelist():
                state = _read_torchscript(archive, folder)
                openai = all(name in state for name in _OPENAI_BUFFERS)
                return {name: value for name, value in state.items() if name not in _OPENAI_BUFFERS}, openai
    else:
        stream.seek(0)
        for _ in range(_LEGACY_PICKLES):
            _check_pickle(stream)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError("not a state dict of names and tensors")
    return state, False


def _check_archive(archive: zipfile.ZipFile, size: int) -> str:
    """Return the folder in a zip archive of torch that contains its pickle.

    Raises ValueError if the archive could take more memory than its size: compressed or overlapping entries, or a long pickle.
    """
    if len(archive.namelist()) > MOST_ENTRIES:
        raise ValueError(f"the archive has {len(archive.namelist())} entries, more than {MOST_ENTRIES}")
    entries = [entry for entry in archive.infolist() if _CODE.search(entry.filename) is None]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("the weights in the archive are compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("the entries of the archive together are larger than the file")
    pickles = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl, or several")
    if pickles[0].file_size > LARGEST_PICKLE:
        raise ValueError(f"the archive's data.pkl has {pickles[0].file_size} bytes, more than {LARGEST_PICKLE}")
    _check_pickle(io.BytesIO(archive.read(pickles[0])))
    return pickles[0].filename.removesuffix("data.pkl")


def _check_pickle(stream: io.BufferedReader | io.BytesIO) -> None:
    """Read over one pickle. Raises ValueError if unpickling could take much more memory than the pickle's size."""
    for step, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if step > MOST_STEPS:
            raise ValueError(f"a pickle has more than {MOST_STEPS} steps")
        if operation.name in _PUTS and int(argument or 0) > MOST_STEPS:
            raise ValueError("a pickle stores an object at an impossible index")
        if operation.name == "GLOBAL" and argument in _REFUSED_GLOBALS:
            raise pickle.UnpicklingError(f"the file contains {argument}, which is not a tensor")


def _check_tensors(path: Path, state: dict[str, Any], size: int) -> None:
    """Raise NadpipeError unless all values are plain tensors in memory, together at most twice as large as the file."""
    for name, value in state.items():
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and not value.is_quantized
        if not plain or value.device.type != "cpu" or value.is_nested:
            raise NadpipeError(f"{_name(path)}: {first_line(name)} is not a plain tensor; save model.state_dict()")
    if sum(value.numel() * value.element_size() for value in state.values()) > _SHARED * size:
        raise NadpipeError(
            f"{_name(path)}: its tensors are larger than the file; save model.state_dict() without expanded tensors"
        )


def _read_torchscript(archive: zipfile.ZipFile, folder: str) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive without running or compiling its code."""
    return dict(_named_tensors(_TensorUnpickler(archive, folder).load()))


class _ScriptedModule:
    """Stand in for any class of a TorchScript archive: attributes, no code."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("a module of the archive has attributes without names")
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


def _named_tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module and of the modules in it by their full names.

    Raises ValueError if a module contains itself.
    """
    waiting: list[tuple[str, Any]] = [("", module)]
    for _ in range(MOST_ENTRIES):
        if not waiting:
            return
        prefix, current = waiting.pop()
        for name, value in vars(current).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _ScriptedModule):
                waiting.append((f"{prefix}{name}.", value))
    raise ValueError("a module of the archive contains itself")
