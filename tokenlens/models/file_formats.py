"""Identify what a file of weights really is by its first bytes, whatever its name says."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

HEAD = 512
"""Bytes that are read to identify a file."""

SAVE_STATE_DICT = "save its state_dict() with safetensors there, and pass that file"

_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves; run `git lfs pull` in its repository"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first (gunzip, or tar -xzf)"),
    (b"BZh", "compressed with bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first (unzstd)"),
    (b"GGUF", "a GGUF file of quantized weights for llama.cpp; get the original weights as safetensors"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file of Keras or TensorFlow; convert it to PyTorch with the library it is from"),
    (b"\x93NUMPY", "a NumPy array, not a PyTorch file; convert its model's weights to safetensors"),
    (b"%PDF", "a PDF document; get the file of weights itself"),
    (b"\x89PNG", "an image; get the file of weights itself"),
    (b"\xff\xd8\xff", "an image; get the file of weights itself"),
)
"""First bytes, and what such a file is and what to do."""


def identify_format(path: Path) -> str:
    """Return how a file of weights is to be read: ``safetensors``, ``torch_zip``, ``pickle`` or ``index``.

    ``index`` is the JSON file that says which shard holds which tensor.

    Raises:
        ValueError: if the file is anything else; says what it is and what to do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise _refusal(path, "an empty file; download or save it again")
    if head[:1] == b"\x80" and head[1] in range(2, 6):
        return "pickle"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise _refusal(path, what)
    if head.startswith(b"PK"):
        return _identify_zip(path)
    if head[8:9] == b"{":
        header = int.from_bytes(head[:8], "little")
        if header <= size - 8:
            return "safetensors"
        if header < 1 << 30:
            raise _refusal(path, f"a safetensors file that is cut off after {size:,} bytes; download it again")
    if head[257:262] == b"ustar":
        raise _refusal(path, "a tar archive; unpack it (tar -xf) and pass the file of weights inside")
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] == b"\x12"):
        raise _refusal(path, "an ONNX graph, without PyTorch's parameter names; get the weights it was exported from")
    if path.suffix == ".msgpack" or head[0] in range(0x81, 0x90) or head[0] in (0xDE, 0xDF):
        raise _refusal(
            path, "a msgpack file of Flax (JAX); load it with transformers (from_flax=True) and " + SAVE_STATE_DICT
        )
    if not head.strip(b"\0"):
        raise _refusal(path, f"filled with zero bytes ({size:,} of them), as after an aborted download; get it again")
    return _identify_text(path, head)


def _identify_zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        raise _refusal(
            path, f"a PyTorch or zip file that is cut off after {path.stat().st_size:,} bytes; download it again"
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise _refusal(
            path,
            "a TorchScript archive, a compiled program; where you trust it, load it with torch.jit.load, "
            + SAVE_STATE_DICT.replace(" there", ""),
        )
    if sum(name.endswith("/data.pkl") or name == "data.pkl" for name in names) == 1:
        return "torch_zip"
    if names and all(name.endswith(".npy") for name in names):
        raise _refusal(path, "an archive of NumPy arrays (.npz), as JAX models have; convert it to PyTorch first")
    shown = ", ".join(names[:4]) or "nothing"
    raise _refusal(path, f"a zip archive without a checkpoint's data.pkl (it holds {shown}); unpack it first")


def _identify_text(path: Path, head: bytes) -> str:
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \r\n\t")
    if text[:9].lower() == "<!doctype" or text[:5].lower() in ("<html", "<head", "<?xml"):
        raise _refusal(
            path, "a web page, as a link that needs a login or has moved returns; download the weights again"
        )
    if text[:1] in ("{", "["):
        if text[:1] == "{" and "weight_map" in read_json(path):
            return "index"
        raise _refusal(path, "a JSON file, which holds no weights; pass the file or the folder that has them")
    # A file of text that is cut inside a character still is text.
    if text and len(head.decode("utf-8", "ignore").encode()) > len(head) - 4 and text.isprintable():
        raise _refusal(path, f"a text file that starts with {text[:40]!r}; pass the file of weights")
    if "\n" in text and all(character.isprintable() or character.isspace() for character in text):
        raise _refusal(path, f"a text file that starts with {text.splitlines()[0][:40]!r}; pass the file of weights")
    raise _refusal(path, "neither a safetensors nor a PyTorch file, or damaged; download or save it again")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; raise ValueError, with the path, if the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON object ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def _refusal(path: Path, what: str) -> ValueError:
    return ValueError(f"checkpoint {path} cannot be read: it is {what}")
