"""Reading pickles without executing them: harmless objects, attacks by every route, damaged and unusual files."""

import argparse
import collections
import copyreg
import datetime
import enum
import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.models.test_creation import in_cache
from tests.support.hostile_files import BuildPayload, HiddenPayload, Payload, save_as_torchscript
from tests.support.timm_weights import NAME, timm_state
from tokenlens.models import check, load_model, read_checkpoint
from tokenlens.models.inert_pickle import read_pickle, read_torch_zip

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
TENSORS = {str(dtype): (torch.arange(12).reshape(3, 4) % 2).to(dtype) for dtype in DTYPES}
TENSORS |= {
    "transposed": torch.randn(3, 5).T,
    "slice": torch.randn(10)[3:7:2],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(3.5),
    "complex": torch.randn(3, dtype=torch.complex64),
}


def legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def plain(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def by_protocol_5(value: object, path: Path) -> None:
    torch.save(value, path, pickle_protocol=5)


WRITERS = {"zip": torch.save, "protocol 5": by_protocol_5, "legacy": legacy, "plain pickle": plain}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_tensors_of_every_kind_are_those_that_torch_load_reads(tmp_path, write):
    given = {**TENSORS, "shared": TENSORS["transposed"]}
    write({"state": given}, tmp_path / "file")
    found = read_checkpoint(tmp_path / "file").tensors
    assert found.keys() == {f"state.{name}" for name in given}
    for name, tensor in given.items():
        assert found[f"state.{name}"].dtype == tensor.dtype, name
        assert torch.equal(found[f"state.{name}"], tensor), name


class Colour(enum.Enum):
    RED = 1


def harmless() -> dict[str, object]:
    """Return what training scripts store beside weights."""
    from omegaconf import OmegaConf

    return {
        "loss": np.float64(0.5),
        "history": np.arange(3),
        "out": Path("/somewhere"),
        "meters": collections.defaultdict(list, {"a": [1, 2]}),
        "when": datetime.datetime(2024, 5, 1),
        "args": argparse.Namespace(lr=0.1),
        "colour": Colour.RED,
        "rng": np.random.RandomState(0).get_state(),
        "names": {"a", "b"},
        "counter": collections.Counter("abc"),
        "hyper_parameters": OmegaConf.create({"lr": 0.1, "blocks": [1, 2]}),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
    }


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_harmless_objects_beside_the_weights_do_not_refuse_a_file(tmp_path, write):
    pytest.importorskip("omegaconf")
    state = timm_state(num_classes=0)
    write({"model": state, **harmless()}, tmp_path / "file.pt")
    checkpoint = read_checkpoint(tmp_path / "file.pt")
    assert {"argparse.Namespace", "datetime.datetime", "omegaconf.dictconfig.DictConfig"} <= set(checkpoint.ignored)
    loaded = load_model(NAME, checkpoint=tmp_path / "file.pt")
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_pickled_module_gives_its_state_dict_without_its_class(tmp_path, write):
    model = timm.create_model(NAME, num_classes=0)
    write({"ema": model}, tmp_path / "file.pt")
    found = read_checkpoint(tmp_path / "file.pt")
    assert found.tensors.keys() == {f"ema.{key}" for key in model.state_dict()}
    assert "timm.models.vision_transformer.VisionTransformer" in found.ignored
    loaded = load_model(NAME, checkpoint=tmp_path / "file.pt")
    assert torch.equal(loaded.module.cls_token, model.cls_token)


PAYLOADS = {"os.system": Payload, "getattr": HiddenPayload, "__setstate__": BuildPayload}


ROUTES = [
    (torch.save, ".pt"),
    (torch.save, ".safetensors"),
    (by_protocol_5, ".ckpt"),
    (legacy, ".pth"),
    (plain, ".bin"),
]


@pytest.mark.parametrize(("write", "suffix"), ROUTES)
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_no_file_runs_anything(tmp_path, write, payload, suffix):
    trace = tmp_path / "trace"
    path = tmp_path / f"file{suffix}"
    write({"state_dict": timm_state(num_classes=0), "deep": [{"inside": payload(trace)}]}, path)
    if payload is Payload:
        for refused in (read_checkpoint, lambda file: load_model(NAME, checkpoint=file)):
            with pytest.raises(
                ValueError, match=r"asks for (posix|nt)\.system, which runs commands.*nothing of it was"
            ):
                refused(path)
        assert "posix.system" in check(str(path)).problem
        assert "posix.system" in check(NAME, checkpoint=path).problem
    else:  # a name that does nothing here, and the weights are complete
        load_model(NAME, checkpoint=path)
    assert not trace.exists()
    # The payload works: what is tested here is not a dud.
    if payload is not HiddenPayload:
        content = io.BytesIO(path.read_bytes())
        pickle.load(content) if write is plain else torch.load(content, weights_only=False)
        assert trace.exists()


def write_hostile_folder(folder: Path, trace: Path, config: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({**timm_state(num_classes=0), "x": Payload(trace)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("config", [{"architecture": NAME, "num_classes": 0}, {"model_type": "vit"}])
def test_no_folder_or_hub_model_runs_anything(tmp_path, empty_cache, config):
    trace = tmp_path / "trace"
    write_hostile_folder(tmp_path / "model", trace, config)
    snapshot = in_cache(empty_cache, "me/it", {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()})
    assert snapshot.exists()
    for name in (f"local-dir:{tmp_path / 'model'}", str(tmp_path / "model"), "hf-hub:me/it"):
        with pytest.raises(ValueError, match=r"system, which runs commands"):
            load_model(name)
        assert "which runs commands" in check(name).problem
    assert not trace.exists()


def test_no_shard_runs_anything(tmp_path):
    trace = tmp_path / "trace"
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    torch.save({"a": torch.zeros(1)}, tmp_path / names[0])
    torch.save({"b": torch.zeros(1), "x": Payload(trace)}, tmp_path / names[1])
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    for path in (tmp_path, tmp_path / "pytorch_model.bin.index.json"):
        with pytest.raises(ValueError, match="which runs commands"):
            read_checkpoint(path)
    assert not trace.exists()


def test_a_pickle_inside_the_bytes_of_a_storage_does_not_run_either(tmp_path):
    trace = tmp_path / "trace"
    inner = io.BytesIO()
    torch.save(Payload(trace), inner, _use_new_zipfile_serialization=False)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    plain({"x": Nested()}, tmp_path / "file.pkl")
    with pytest.raises(ValueError, match="which runs commands"):
        read_checkpoint(tmp_path / "file.pkl")
    assert not trace.exists()


def test_code_of_a_transformers_folder_is_not_run(tmp_path):
    trace = tmp_path / "trace"
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "code.py").write_text(f"open({str(trace)!r}, 'w')")
    with pytest.raises(ValueError, match=r"own code \(auto_map\) is never run"):
        load_model(str(tmp_path / "model"))
    assert not trace.exists()


def test_torchscript_is_not_loaded(tmp_path):
    for name in ("file.pt", "model.safetensors"):
        save_as_torchscript(tmp_path / name)
        with pytest.raises(ValueError, match=r"a TorchScript archive, a compiled program.*torch\.jit\.load"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "instructions",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x01\x00\x00\x00aK\x01stb.",  # an attribute of a function
        b"ccollections\nOrderedDict\n(N}X\x03\x00\x00\x00getK\x01stb.",  # an attribute of a class
        b"cunknown\nThing\n(N}X\x0c\x00\x00\x00dump_patchesK\x01stb.",
    ],
)
def test_a_pickle_cannot_change_what_it_is_read_with(tmp_path, instructions):
    (tmp_path / "file").write_bytes(b"\x80\x02" + instructions)
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(tmp_path / "file")
    assert collections.OrderedDict.get is dict.get


def test_tensors_stay_inside_their_storage(tmp_path):
    """A view beyond the storage would read other bytes of the file."""

    class Beyond:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.zeros(4)._typed_storage(), 2, (4,), (1,), False, {})

    for write in (torch.save, legacy, plain):
        write({"x": Beyond()}, tmp_path / "file")
        with pytest.raises(ValueError, match="beyond its storage"):
            read_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("reader", [read_torch_zip, read_pickle])
def test_an_optimizer_is_mapped_and_not_copied(tmp_path, reader):
    write = torch.save if reader is read_torch_zip else legacy
    write({"a": torch.arange(5.0), "optimizer": {0: torch.zeros(7)}}, tmp_path / "file")
    content, ignored = reader(tmp_path / "file")
    assert content["a"].tolist() == [0, 1, 2, 3, 4]
    assert not ignored


def test_compressed_archives_are_read_too(tmp_path):
    torch.save({"a": torch.arange(5.0)}, tmp_path / "file.pt")
    with (
        zipfile.ZipFile(tmp_path / "file.pt") as old,
        zipfile.ZipFile(tmp_path / "new.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert read_checkpoint(tmp_path / "new.pt").tensors["a"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, write):
    write({"a": torch.randn(300), "b": {"c": torch.randn(30)}}, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for share in (0.01, 0.2, 0.5, 0.9, 0.99):
        (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"checkpoint .*cut (cannot be read|holds no state dict)"):
            read_checkpoint(tmp_path / "cut")


FORMATS = {
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "HTML": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
    "gzip": (gzip.compress(b"x"), "compressed with gzip"),
    "JSON": (b'{"a": 1}', "a JSON file, which holds no weights"),
    "empty": (b"", "an empty file"),
    "GGUF": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x05", "an ONNX graph"),
    "Flax": (b"\x81\xa6params\x81\xa3cls\x01", "a msgpack file of Flax"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file of Keras"),
    "npy": (b"\x93NUMPY\x01\0", "a NumPy array"),
    "zeros": (b"\0" * 4000, "filled with zero bytes"),
    "text": (b"Not Found\n", "a text file that starts with 'Not Found'"),
    "junk": (bytes(range(200, 256)) * 20, "neither a safetensors nor a PyTorch file"),
    "safetensors cut off": (struct.pack("<Q", 500) + b'{"a":{"dtype":"F32"', "safetensors file that is cut off"),
    "zip cut off": (b"PK\x03\x04" + b"\x01" * 60, "zip file that is cut off"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("content", "message"), FORMATS.values(), ids=FORMATS)
def test_what_a_file_really_is(tmp_path, content, message, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert check(str(path)).problem == str(error.value)


def test_archives_that_are_no_checkpoints(tmp_path):
    np.savez(tmp_path / "jax.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"NumPy arrays \(\.npz\)"):
        read_checkpoint(tmp_path / "jax.npz")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("model.safetensors", b"")
    with pytest.raises(ValueError, match=r"it holds model\.safetensors\); unpack it"):
        read_checkpoint(tmp_path / "other.zip")


def test_files_are_read_by_what_they_are_and_not_by_their_name(tmp_path):
    state = timm_state(num_classes=0)
    save_file(state, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    for name, said in (
        ("weights.pth", "safetensors, under another name"),
        ("weights.safetensors", "PyTorch file under the name of a safetensors file"),
    ):
        assert read_checkpoint(tmp_path / name).format == said
        assert torch.equal(load_model(NAME, checkpoint=tmp_path / name).module.cls_token, state["cls_token"])


def storage(key: str, length: int) -> bytes:
    """Return instructions that load a storage of float32 numbers."""
    text = f"Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{length}\n"
    return b"(" + text.encode() + b"tQ"


ENLARGED = b"ctorch._utils\n_rebuild_tensor\n(" + storage("0", 4) + b"I0\n(I1000000000\nt(I0\ntt" + b"R."


def nested_lists(depth: int) -> object:
    found: object = torch.zeros(1)
    for _ in range(depth):
        found = [found] * 10
    return found


def test_small_files_do_not_become_large(tmp_path):
    """Memory and time are bounded by the size of the file."""
    many = b"".join(storage(str(i), 200) + b"0" for i in range(100))
    for name, content, message in (
        ("expanded", ENLARGED + b" " * 99, "a tensor of 1000000000 numbers in a storage of 4"),
        ("many", many + b"N.", "a storage of 200 numbers in a file of"),
        ("one", storage("0", 10**9) + b".", "a storage of 1000000000 numbers"),
        ("memo", b"Nr" + struct.pack("<I", 2**31) + b"\x8e" + struct.pack("<Q", 2**62) + b".", "cannot be read"),
        ("negative", storage("0", -4) + b".", "a storage of -4 numbers"),
    ):
        (tmp_path / name).write_bytes(b"\x80\x02" + content)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps(None))
        archive.writestr("a/data/0", bytes(10**6))
    with pytest.raises(ValueError, match=r"1,000,00\d bytes compressed into "):
        read_checkpoint(tmp_path / "bomb")


def test_objects_that_refer_to_each_other_many_times_come_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenlens.models.weight_files.MAX_OBJECTS", 10_000)
    torch.save(nested_lists(30), tmp_path / "file")
    with pytest.raises(ValueError, match="more than 10,000 objects"):
        read_checkpoint(tmp_path / "file")


def test_extensions_of_the_registry_are_not_used(tmp_path):
    """A code that ``copyreg`` knows names a function, which is not imported either."""
    copyreg.add_extension("os", "system", 77)
    try:
        (tmp_path / "file").write_bytes(b"\x80\x02\x82\x4d(Vtouch never\ntR.")
        with pytest.raises(ValueError, match=r"asks for os\.system"):
            read_checkpoint(tmp_path / "file")
    finally:
        copyreg.remove_extension("os", "system", 77)


def test_a_bare_tensor_is_no_checkpoint_of_a_model(tmp_path):
    plain(torch.randn(5), tmp_path / "file")
    assert list(read_checkpoint(tmp_path / "file").tensors) == ["tensor"]
