"""The choice of modules to specialize: components and blocks, and presets of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tokenlens.catalog import check_known

Blocks = str | tuple[int, ...] | None
"""``"all"``, ``"first_third"``, ``"first_half"``, ``"last_third"``, block indices (negative from the end), or None."""

_SPANS: dict[str, Callable[[int], range]] = {
    "all": range,
    "first_third": lambda depth: range(_part(depth, 3)),
    "first_half": lambda depth: range(_part(depth, 2)),
    "last_third": lambda depth: range(depth - _part(depth, 3), depth),
}

_OPTIONS = ("registers", "final_norm")
"""The fields of a Specialization that are no components."""


def _part(depth: int, parts: int) -> int:
    """Return a share of the blocks, rounded half up, and at least 1."""
    return max(1, int(depth / parts + 0.5))


def blocks_of(blocks: Blocks, depth: int) -> tuple[int, ...]:
    """Return the indices of the selected blocks in a model of ``depth`` blocks, sorted.

    Raises:
        LookupError: for a block that the model does not have.

    >>> blocks_of("first_third", 12), blocks_of((0, -1), 12), blocks_of(None, 12)
    ((0, 1, 2, 3), (0, 11), ())
    """
    if blocks is None:
        return ()
    if isinstance(blocks, str):
        return tuple(_SPANS[blocks](depth))
    outside = [block for block in blocks if not -depth <= block < depth]
    if outside:
        raise LookupError(f"the model has blocks 0 to {depth - 1}, got {outside}")
    return tuple(sorted({block % depth for block in blocks}))


def _check_blocks(component: str, blocks: Any) -> Blocks:
    if isinstance(blocks, str) and blocks not in _SPANS:
        raise ValueError(f"{component}={blocks!r}: expected {', '.join(_SPANS)}, numbers of blocks, or None")
    if blocks is None or isinstance(blocks, str):
        return blocks
    numbers = tuple(blocks) if isinstance(blocks, Iterable) else (blocks,)
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise ValueError(f"{component}={blocks!r}: expected {', '.join(_SPANS)}, numbers of blocks, or None")
    return numbers or None


@dataclass(frozen=True)
class Specialization:
    """Components of a Vision Transformer to specialize, and in which blocks.

    Each component is a file of ``tokenlens/specialization/``; None leaves it standard.

    Args:
        norm: the norms of a block.
        layer_scale: LayerScale of both branches.
        qkv: the projections to queries, keys and values, fused or separate.
        proj: the attention's output projection.
        mlp: the linear maps of the MLP.
        registers: whether register tokens use the weights of CLS (``"cls"``) or of the patches (``"patch"``). A
            distillation token always uses those of CLS.
        final_norm: whether the model's final norm is specialized with the norms of the last block.

    Raises:
        ValueError: for invalid blocks, registers or final_norm.

    >>> Specialization(norm="all", qkv=[0, 1]).qkv
    (0, 1)
    """

    norm: Blocks = None
    layer_scale: Blocks = None
    qkv: Blocks = None
    proj: Blocks = None
    mlp: Blocks = None
    registers: Literal["cls", "patch"] = "cls"
    final_norm: bool = True

    def __post_init__(self) -> None:
        for component in self.components():
            object.__setattr__(self, component, _check_blocks(component, getattr(self, component)))
        if self.registers not in ("cls", "patch"):
            raise ValueError(f"registers={self.registers!r}: registers go with 'cls' or with 'patch'")
        if not isinstance(self.final_norm, bool):
            raise ValueError(f"final_norm={self.final_norm!r}: expected True or False")

    @classmethod
    def components(cls) -> tuple[str, ...]:
        """Return the names of the components, in the order of a block."""
        return tuple(field.name for field in fields(cls) if field.name not in _OPTIONS)

    def to_dict(self) -> dict[str, Any]:
        """Return the specialized components, ``registers``, and ``final_norm`` if it is left out, for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None and (name, value) != ("final_norm", True)
        }


PRESETS: dict[str, Specialization] = {
    "norms": Specialization(norm="all"),
    "paper": Specialization(norm="all", layer_scale="all", qkv="first_third"),
    "qkv_all": Specialization(norm="all", layer_scale="all", qkv="all"),
    "everything": Specialization(norm="all", layer_scale="all", qkv="all", proj="all", mlp="all"),
}
"""Named specializations. ``paper`` is the architecture of arXiv 2602.08626; the others are its ablations."""


SpecializationLike = Specialization | str | Mapping[str, Any]
"""A Specialization, the name of a preset, or a mapping as from ``to_dict``."""


def as_specialization(value: SpecializationLike) -> Specialization:
    """Return a Specialization from the name of a preset, a mapping as from ``to_dict``, or a Specialization.

    Raises:
        LookupError: for an unknown preset or component.
        ValueError: for anything else.

    >>> as_specialization({"norm": "all", "registers": "patch"})
    Specialization(norm='all', layer_scale=None, qkv=None, proj=None, mlp=None, registers='patch', final_norm=True)
    """
    if isinstance(value, Specialization):
        return value
    if isinstance(value, str):
        check_known(value, PRESETS, "specialization")
        return PRESETS[value]
    if isinstance(value, Mapping):
        known = (*Specialization.components(), *_OPTIONS)
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise LookupError(f"no component is called {', '.join(map(repr, unknown))}. Available: {', '.join(known)}.")
        return Specialization(**value)
    raise ValueError(f"a specialization is a Specialization or one of {', '.join(PRESETS)}, got {value!r}")
