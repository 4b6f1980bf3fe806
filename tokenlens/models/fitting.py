"""Find the weights of a model inside a checkpoint, and adapt their names and sizes to it.

Nothing is assumed about how a checkpoint wraps its weights: all tensors have full names ("teacher.backbone.norm.bias"),
and the model is found by the prefix under which all its names are.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.models.checkpoints import Checkpoint
from tokenlens.specialization import expand_standard_weights
from tokenlens.storage.wording import counted

MAX_NAMES = 8
"""Number of keys of each kind that a message names."""
MAX_CANDIDATES = 32
"""Number of prefixes that are tried."""
HALF = (torch.float16, torch.bfloat16)

AVERAGED = frozenset(("ema", "teacher", "averaged", "average", "avg", "swa", "momentum", "target"))
"""Words in a prefix of averaged weights, which papers evaluate: taken before those of a student."""
OPTIMIZER = frozenset(("optim", "optimizer", "optimizers", "grad", "grads", "exp_avg"))
NEVER_LEFT_OUT = ("norm", "embed", "token", "block", "layer", "ln_", "rope", "prompt", "adapter", "lora")
"""Parts of a name that a model without it would compute differently for: a checkpoint with it does not fit."""

_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class FittedWeights:
    """The weights of a checkpoint under the names and in the sizes of a model, and how they got there.

    Args:
        tensors: in float32 where the checkpoint has half precision.
        prefix: what stands before each name in the checkpoint, without the last dot; empty if nothing does.
        steps: a sentence for each thing that was undone, adapted or left out.
        matched: number of the model's keys that the checkpoint has, in the right shape.
        missing, unexpected, misshaped: what does not fit.
        resized: a sentence for each tensor whose size was adapted.
        left_out: shapes of the optional tensors that are in the checkpoint and not in the model.
        others: other prefixes under which a complete set of weights is, which is not used.
    """

    tensors: dict[str, Tensor]
    prefix: str = ""
    steps: tuple[str, ...] = ()
    matched: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def misfits(self) -> int:
        """Number of keys that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    @property
    def problem(self) -> str | None:
        """Why the weights do not fit, with at most ``MAX_NAMES`` keys of each kind; None if they do."""
        parts = [
            f"{counted(len(keys), 'key')} {kind}: {join_keys(keys)}"
            for kind, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.misshaped),
            )
            if keys
        ]
        return "; ".join(parts) or None


def fit_weights(checkpoint: Checkpoint, model: nn.Module, optional: tuple[str, ...] = ()) -> FittedWeights:
    """Find the weights of a model in a checkpoint, without loading them.

    Of several complete sets, averaged weights (teacher, EMA) are taken before others. Where none is complete, the
    result is the one with the most matching keys, and its ``problem`` says what does not fit.

    Args:
        checkpoint: the checkpoint.
        model: a timm model, standard or specialized; may be on the meta device.
        optional: prefixes of names (a classifier's) that may be missing, left over, or of another shape: these are left
            out of the result.
    """
    wanted = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in checkpoint.tensors.items()}
    tried = {prefix: _fit(meta, prefix, model, wanted, optional) for prefix in _find_prefixes(meta, wanted)}
    complete = [prefix for prefix, fitted in tried.items() if fitted.problem is None]
    if complete:
        best = min(
            complete, key=lambda prefix: (not _words(prefix) & AVERAGED, prefix.count("."), complete.index(prefix))
        )
    else:
        best = max(tried, key=lambda prefix: (tried[prefix].matched, -len(tried[prefix].unexpected)))
    fitted = _fit(checkpoint.tensors, best, model, wanted, optional)
    others = tuple(prefix for prefix in complete if not _is_inside(prefix, best) and not _is_inside(best, prefix))
    steps = (*_describe_prefix(checkpoint, best, others), *fitted.steps)
    outside = [name for name in checkpoint.tensors if best and not name.startswith(f"{best}.")]
    if outside:
        steps += (f"{counted(len(outside), 'key')} elsewhere in the file not used",)
    return replace(fitted, steps=steps, others=others)


