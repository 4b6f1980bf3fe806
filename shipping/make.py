"""From the run folder of a training to a model that comes with tokenlens.

    python shipping/make.py RUN NAME --probes PROBE PROBE …

RUN is a finished run of ``tokenlens train``, each PROBE a run of ``tokenlens probe`` on it, on the same model untrained
(``--no-pretrained``), on ``raw_pixels`` or on another model. Writes tokenlens/models/shipped/NAME: ``model.safetensors`` in
float16, ``config.json`` in timm's format and ``MODEL_CARD.md``; what was there before is replaced at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenlens.images import sample
from tokenlens.models.checkpoints import weights_sha256
from tokenlens.models.loading import LoadedModel, load_model
from tokenlens.models.shipped import CARD
from tokenlens.probes import ProbeResult
from tokenlens.storage.hashing import file_sha256
from tokenlens.training.run import TrainedRun

sys.path.insert(0, str(Path(__file__).parent))
from card import Facts, card, described

SHIPPED = Path(__file__).resolve().parent.parent / "tokenlens" / "shipped"
LARGEST = 12_000_000
"""Bytes of weights: they are in the wheel that everybody downloads."""


def make(run: str | Path, name: str, probes: Sequence[str | Path] = (), out: str | Path = SHIPPED) -> Path:
    """Write the folder of a shipped model.

    Args:
        run: a finished training.
        name: of the model.
        probes: run folders of probes.
        out: the folder in which the model gets its own.

    Raises:
        ValueError: for an unfinished training, weights that float16 does not hold or that are too large, probes of
            weights under this model's name that are not its, and what the card's licences do not cover.
    """
    trained = TrainedRun.load(run)
    if not trained.finished:
        raise ValueError(f"{trained.path} is {trained.state} at step {trained.step}; only a finished training ships")
    whole = load_model(f"local-dir:{trained.path}", device="cpu")
    results = [ProbeResult.load(folder) for folder in probes]
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=_made(Path(out))) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        file = folder / "model.safetensors"
        save_file(halved(whole.module), file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors writes files that their owner alone may read
        if file.stat().st_size > LARGEST:
            raise ValueError(f"{name} takes {file.stat().st_size:,} bytes, more than the {LARGEST:,} that a wheel gets")
        config = json.loads((trained.path / "config.json").read_text(encoding="utf-8"))
        write_json(published(config, described(whole.module, trained)), folder / "config.json")
        half = load_model(f"local-dir:{folder}", device="cpu")
        facts = Facts(
            name=name,
            run=trained,
            module=whole.module,
            bytes=file.stat().st_size,
            sha256=file_sha256(file),
            moved=moved(whole, half),
            probes=[(whose(result, trained, file), result) for result in results],
        )
        (folder / CARD).write_text(card(facts), encoding="utf-8")
        target = Path(out) / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(folder, target)
    return target


def halved(module: nn.Module) -> dict[str, Tensor]:
    """The weights in float16.

    Raises:
        ValueError: if one of them is beyond its range.
    """
    tensors = {name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}
    beyond = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if beyond:
        raise ValueError(f"float16 does not hold the weights {', '.join(beyond)}")
    return tensors


def published(config: dict[str, Any], description: str) -> dict[str, Any]:
    """The run's configuration without what it has from timm's own weights of the architecture."""
    about = {key: value for key, value in config["pretrained_cfg"].items() if key != "tag"}
    return config | {"pretrained_cfg": about | {"description": description}}


@torch.no_grad()
def moved(whole: LoadedModel, half: LoadedModel) -> dict[str, float]:
    """How far float16 weights move the final norm's tokens on the sample views, in shares of their length."""
    images = torch.stack([whole.transform()(sample.view(index)) for index in range(sample.VIEWS)])
    exact: Tensor = whole.module.forward_features(images)  # type: ignore[operator]
    rounded: Tensor = half.module.forward_features(images)  # type: ignore[operator]
    shares = (rounded - exact).norm(dim=-1) / exact.norm(dim=-1)
    return {"images": float(len(images)), "mean": shares.mean().item(), "largest": shares.max().item()}


def whose(result: ProbeResult, run: TrainedRun, file: Path) -> str:
    """``"own"``, ``"untrained"`` (the same model with random weights), ``"pixels"``, or the name of another model."""
    if result.model == "raw_pixels":
        return "pixels"
    identity = result.provenance["identity"]
    weights = identity["weights"]
    if weights in (file_sha256(run.path / "model.safetensors"), file_sha256(file)):
        return "own"
    if result.untrained:
        twin = load_model(
            f"local-dir:{run.path}",
            pretrained=False,
            img_size=tuple(identity["image_size"]),
            device="cpu",
            seed=int(result.provenance["seed"]),
        )
        if weights == weights_sha256(twin.module):
            return "untrained"
    if Path(result.model).name in (run.path.name, file.parent.name):
        raise ValueError(
            f"the probe {result.task} of {result.model} was made with other weights ({weights[:12]}) than "
            f"{run.path / 'model.safetensors'}; probe that again"
        )
    return Path(result.model).name + (" (untrained)" if result.untrained else "")


def write_json(values: dict[str, Any], file: Path) -> None:
    """Readable, with a line end."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--probes", nargs="*", type=Path, default=[], metavar="PROBE")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    try:
        folder = make(options.run, options.name, options.probes, options.out)
    except (ValueError, LookupError, OSError) as error:
        sys.exit(f"error: {error}")
    print((folder / CARD).read_text(encoding="utf-8"))
    print(f"written: {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
