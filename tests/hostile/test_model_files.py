"""Damaged and hostile checkpoints are refused in one line that names the file, run no code and take little memory."""

import contextlib
import copy
import gzip
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nadpipe.errors import NadpipeError
from nadpipe.towers.checkpoints import check_fit, read_state

EXTRA_MEMORY = 2**30  # bytes that a case may take in addition
WEIGHT = "visual.conv1.weight"


@contextlib.contextmanager
def limited_memory():
    """Let this process take at most a GiB more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + EXTRA_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Evil:
    """Write a file when unpickled."""

    marker = ""

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


def saved(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def rezipped(content, change=lambda name, data: data, compression=zipfile.ZIP_STORED, more=()):
    """Return a zip archive with changed entries; None leaves an entry out."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for name, data in more:
            new.writestr(name, data)
    return stream.getvalue()


def with_pickle(content, pickled, **options):
    """Return an archive of torch with another pickle."""
    return rezipped(content, lambda name, data: pickled if name.endswith("/data.pkl") else data, **options)


def safetensors(header, data=b"\0" * 64, length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "empty": b"",
    "one byte": b"\0",
    "only a length": struct.pack("<Q", 4),
    "length 0": safetensors(b""),
    "length of 2^63": safetensors(b"{}", length=2**63),
    "length of 2^64 - 1": safetensors(b"{}", length=2**64 - 1),
    "length of 90 MB": safetensors(b"{}", length=90 * 10**6),
    "length beyond the file": safetensors({"a": entry()}, length=4000),
    "header is no JSON": safetensors(b"{'a': 1}"),
    "header is not UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "header is a list": safetensors([1, 2]),
    "header is a number": safetensors(3),
    "header is nested deeply": safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "entry is a number": safetensors({"a": 3}),
    "entry without shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 16]}}),
    "unknown type": safetensors({"a": entry("F33")}),
    "type is a number": safetensors({"a": entry(32)}),
    "negative offset": safetensors({"a": entry(offsets=(-16, 0))}),
    "offsets beyond the file": safetensors({"a": entry(shape=(4000,), offsets=(0, 16_000))}),
    "offsets in reverse": safetensors({"a": entry(offsets=(16, 0))}),
    "overlapping offsets": safetensors({"a": entry(), "b": entry()}, b"\0" * 16),
    "a hole": safetensors({"a": entry(), "b": entry(offsets=(32, 48))}, b"\0" * 48),
    "shape unlike offsets": safetensors({"a": entry(shape=(5,))}, b"\0" * 16),
    "negative shape": safetensors({"a": entry(shape=(-4,))}, b"\0" * 16),
    "shape overflows": safetensors({"a": entry(shape=(2**62, 2**62))}, b"\0" * 16),
    "shape of 2^40": safetensors({"a": entry(shape=(2**40,))}, b"\0" * 16),
    "bytes after the tensors": safetensors({"a": entry()}, b"\0" * 99),
    "a pickle": pickle.dumps({"a": 1}),
    "text": b"<html>404 not found</html>",
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_broken_safetensors_file_is_refused(tmp_path, tiny_clip, tally, case):
    (tmp_path / "w.safetensors").write_bytes(SAFETENSORS[case])
    refused(tmp_path / "w.safetensors", tiny_clip, tally)


def refused(path, clip, tally):
    """Check that a checkpoint is refused in one line with its name, for its own sake and not because memory ran out."""
    with limited_memory(), pytest.raises(NadpipeError) as error:
        state, _ = read_state(path)
        check_fit(clip.state_dict(), state, path, "tiny")
    message = str(error.value)
    tally("model files", "\n" not in message)
    assert "\n" not in message
    assert repr(str(path))[1:-1] in message
    assert ";" in message
    assert not any(word in message for word in ("MemoryError", "Type-check"))
    return message


REASONS = {
    "compressed storages": "compressed",
    "bomb": "compressed",
    "expanded": "its tensors are larger than the file",
    "long pickle": "more than 2000000 steps",
    "memo of 2^31": "impossible index",
    "bytearray of 10^11": "bytearray",
    "bytearray of 10^11 in an old file": "bytearray",
    "names with and without module": "with and without `module.`",
    "infinite as float32": "NaN or infinity",
}
UNTOUCHED = (
    "tensor of 10^11",
    "storage of 10^11 in an old file",
)  # torch asks for memory that it does not write before it fails


def changed(state, **values):
    return {**state, **{name.replace("__", "."): value for name, value in values.items()}}


def quantized(value):
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


def bomb(state):
    """Return a compressed archive of a few MB whose storage of zeros takes 4 GiB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with zipfile.ZipFile(io.BytesIO(saved({WEIGHT: torch.zeros(4)}))) as whole:
            for name in whole.namelist():
                if not name.endswith("/data/0"):
                    archive.writestr(name, whole.read(name))
        with archive.open("archive/data/0", "w", force_zip64=True) as storage:
            for _ in range(64):
                storage.write(bytes(2**20))
    return stream.getvalue()


def legacy_with(pickled):
    """Return a file in the format of torch before 1.6, with another pickle of the state dict."""
    old = saved({}, _use_new_zipfile_serialization=False)
    head = io.BytesIO(old)
    for _ in range(3):
        pickle.Unpickler(head).load()
    return old[: head.tell()] + pickled + pickle.dumps([], 2)


def huge_storage():
    """Return the legacy pickle of a tensor whose storage has 10^11 numbers."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", 10**11, None) if isinstance(item, Storage) else None

    class Rebuilt:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, (Storage(), 0, (4,), (1,), False, {}))

    stream = io.BytesIO()
    Pickler(stream, 2).dump({WEIGHT: Rebuilt()})
    return stream.getvalue()


