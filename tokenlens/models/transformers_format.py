"""Create models from folders in the format of Hugging Face Transformers: ``config.json`` with a ``model_type``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tokenlens.models.checkpoints import Checkpoint
from tokenlens.models.file_formats import read_json
from tokenlens.models.fitting import HALF, FittedWeights, fit_weights, join_keys
from tokenlens.storage.wording import counted

PREPROCESSING = "preprocessor_config.json"


def create_transformers_model(folder: Path, name: str) -> nn.Module:
    """Create the model that a folder's ``config.json`` describes, with random weights, on PyTorch's default device.

    It is of the class that was saved. The preprocessing of the folder becomes its ``pretrained_cfg``.

    Args:
        folder: the folder with ``config.json``, and ``preprocessor_config.json`` if there is one.
        name: the user's name of the model, for error messages.

    Raises:
        ValueError: if Transformers is not installed, does not know the model, or would need code from the folder.
    """
    cls, config = _read_config(folder, name)
    try:
        with _quiet():
            module: nn.Module = cls(config)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"{name!r}: transformers cannot create a {cls.__name__} from {folder}: {error}") from error
    return with_preprocessing(module, folder)


def load_transformers_checkpoint(folder: Path, name: str, checkpoint: Checkpoint) -> tuple[nn.Module, FittedWeights]:
    """Create the model of a folder with the weights of a checkpoint.

    Names of older releases, under which Transformers still saves, are renamed as it does it.

    Returns:
        The model in float32, and how the weights fit; if they have a ``problem``, some are random.

    Raises:
        ValueError: if Transformers cannot create the model.
    """
    cls, config = _read_config(folder, name)
    with torch.device("meta"):
        fitted = fit_weights(checkpoint, create_transformers_model(folder, name))
    tensors = fitted.tensors if fitted.problem is None else checkpoint.tensors
    try:
        with _quiet():
            module, loading = cls.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported below
            )
    except (RuntimeError, ValueError, KeyError) as error:
        if fitted.problem is not None:
            return create_transformers_model(folder, name), fitted
        raise ValueError(f"transformers cannot load {checkpoint.source}: {' '.join(str(error).split())}") from error
    with_preprocessing(module, folder)
    if fitted.problem is None:
        return module, fitted
    return module, _describe_loading(tensors, module, loading)


def _describe_loading(tensors: dict[str, Tensor], module: nn.Module, loading: Any) -> FittedWeights:
    """Describe what Transformers renamed, and what it could not load."""
    wanted = module.state_dict()
    renamed = [key for key in tensors if key not in wanted]
    half = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.dtype in HALF})
    steps = [f"{' and '.join(half)} to float32"] * bool(half)
    steps += [f"{counted(len(renamed), 'key')} renamed as transformers does: {join_keys(renamed, 3)}"] * bool(renamed)
    missing, unexpected = (
        tuple(sorted(map(str, loading.get(f"{kind}_keys", ())))) for kind in ("missing", "unexpected")
    )
    misshaped = tuple(" ".join(map(str, each)) for each in loading.get("mismatched_keys", ()))
    return FittedWeights(
        dict(wanted),
        steps=tuple(steps),
        matched=len(wanted) - len(missing) - len(misshaped),
        missing=missing,
        unexpected=unexpected,
        misshaped=misshaped,
    )


def with_preprocessing(module: nn.Module, folder: Path) -> nn.Module:
    """Give a model the preprocessing of its folder as timm's ``pretrained_cfg``, if the folder states one."""
    file = folder / PREPROCESSING
    if file.is_file():
        vars(module)["pretrained_cfg"] = read_preprocessing(file)
    return module


def read_preprocessing(file: Path) -> dict[str, Any]:
    """Return timm's data configuration for a ``preprocessor_config.json``.

    Raises:
        ValueError: if the file is damaged, or asks for values that are not scaled to 0…1.
    """
    given: Any = read_json(file)
    found: dict[str, Any] = {}
    if given.get("do_normalize", True):
        found |= {key: tuple(given[f"image_{key}"]) for key in ("mean", "std") if given.get(f"image_{key}")}
    else:
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if given.get("rescale_factor", 1 / 255) not in (1 / 255, 0.00392156862745098):
        raise ValueError(f"{file} scales pixels by {given['rescale_factor']}; expected 1/255, pass a tensor of images")
    if given.get("resample") is not None:
        found["interpolation"] = Image.Resampling(int(given["resample"])).name.lower()
    size, crop = given.get("size"), given.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size} if given.get("do_center_crop") else {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if given.get("do_center_crop") and crop:
        found["input_size"] = (3, crop["height"], crop["width"])
        resized = (size or {}).get("shortest_edge") or (size or {}).get("height") or crop["height"]
        found |= {"crop_pct": crop["height"] / resized, "crop_mode": "center"}
    elif size and "height" in size:
        found |= {"input_size": (3, size["height"], size["width"]), "crop_pct": 1.0, "crop_mode": "squash"}
    elif size and "shortest_edge" in size:
        found |= {"crop_pct": 1.0, "crop_mode": "center"}
    return found


def _read_config(folder: Path, name: str) -> tuple[Any, Any]:
    """Return the class that was saved, and its configuration."""
    given: Any = read_json(folder / "config.json")
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{name!r} is in the format of Hugging Face Transformers, which is not installed; install tokenlens-vit[hf]"
        ) from error
    kind = given.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        code = ", and its own code (auto_map) is never run" if given.get("auto_map") else ""
        raise ValueError(
            f"{name!r} is a {kind!r}, which transformers {transformers.__version__} does not have{code}. Load it with "
            "its own library, and pass the module"
        )
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(given)
    except Exception as error:  # a damaged configuration can fail anywhere, also with Transformers' own errors
        reason = " ".join(str(error).split())
        raise ValueError(f"{name!r}: {folder / 'config.json'} is no configuration of a {kind!r}: {reason}") from error
    for architecture in given.get("architectures") or []:
        cls = getattr(transformers, architecture, None)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            return cls, config
    try:
        return transformers.MODEL_MAPPING[type(config)], config
    except KeyError:
        raise ValueError(f"{name!r}: transformers has no model for the configuration of a {kind!r}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Transformers' progress bars and notes about keys, which are checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
