"""Downloads: the cache first, then the network, with clear errors."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tokenlens.storage import downloads as hub


def test_downloads_try_the_names_in_turn_and_say_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(repo: str, name: str, revision: str | None) -> str:
        if repo == "cut/off":
            raise LocalEntryNotFoundError("connection lost\nand more")
        if name == "b.bin":
            return str(tmp_path / name)
        raise EntryNotFoundError("404")

    monkeypatch.setattr(hub, "why_unreachable", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.download_hub_file("there/is", ["a.safetensors", "b.bin"]) == tmp_path / "b.bin"
    with pytest.raises(hub.UnreachableError, match=r"there/is has none of a\.safetensors, c\.bin"):
        hub.download_hub_file("there/is", ["a.safetensors", "c.bin"])
    with pytest.raises(hub.UnreachableError, match=r"could not be downloaded \(LocalEntry\w+: connection lost\)"):
        hub.download_hub_file("cut/off", ["a.safetensors", "b.bin"])


def test_weights_at_an_address_are_kept_by_torch_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    with pytest.raises(hub.UnreachableError, match="cannot be reached"):
        hub.download_url("http://127.0.0.1:9/weights/vit.pth")
    kept = tmp_path / "torch" / "checkpoints" / "vit.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    assert hub.download_url("http://127.0.0.1:9/weights/vit.pth") == kept