def pickled_call(name, argument):
    """Return a pickle that calls a global function with a number."""
    module, _, function = name.rpartition(".")
    return (
        b"\x80\x02}X\x01\x00\x00\x00ac"
        + f"{module}\n{function}\n".encode()
        + b"\x8a\x05"
        + argument.to_bytes(5, "little")
        + b"\x85Rs."
    )


def cases_of_pickles(state, marker):
    """Return the content of checkpoints by name."""
    Evil.marker = str(marker)
    whole = saved(state)
    cases = {f"cut at {share}": whole[: int(len(whole) * share)] for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)}
    cases |= {f"ends {count} bytes early": whole[:-count] for count in (1, 10, 22, 100)}
    cases |= {
        "wrong magic": b"XX" + whole[2:],
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "zeros": bytes(4096),
        "compressed as a whole": gzip.compress(whole, 1),
        "archive in an archive": rezipped(saved({}), lambda name, data: None, more=[("w.pt", whole)]),
        "empty archive": b"PK\x05\x06" + bytes(18),
        "no pickle": rezipped(whole, lambda name, data: None if name.endswith("data.pkl") else data),
        "two pickles": rezipped(whole, more=[("other/data.pkl", b".")]),
        "a storage missing": rezipped(whole, lambda name, data: None if name.endswith("/data/3") else data),
        "a storage cut": rezipped(whole, lambda name, data: data[:-4] if name.endswith("/data/3") else data),
        "no storages": rezipped(whole, lambda name, data: None if "/data/" in name else data),
        "compressed storages": rezipped(whole, compression=zipfile.ZIP_DEFLATED),
        "bomb": bomb(state),
        "code as an object": saved({**state, "evil": Evil()}),
        "code beside the state": saved({"state_dict": state, "evil": Evil()}),
        "code in a plain pickle": pickle.dumps(Evil()),
        "code in a pickle of protocol 5": pickle.dumps({"a": Evil()}, 5),
        "code in an old file": saved({**state, "evil": Evil()}, _use_new_zipfile_serialization=False),
        "code in the pickle of an archive": with_pickle(whole, pickle.dumps(Evil(), 2)),
        "whole module": saved(torch.nn.Linear(2, 2)),
        "pickle is empty": with_pickle(whole, b""),
        "pickle without end": with_pickle(whole, b"\x80\x02}"),
        "pickle of unknown steps": with_pickle(whole, b"\x80\x02\xff."),
        "pickle stops at once": with_pickle(whole, b"."),
        "memo of 2^31": with_pickle(whole, b"\x80\x02}r\xff\xff\xff\x7f."),
        "bytearray of 10^11": with_pickle(whole, pickled_call("builtins.bytearray", 10**11)),
        "bytearray of 10^11 in an old file": legacy_with(pickled_call("builtins.bytearray", 10**11)),
        "tensor of 10^11": with_pickle(whole, pickled_call("torch.Tensor", 10**11)),
        "text of 4 GiB": with_pickle(whole, b"\x80\x02X\xff\xff\xff\xff."),
        "long pickle": with_pickle(whole, b"\x80\x02(" + b"]" * 3_000_000 + b"t."),
        "nested lists": with_pickle(whole, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "storage of 10^11 in an old file": legacy_with(huge_storage()),
        "old file cut": saved(state, _use_new_zipfile_serialization=False)[:-5000],
        "old file, first half": saved(state, _use_new_zipfile_serialization=False)[:3000],
        "None": saved(None),
        "a number": saved(3),
        "a text": saved("weights"),
        "a list": saved(list(state.values())),
        "a tensor": saved(torch.zeros(3)),
        "nothing in it": saved({}),
        "numbers as names": saved(dict(enumerate(state.values()))),
        "None as a name": saved({None: torch.zeros(1), **state}),
        "state_dict is None": saved({"state_dict": None}),
        "state_dict is a list": saved({"state_dict": [1]}),
        "state dict in a state dict": saved({"state_dict": {"state_dict": state}}),
        "a value is None": saved(changed(state, logit_scale=None)),
        "a value is a text": saved(changed(state, logit_scale="1")),
        "a value is a list": saved(changed(state, logit_scale=[1.0])),
        "a value is a number": saved(changed(state, logit_scale=1.0)),
        "sparse": saved({**state, WEIGHT: state[WEIGHT].to_sparse()}),
        "quantized": saved({**state, WEIGHT: quantized(state[WEIGHT])}),
        "without memory": saved({**state, WEIGHT: state[WEIGHT].to("meta")}),
        "expanded": saved({**state, "more": torch.zeros(1).expand(10**10)}),
        "names with and without module": saved({**state, f"module.{WEIGHT}": state[WEIGHT]}),
        "another prefix": saved({f"model.{name}": value for name, value in state.items()}),
        "name with a new line": saved({**state, "a\nb": torch.zeros(1)}),
        "name of 100,000 characters": saved({**state, "a" * 100_000: torch.zeros(1)}),
        "empty name": saved({**state, "": torch.zeros(1)}),
        "a weight missing": saved({name: value for name, value in state.items() if name != WEIGHT}),
        "one more": saved({**state, "more": torch.zeros(1)}),
        "transposed": saved({**state, WEIGHT: state[WEIGHT].transpose(0, 3)}),
        "flat": saved({**state, WEIGHT: state[WEIGHT].flatten()}),
        "no numbers": saved({**state, WEIGHT: torch.zeros(0)}),
        "one axis more": saved({**state, WEIGHT: state[WEIGHT][None]}),
        "NaN": saved({**state, WEIGHT: state[WEIGHT] * torch.nan}),
        "infinity": saved(changed(state, logit_scale=torch.tensor(torch.inf))),
        "minus infinity": saved(changed(state, logit_scale=torch.tensor(-torch.inf))),
        "infinite as float32": saved(changed(state, logit_scale=torch.tensor(1e300, dtype=torch.float64))),
        "count of batches as float": saved({**state, "visual.bn1.num_batches_tracked": torch.tensor(1.0)}),
    }
    types = ("complex64", "complex128", "int8", "uint8", "int16", "int32", "int64", "bool", "float8_e4m3fn", "float8_e5m2")
    return cases | {f"weight as {name}": saved({**state, WEIGHT: state[WEIGHT].to(getattr(torch, name))}) for name in types}


NAMES_OF_PICKLES = list(cases_of_pickles({WEIGHT: torch.zeros(2, 2, 2, 2), "logit_scale": torch.tensor(1.0)}, "/dev/null"))


@pytest.fixture(scope="module")
def contents(tiny_clip, tmp_path_factory):
    marker = tmp_path_factory.mktemp("evil") / "marker"
    return cases_of_pickles(copy.deepcopy(tiny_clip.state_dict()), marker), marker


@pytest.mark.parametrize("case", NAMES_OF_PICKLES)
def test_a_damaged_or_hostile_checkpoint_is_refused(tmp_path, tiny_clip, tally, contents, case):
    cases, marker = contents
    (tmp_path / "w.pt").write_bytes(cases[case])
    message = refused(tmp_path / "w.pt", tiny_clip, tally)
    assert REASONS.get(case, "") in message
    assert ("allocate" in message) == (case in UNTOUCHED)
    assert not marker.exists(), "code of the file ran"


SAFE_TYPES = ["complex64", "int8", "uint8", "int16", "int64", "bool", "float8_e4m3fn"]


@pytest.mark.parametrize("name", SAFE_TYPES)
def test_safetensors_of_another_type_are_refused(tmp_path, tiny_clip, tally, name):
    state = {key: value.clone().contiguous() for key, value in tiny_clip.state_dict().items()}
    state[WEIGHT] = state[WEIGHT].to(getattr(torch, name)).contiguous()
    save_file(state, tmp_path / "w.safetensors")
    assert f"has the type {name}; save it as float16" in refused(tmp_path / "w.safetensors", tiny_clip, tally)


def scripted(module_pickle, storages=(), more=()):
    """Return a TorchScript archive with a pickle of its module."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("m/data.pkl", module_pickle)
        archive.writestr("m/constants.pkl", pickle.dumps((), 2))
        for key, data in storages:
            archive.writestr(f"m/data/{key}", data)
        for name, data in more:
            archive.writestr(name, data)
    return stream.getvalue()


# a module of class __torch__.M with one attribute; the rest of the pickle makes its value
HEAD, TAIL = b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00a", b"sb."


def tensor(storage="FloatStorage", key=b"0", count=4, offset=0, size=4, stride=1):
    """Return the steps of a pickle that make a tensor."""
    numbers = [b"J" + struct.pack("<i", value) for value in (count, offset, size, stride)]
    identifier = (
        b"(X\x07\x00\x00\x00storagectorch\n" + storage.encode() + b"\nX\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu"
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + identifier[1:]
        + numbers[0]
        + b"tQ"
        + numbers[1]
        + numbers[2]
        + b"\x85"
        + (numbers[3] + b"\x85\x89}tR")
    )


FLOATS = [("0", bytes(16))]
SCRIPTED = {
    "another weight": scripted(HEAD + tensor() + TAIL, FLOATS),
    "a global of os": scripted(HEAD + b"cos\nsystem\n" + TAIL),
    "a call of os": scripted(HEAD + b"cposix\nsystem\nX\x05\x00\x00\x00touch\x85R" + TAIL),
    "builtins": scripted(HEAD + b"c__builtin__\neval\n" + TAIL),
    "a storage missing": scripted(HEAD + tensor() + TAIL),
    "a storage of another length": scripted(HEAD + tensor() + TAIL, [("0", bytes(15))]),
    "a storage too short": scripted(HEAD + tensor(size=99) + TAIL, FLOATS),
    "unknown storage": scripted(HEAD + tensor("EvilStorage") + TAIL, FLOATS),
    "complex storage": scripted(HEAD + tensor("ComplexFloatStorage") + TAIL, FLOATS),
    "expanded": scripted(HEAD + tensor(size=2**31 - 1, stride=0) + TAIL, FLOATS),
    "negative stride": scripted(HEAD + tensor(stride=-1) + TAIL, FLOATS),
    "negative size": scripted(HEAD + tensor(size=-4) + TAIL, FLOATS),
    "negative offset": scripted(HEAD + tensor(offset=-4) + TAIL, FLOATS),
    "key of another folder": scripted(HEAD + tensor(key=b"/") + TAIL, FLOATS),
    "contains itself": scripted(b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00" + TAIL),
    "not a module": scripted(b"\x80\x02]."),
    "a number": scripted(b"\x80\x02K\x01."),
    "state is a list": scripted(b"\x80\x02c__torch__\nM\n)\x81]b."),
    "number as attribute": scripted(b"\x80\x02c__torch__\nM\n)\x81}K\x01K\x01sb."),
    "memo of 2^31": scripted(b"\x80\x02}r\xff\xff\xff\x7f."),
    "pickle in an extension": scripted(HEAD + b"\x82\x01" + TAIL),
    "pickle without end": scripted(HEAD),
    "compressed pickle": rezipped(scripted(HEAD + tensor() + TAIL, FLOATS), compression=zipfile.ZIP_DEFLATED),
    "two pickles": scripted(HEAD + tensor() + TAIL, FLOATS, [("n/data.pkl", b".")]),
}


@pytest.mark.parametrize("case", SCRIPTED)
def test_a_hostile_torchscript_archive_is_refused(tmp_path, tiny_clip, tally, case):
    (tmp_path / "w.pt").write_bytes(SCRIPTED[case])
    refused(tmp_path / "w.pt", tiny_clip, tally)


def many_entries():
    """Return an archive whose entries all are the same bytes: together 64 times as large as the file."""
    content = bytearray(rezipped(saved({}), more=[(f"archive/data/{number}", bytes(2**16)) for number in range(64)]))
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        first = archive.getinfo("archive/data/0").header_offset
        start = archive.start_dir
        while content[start : start + 4] == b"PK\x01\x02":
            name_length, extra, comment = struct.unpack_from("<3H", content, start + 28)
            if content[start + 46 : start + 46 + name_length].startswith(b"archive/data/"):
                struct.pack_into("<I", content, start + 42, first)
            start += 46 + name_length + extra + comment
        kept = archive.getinfo("archive/data/1").header_offset
        directory = bytes(content[archive.start_dir :])
    end = bytearray(directory)
    struct.pack_into("<I", end, len(end) - 6, kept)
    return bytes(content[:kept]) + bytes(end)


def test_overlapping_entries_of_an_archive_are_refused(tmp_path, tiny_clip, tally):
    (tmp_path / "w.pt").write_bytes(many_entries())
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) > 10 * (tmp_path / "w.pt").stat().st_size
    assert "together are larger than the file" in refused(tmp_path / "w.pt", tiny_clip, tally)


def make_sparse(path):
    path.touch()
    os.truncate(path, 2**40)


PLACES = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "missing": lambda path: None,
    "of 1 TiB": make_sparse,
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("place", PLACES)
def test_a_checkpoint_that_is_no_file_is_refused(tmp_path, tiny_clip, tally, place, suffix):
    path = tmp_path / f"w{suffix}"
    PLACES[place](path)
    refused(path, tiny_clip, tally)


@pytest.mark.parametrize("name", ["a" * 300 + ".pt", "new\nline.pt", "a/b.pt", "nul\0.pt", "surrogate\udcff.pt"])
def test_a_checkpoint_with_an_impossible_name_is_refused(tmp_path, tiny_clip, tally, name):
    refused(tmp_path / name, tiny_clip, tally)


def test_the_pieces_of_these_cases_are_valid_by_themselves(tmp_path, tiny_clip):
    """A case could be refused for another reason than its own."""
    state = tiny_clip.state_dict()
    for content in (saved(state), rezipped(saved(state)), saved(state, _use_new_zipfile_serialization=False)):
        (tmp_path / "w.pt").write_bytes(content)
        read, openai = read_state(tmp_path / "w.pt")
        check_fit(state, read, tmp_path / "w.pt", "tiny")
        assert not openai
    (tmp_path / "s.pt").write_bytes(scripted(HEAD + tensor() + TAIL, FLOATS))
    assert list(read_state(tmp_path / "s.pt")[0]) == ["a"]
    (tmp_path / "a.safetensors").write_bytes(safetensors({"a": entry()}, bytes(16)))
    assert read_state(tmp_path / "a.safetensors")[0]["a"].shape == (4,)
    (tmp_path / "l.pt").write_bytes(legacy_with(pickle.dumps({}, 2)))
    assert read_state(tmp_path / "l.pt") == ({}, False)