def _find_prefixes(tensors: Collection[str], wanted: Collection[str]) -> list[str]:
    """Return the prefixes that may hold the model: those of wanted names, then those of many tensors."""
    matches: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for length in range(len(parts)):
            prefix = ".".join(parts[:length])
            sizes[prefix] += 1
            matches[prefix] += ".".join(parts[length:]) in wanted
    by_name = [prefix for prefix, count in matches.most_common() if count]
    by_size = [prefix for prefix, count in sizes.most_common() if 2 * count >= len(wanted)]
    found = [prefix for prefix in dict.fromkeys(by_name[:MAX_CANDIDATES] + by_size) if not _words(prefix) & OPTIMIZER]
    return found[:MAX_CANDIDATES] or [""]


def _is_inside(prefix: str, other: str) -> bool:
    return not other or f"{prefix}.".startswith(f"{other}.")


def _words(prefix: str) -> set[str]:
    return {prefix.rpartition(".")[2].lower(), *re.split(r"[^a-z0-9]+", prefix.lower())}


def _fit(
    tensors: Mapping[str, Tensor],
    prefix: str,
    model: nn.Module,
    wanted: Mapping[str, Tensor],
    optional: tuple[str, ...],
) -> FittedWeights:
    """Adapt the tensors under one prefix, and compare them with the model."""
    start = f"{prefix}." if prefix else ""
    raw = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    steps: list[str] = []
    raw = _join_chunks(raw, steps)
    half = {tensor.dtype for tensor in raw.values() if tensor.dtype in HALF}
    if half:
        # Before any resampling, which would round again.
        raw = {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in raw.items()}
        steps.append(f"{' and '.join(sorted(str(dtype).removeprefix('torch.') for dtype in half))} to float32")
    timm_names = adapt_to_timm(raw, model)
    renamed = [name for name in raw if name not in timm_names]
    if renamed:
        steps.append(f"{counted(len(renamed), 'key')} renamed, merged or removed as timm does: {join_keys(renamed, 3)}")
    adapted = expand_standard_weights(timm_names, model)
    if len(adapted) > len(timm_names):
        steps.append(f"{len(adapted) - len(timm_names)} standard weights copied for both token groups")
    left_out = {name: tuple(adapted[name].shape) for name in _find_optional(adapted, wanted, optional)}
    if left_out:
        steps.append(f"head left out: {join_keys(left_out, 4)}")
    foreign = _find_foreign(adapted, wanted, model) - left_out.keys()
    if foreign:
        modules = sorted({name.split(".")[0] for name in foreign})
        steps.append(f"{counted(len(foreign), 'key')} beside the model left out: {join_keys(modules, 4)}")
    adapted = {name: tensor for name, tensor in adapted.items() if name not in foreign | left_out.keys()}
    resized = describe_resizing(_match_renamed(raw, adapted), adapted)
    common = wanted.keys() & adapted.keys()
    misshaped = {name for name in common if adapted[name].shape != wanted[name].shape}
    return FittedWeights(
        tensors=adapted,
        prefix=prefix,
        steps=(*steps, *resized),
        matched=len(common - misshaped),
        missing=tuple(sorted(name for name in wanted.keys() - common if not name.startswith(optional or ("\0",)))),
        unexpected=tuple(sorted(adapted.keys() - common)),
        misshaped=tuple(
            f"{name} ({_format_shape(adapted[name])} in the checkpoint, {_format_shape(wanted[name])} in the model)"
            for name in sorted(misshaped)
        ),
        resized=tuple(resized),
        left_out=left_out,
    )


def _join_chunks(tensors: dict[str, Tensor], steps: list[str]) -> dict[str, Tensor]:
    """Undo DINOv2's chunks of blocks, in which block 7 is ``blocks.0.7`` or ``blocks.1.7``."""
    chunked = {name: _CHUNKED.fullmatch(name) for name in tensors if name.startswith("blocks.")}
    matches = [match for match in chunked.values() if match is not None]
    if (
        not matches
        or len(matches) < len(chunked)
        or len({(m[1], m[2]) for m in matches}) > len({m[2] for m in matches})
    ):
        return tensors
    steps.append(f"{len({match[1] for match in matches})} chunks of blocks joined")
    return {
        f"blocks.{match[2]}.{match[3]}" if (match := chunked.get(name)) else name: tensors[name] for name in tensors
    }


