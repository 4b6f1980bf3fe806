"""Folders of weights: shards and their index, a single shard, folders of other libraries."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.models.test_creation import in_cache
from tests.support.timm_weights import NAME, timm_state
from tokenlens.models import load_model, read_checkpoint
from tokenlens.models.weight_files import find_weight_files, read_index


def write_shards(
    folder: Path, kind: str = "safetensors", index: bool = True, count: int = 3
) -> dict[str, torch.Tensor]:
    """Write the weights of a small model as Transformers does, and return them."""
    folder.mkdir(exist_ok=True)
    state = timm_state(num_classes=0)
    stem, write = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    weight_map = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05}-of-{count:05}.{kind}"
        part = dict(list(state.items())[number::count])
        write(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if index:
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return state


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_checkpoint(tmp_path, kind, index):
    state = write_shards(tmp_path, kind, index)
    paths = [tmp_path, *tmp_path.glob("*.index.json")]
    assert len(paths) == 1 + index
    hashes = set()
    for path in paths:
        checkpoint = read_checkpoint(path)
        assert checkpoint.tensors.keys() == state.keys()
        assert checkpoint.format.startswith("3 shards, each a ")
        hashes.add(checkpoint.sha256)
        loaded = load_model(NAME, checkpoint=path)
        assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    assert len(hashes) == 1
    (tmp_path / "model-00002-of-00003.safetensors").touch() if kind == "bin" else None


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_single_shard_is_named_as_one(tmp_path, kind):
    write_shards(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"one shard of a checkpoint, number 2 of 3; pass the folder .*{tmp_path}"):
        read_checkpoint(next(tmp_path.glob("*-00002-of-00003*")))


@pytest.mark.parametrize("index", [True, False])
def test_missing_shards_are_named(tmp_path, index):
    write_shards(tmp_path, index=index)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 3 shards: model-00002-of-00003\.safetensors"):
        read_checkpoint(tmp_path)


def test_shards_that_lack_what_the_index_promises(tmp_path):
    write_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["blocks.9.norm1.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lack 1 tensors that it names: blocks\.9\.norm1\.weight"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", 3])
def test_an_index_stays_inside_its_folder(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    for read in (read_index, read_checkpoint, lambda path: read_checkpoint(path.parent)):
        with pytest.raises(ValueError, match="not an index of shards"):
            read(index)


def test_shards_of_a_timm_folder_and_of_the_hub(tmp_path, empty_cache):
    timm.models.save_for_hf(timm.create_model(NAME, num_classes=0), tmp_path / "model", safe_serialization=True)
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").unlink(missing_ok=True)
    state = write_shards(tmp_path / "model")
    in_cache(empty_cache, "me/sharded", {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()})
    for name in (f"local-dir:{tmp_path / 'model'}", str(tmp_path / "model"), "hf-hub:me/sharded"):
        loaded = load_model(name)
        assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())


def test_folders_of_other_libraries_and_without_weights(tmp_path):
    assert find_weight_files(tmp_path) == []
    for file, message in (
        ("notes.txt", r"has no file of weights \(it holds notes\.txt\)"),
        ("flax_model.msgpack", "only weights of TensorFlow or Flax"),
        ("__0_0.distcp", "a distributed checkpoint of PyTorch.*dcp_to_torch"),
    ):
        (tmp_path / file).touch()
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path)
