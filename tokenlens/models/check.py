"""Say what a model or a checkpoint is, and whether tokenlens can read it, without running it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tokenlens.families.base import Family, find_family, image_size_of
from tokenlens.models.architectures import find_fitting_models
from tokenlens.models.arguments import with_arguments
from tokenlens.models.checkpoints import Checkpoint, read_checkpoint
from tokenlens.models.creation import (
    Size,
    WithoutInitialization,
    check_size,
    create_on_meta,
    find_cached_weights,
    fit_checkpoint,
)
from tokenlens.models.fitting import FittedWeights, join_keys
from tokenlens.models.names import ModelSource, find_model_source, find_weights
from tokenlens.models.transformers_format import load_transformers_checkpoint


@dataclass(frozen=True)
class ModelDescription:
    """The architecture of a model.

    Args:
        class_name: the class of its module.
        library: where the class is from: timm, transformers, …
        family: the family of tokenlens that reads it.
        image_size: (height, width) of its images in pixels.
        grid: rows and columns of its patches.
        tokens: number of tokens by group.
        blocks: number of transformer blocks.
        parameters: number of parameters, without a classifier that the checkpoint lacks.
        attention_bias: whether every attention has a learned key and value.
    """

    class_name: str
    library: str
    family: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    tokens: dict[str, int]
    blocks: int
    parameters: int
    attention_bias: bool = False


@dataclass(frozen=True)
class CheckpointDescription:
    """The weights of a checkpoint, and how they fit a model.

    Args:
        source: path, or where published weights are.
        format: what the file is; empty if it was not read.
        sha256: its hash.
        tensors, numbers: how many of them it holds, anything beside the model included.
        prefix: what stands before the names of the model's weights.
        steps: a sentence for each thing that is undone, adapted or left out when it is loaded.
        matched, wanted: how many keys of the model it has, of how many.
        missing, unexpected, misshaped: keys that do not fit.
        resized: tensors whose size is adapted.
        others: prefixes of other complete sets of weights, which are not used.
        ignored: classes of other objects in the file, which are not loaded.
    """

    source: str
    format: str = ""
    sha256: str = ""
    tensors: int = 0
    numbers: int = 0
    prefix: str = ""
    steps: tuple[str, ...] = ()
    matched: int = 0
    wanted: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelCheck:
    """Description of a model or checkpoint, and whether tokenlens can read it.

    Args:
        subject: the name or path that was checked.
        model: the architecture; None for a checkpoint that fits none.
        weights: the weights; None for a module, or a model without any.
        fits: names of timm's architectures that a checkpoint on its own fits, the first of which is ``model``.
        problem: why tokenlens cannot read it; None if it can.
    """

    subject: str
    model: ModelDescription | None = None
    weights: CheckpointDescription | None = None
    fits: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def readable(self) -> bool:
        """Whether tokenlens can read it."""
        return self.problem is None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict of plain values."""
        return {"readable": self.readable, **asdict(self)}

    def __str__(self) -> str:
        """Return a text of a few lines."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.subject}: {'tokenlens can read it' if self.readable else 'tokenlens cannot read it'}"
        if self.fits:
            yield f"  fits        {join_keys(self.fits)} (by names and shapes)"
        if model := self.model:
            groups = ", ".join(f"{count:,} {group}" for group, count in model.tokens.items())
            yield f"  model       {model.class_name} of {model.library}, family {model.family}"
            yield f"  images      {_times(model.image_size)} pixels, {_times(model.grid)} patches"
            yield f"  tokens      {groups}"
            biased = ", each with an attention bias (a learned key and value)" if model.attention_bias else ""
            yield f"  blocks      {model.blocks}{biased}"
            yield f"  parameters  {model.parameters:,}"
        if weights := self.weights:
            of = f", {weights.format}" if weights.format else ""
            yield f"  weights     {weights.source}{of}"
            if weights.tensors:
                yield f"  holds       {weights.tensors:,} tensors, {weights.numbers:,} numbers"
            if weights.ignored:
                yield f"  not loaded  objects of {join_keys(weights.ignored, 4)}"
            if weights.wanted:
                counts = f"{len(weights.missing)} missing, {len(weights.unexpected)} unexpected"
                counts += f", {len(weights.misshaped)} of another shape, {len(weights.resized)} resized"
                yield f"  keys        {weights.matched:,} of {weights.wanted:,} matched, {counts}"
            for number, step in enumerate(weights.steps):
                yield f"  {'' if number else 'steps':<10}  {step}"


def check(
    model: str | os.PathLike[str] | nn.Module,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    img_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> ModelCheck:
    """Say what a model or a checkpoint is, and whether tokenlens can read it, without running it.

    The model is created without memory for its weights. Nothing is downloaded but the configuration of a model on the
    Hugging Face Hub.

    Args:
        model: a name as in ``analyze``, a module, or a checkpoint: a file, a folder of shards or their index. For a
            checkpoint on its own, the architectures of timm that it fits are searched by its patch embedding.
        checkpoint: fit this checkpoint to the model.
        img_size: pixels, or (height, width), as in ``analyze``.
        model_args: arguments of the constructor of a named model, as in ``load_model``.
        family: the family of a model that tokenlens does not know.

    Returns:
        The ModelCheck; ``print`` shows it. What cannot be read is not an error here: ``problem`` says why.

    Raises:
        LookupError, ValueError: for a name or path that does not exist, and an invalid size or argument.
    """
    size = None if img_size is None else check_size(img_size)
    if model_args and (isinstance(model, nn.Module) or Path(model).is_file()):
        raise ValueError("model_args (--model-arg) needs the name of a model, whose constructor takes them")
    if isinstance(model, nn.Module):
        return _check_model(type(model).__qualname__, model, family, size)
    subject = os.fspath(model)
    path = Path(subject).expanduser()
    if path.is_file() or (path.is_dir() and not any((path / name).is_file() for name in ("config.json", "run.json"))):
        if checkpoint is not None:
            raise ValueError(f"{subject} is a checkpoint itself; expected the name of a model with --checkpoint")
        return _check_checkpoint(subject, path, family, size)
    source = with_arguments(find_model_source(subject), model_args)
    module = create_on_meta(source, size)
    found = _check_model(subject, module, family, size)
    if not found.readable and checkpoint is None:
        return found
    try:
        where, file = _find_weights(source, checkpoint)
        if file is None:
            weights = None if where is None else CheckpointDescription(where)
            return ModelCheck(subject, found.model, weights, problem=found.problem)
        content = read_checkpoint(file)
    except ValueError as error:
        return ModelCheck(subject, found.model, problem=found.problem or str(error))
    if source.transformers is not None:
        module, fitted = load_transformers_checkpoint(source.transformers, source.name, content)
    else:
        classes, fitted = fit_checkpoint(source, content, size)
        module = create_on_meta(source, size, num_classes=classes)
        found = _check_model(subject, module, family, size)
    problem = found.problem or (fitted.problem and f"the checkpoint does not fit: {fitted.problem}")
    return ModelCheck(subject, found.model, _describe(where or str(file), content, fitted, module), problem=problem)


def describe_model(name: str) -> tuple[ModelDescription | None, str]:
    """Return the architecture of a named model, None if tokenlens cannot read it, and where its weights are.

    Nothing is read or downloaded; the model is created without memory for its weights, which takes about 0.05 s.

    Raises:
        LookupError, ValueError: if there is no such model.
    """
    source = find_model_source(name)
    with WithoutInitialization():
        module = create_on_meta(source, None)
    if source.folder is not None:
        weights = "no download" if source.label else f"in {source.folder}"
    elif source.repo is None and source.url is None:
        weights = "no published weights"
    else:
        weights = "download" if find_cached_weights(source) is None else "downloaded"
    return _check_model(name, module, None, None).model, weights


def _check_model(subject: str, module: nn.Module, family: Family | None, size: Size) -> ModelCheck:
    try:
        family = family or find_family(module)
        image_size = size or image_size_of(module) or (224, 224)
        layout = family.layout(module, image_size)
        blocks = len(family.blocks(module))
    except (LookupError, ValueError) as error:
        return ModelCheck(subject, problem=str(error))
    description = ModelDescription(
        class_name=type(module).__qualname__,
        library=type(module).__module__.partition(".")[0],
        family=family.name or type(family).__name__,
        image_size=image_size,
        grid=layout.grid,
        tokens={group: len(layout.positions(group)) for group in layout.groups},
        blocks=blocks,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        attention_bias=layout.attention_bias,
    )
    return ModelCheck(subject, description)


def _check_checkpoint(subject: str, path: Path, family: Family | None, size: Size) -> ModelCheck:
    """Check a checkpoint on its own: what it is, and which architectures it fits."""
    try:
        content = read_checkpoint(path)
    except ValueError as error:
        return ModelCheck(subject, problem=str(error))
    fits = find_fitting_models(content)
    if not fits:
        weights = _describe(str(path), content, FittedWeights({}), None)
        names = join_keys(content.tensors, 4)
        return ModelCheck(
            subject,
            weights=weights,
            problem=f"no architecture of timm was found that it fits (its first keys: {names}). With a name, "
            f"`tokenlens check MODEL --checkpoint {subject}` says what does not fit; models of Transformers need the "
            "folder of their config.json",
        )
    first = next(iter(fits))
    source = find_model_source(first)
    classes, fitted = fit_checkpoint(source, content, size)
    module = create_on_meta(source, size, num_classes=classes)
    found = _check_model(subject, module, family, size)
    weights = _describe(str(path), content, fitted, module)
    return ModelCheck(subject, found.model, weights, tuple(fits), found.problem or fitted.problem)


def _find_weights(source: ModelSource, checkpoint: str | os.PathLike[str] | None) -> tuple[str | None, Path | None]:
    """Return where the weights of a model are, and the file if it is on this machine and can be read here."""
    if checkpoint is not None:
        return str(checkpoint), Path(checkpoint)
    if source.folder is not None:
        file = find_weights(source.name, source.folder)
        return source.label or str(file), file
    if source.repo is None and source.url is None:
        return None, None
    where = f"hf-hub:{source.repo}" if source.repo else str(source.url)
    cached = find_cached_weights(source)
    if cached is None:
        return f"{where} (not downloaded yet)", None
    return f"{where} (in the cache)", None if source.custom_loader else cached


def _describe(
    source: str, content: Checkpoint, fitted: FittedWeights, module: nn.Module | None
) -> CheckpointDescription:
    wanted = [] if module is None else [key for key, value in module.state_dict().items() if isinstance(value, Tensor)]
    return CheckpointDescription(
        source=source,
        format=content.format,
        sha256=content.sha256,
        tensors=len(content.tensors),
        numbers=sum(tensor.numel() for tensor in content.tensors.values()),
        prefix=fitted.prefix,
        steps=fitted.steps,
        matched=fitted.matched,
        wanted=len(wanted),
        missing=fitted.missing,
        unexpected=fitted.unexpected,
        misshaped=fitted.misshaped,
        resized=fitted.resized,
        others=fitted.others,
        ignored=content.ignored,
    )


def _times(sides: tuple[int, int]) -> str:
    return f"{sides[0]}×{sides[1]}"