def _match_renamed(raw: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors before adaptation under their new names, also the renamed ones that timm may resize."""
    found = {name: tensor for name, tensor in raw.items() if name in adapted}
    gone = {name: tensor for name, tensor in raw.items() if name not in adapted}
    for name, sources in (
        ("pos_embed", [tensor for key, tensor in gone.items() if "pos" in key and tensor.ndim in (2, 3)]),
        ("patch_embed.proj.weight", [tensor for tensor in gone.values() if tensor.ndim == 4]),
    ):
        if name in adapted and name not in raw and len(sources) == 1 and sources[0].numel() != adapted[name].numel():
            found[name] = sources[0]
    before, after = found.get("pos_embed"), adapted.get("pos_embed")
    if gone and before is not None and after is not None and before.ndim == 3 and before.shape[1] == after.shape[1] + 1:
        del found["pos_embed"]  # not resized: the position of CLS was added to the CLS token
    return found


def _find_optional(adapted: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional: tuple[str, ...]) -> list[str]:
    return [
        name
        for name, tensor in adapted.items()
        if optional and name.startswith(optional) and (name not in wanted or wanted[name].shape != tensor.shape)
    ]


def _find_foreign(adapted: Mapping[str, Tensor], wanted: Mapping[str, Tensor], model: nn.Module) -> set[str]:
    """Return the names of modules beside the model: losses, projection heads, decoders, mask tokens.

    Not what a part of the model has in addition, nor what would change its computation (registers, a norm).
    """
    foreign = set()
    for name in adapted.keys() - wanted.keys():
        first, dot, _ = name.partition(".")
        beside = bool(dot) and not hasattr(model, first) and not any(part in first for part in NEVER_LEFT_OUT)
        if beside or first == "mask_token" or (first.startswith("decoder") and not hasattr(model, first)):
            foreign.add(name)
    return foreign


def _describe_prefix(checkpoint: Checkpoint, prefix: str, others: tuple[str, ...]) -> Iterator[str]:
    """Say which wrappers were opened, which prefix was removed, and what else would fit."""
    parts = prefix.split(".") if prefix else []
    opened = max(
        (length for length in range(1, len(parts) + 1) if ".".join(parts[:length]) in checkpoint.wrappers), default=0
    )
    if opened:
        yield f"under {'.'.join(parts[:opened])!r}"
    if parts[opened:]:
        yield f"without the prefix {'.'.join(parts[opened:]) + '.'!r}"
    if others:
        kind = "averaged weights preferred" if _words(prefix) & AVERAGED else "the first complete set taken"
        yield f"{kind}, not the weights under {join_keys([repr(other) for other in others], 4)}"


def adapt_to_timm(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors with timm's names and the model's size of position embedding, as timm would load them.

    Uses the ``checkpoint_filter_fn`` of the module that defines the model's class, if there is one and it understands
    the checkpoint.
    """
    for cls in type(model).__mro__:
        adapt = getattr(sys.modules.get(cls.__module__), "checkpoint_filter_fn", None)
        if adapt is not None:
            options = {"adapt_layer_scale": True} if "adapt_layer_scale" in signature(adapt).parameters else {}
            try:
                adapted: dict[str, Any] = adapt(dict(tensors), model, **options)
            except (RuntimeError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError, AssertionError):
                break  # a foreign checkpoint: compare it unchanged
            return adapted if all(isinstance(tensor, Tensor) for tensor in adapted.values()) else tensors
    return tensors


def describe_resizing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for each tensor whose shape differs."""

    def verb(name: str) -> str:
        return "reshaped" if before[name].numel() == after[name].numel() else "resampled"

    return [
        f"{name} {verb(name)} from {_format_shape(tensor)} to {_format_shape(after[name])}"
        for name, tensor in before.items()
        if name in after and after[name].shape != tensor.shape
    ]


def join_keys(keys: Iterable[str], most: int = MAX_NAMES) -> str:
    """Join keys with commas; beyond ``most`` count them."""
    keys = list(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _format_shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
