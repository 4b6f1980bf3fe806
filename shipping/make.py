"""Turn a finished training into a model that comes with tokenlens.

    python shipping/make.py RUN NAME --probes PROBE PROBE …

RUN is a finished training of ``tokenlens train`` or ``tokenlens verify``, each PROBE a run of ``tokenlens probe`` on
it, on its start, on the same model untrained (``--no-pretrained``), on ``raw_pixels`` or on another model. Writes
tokenlens/models/shipped/NAME with ``model.safetensors`` in float16, ``config.json`` in timm's format,
``MODEL_CARD.md`` and, for weights that started from others, ``NOTICE``, replacing an older version.
"""

from __future__ import annotations

import argparse
import json
import re
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
from tokenlens.models.file_formats import read_json
from tokenlens.models.loading import LoadedModel, load_model
from tokenlens.models.shipped import CARD, NOTICE
from tokenlens.probes import ProbeResult
from tokenlens.storage.files import write_json
from tokenlens.storage.hashing import file_sha256
from tokenlens.training.trained_run import TrainedRun
from tokenlens.verification.start import start_weights

sys.path.insert(0, str(Path(__file__).parent))
from card import Facts, Start, describe_model, write_card, write_notice

SHIPPED = Path(__file__).resolve().parent.parent / "tokenlens" / "models" / "shipped"
MAX_BYTES = 16_000_000
"""Limit for a file of weights, which is part of the wheel that everybody downloads."""


def make(run: str | Path, name: str, probes: Sequence[str | Path] = (), out: str | Path = SHIPPED) -> Path:
    """Write the folder of a shipped model.

    Args:
        run: run folder of a finished training.
        name: name of the model.
        probes: run folders of probes.
        out: folder in which to create the model's folder.

    Raises:
        ValueError: for an unfinished training, weights beyond the range of float16, a file that is too large, probes of
            other weights under this model's name, and a teacher without a known licence.
    """
    trained = TrainedRun.load(run)
    if not trained.finished:
        raise ValueError(f"{trained.path} is {trained.state} at step {trained.step}; only a finished training ships")
    exact = load_model(f"local-dir:{trained.path}", device="cpu")
    results = [ProbeResult.load(folder) for folder in probes]
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=out) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        file = folder / "model.safetensors"
        save_file(to_float16(exact.module), file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors writes files that only their owner can read
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(
                f"{name} takes {file.stat().st_size:,} bytes, more than the {MAX_BYTES:,} allowed in a wheel"
            )
        start = find_start_blocks(trained)
        config = json.loads((trained.path / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", publish_config(config, describe_model(exact.module, trained, start)))
        rounded = load_model(f"local-dir:{folder}", device="cpu")
        facts = Facts(
            name=name,
            run=trained,
            start=start,
            module=exact.module,
            bytes=file.stat().st_size,
            sha256=file_sha256(file),
            change=measure_change(exact, rounded),
            probes=[(identify_model(result, trained, file), result) for result in results],
        )
        (folder / CARD).write_text(write_card(facts), encoding="utf-8")
        if start is not None:
            (folder / NOTICE).write_text(write_notice(facts), encoding="utf-8")
        target = Path(out) / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(folder, target)
    return target


def find_start_blocks(run: TrainedRun) -> Start | None:
    """Return which blocks of its teacher a training started from, by the start that its verification saved."""
    folder = run.path.resolve().parent.parent / "start"
    started = run.settings["start"]
    if started is None or not (folder / "start.json").is_file():
        return None
    if started["sha256"] != file_sha256(start_weights(folder)):
        return None
    blocks = re.search(r"its first (\d+) of (\d+) blocks$", read_json(folder / "start.json")["source"])
    return None if blocks is None else Start(*map(int, blocks.groups()))


def to_float16(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights in float16.

    Raises:
        ValueError: if one of them is beyond the range of float16.
    """
    tensors = {name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}
    beyond = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if beyond:
        raise ValueError(f"float16 does not hold the weights {', '.join(beyond)}")
    return tensors


def publish_config(config: dict[str, Any], description: str) -> dict[str, Any]:
    """Return the run's configuration with a description, and without the tag of timm's weights."""
    pretrained_cfg = {key: value for key, value in config["pretrained_cfg"].items() if key != "tag"}
    return config | {"pretrained_cfg": pretrained_cfg | {"description": description}}


@torch.no_grad()
def measure_change(exact: LoadedModel, rounded: LoadedModel) -> dict[str, float]:
    """Measure how far float16 weights move the final norm's tokens on the sample views, relative to their length."""
    images = torch.stack([exact.transform()(sample.view(index)) for index in range(sample.VIEWS)])
    before: Tensor = exact.module.forward_features(images)  # type: ignore[operator]
    after: Tensor = rounded.module.forward_features(images)  # type: ignore[operator]
    shares = (after - before).norm(dim=-1) / before.norm(dim=-1)
    return {"images": float(len(images)), "mean": shares.mean().item(), "largest": shares.max().item()}


def identify_model(result: ProbeResult, run: TrainedRun, file: Path) -> str:
    """Return whose features a probe used: ``"this"``, ``"start"``, ``"untrained"``, ``"pixels"``, or a model's name."""
    if result.model == "raw_pixels":
        return "pixels"
    identity = result.provenance["identity"]
    weights = identity["weights"]
    if weights in (file_sha256(run.path / "model.safetensors"), file_sha256(file)):
        return "this"
    if weights == (run.settings["start"] or {}).get("sha256"):
        return "start"
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


def main() -> None:
    """Run the command."""
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
