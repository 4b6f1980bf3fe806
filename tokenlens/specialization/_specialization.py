"""Which modules hold two sets of weights, in which blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tokenlens.catalog import nearest

Blocks = str | tuple[int, ...] | None
"""``"all"``, ``"first_third"``, ``"first_half"``, ``"last_third"``, numbers (negative from the end), or None."""

_SPANS: dict[str, Callable[[int], range]] = {
    "all": range,
    "first_third": lambda depth: range(_part(depth, 3)),
    "first_half": lambda depth: range(_part(depth, 2)),
    "last_third": lambda depth: range(depth - _part(depth, 3), depth),
}


def _part(depth: int, parts: int) -> int:
    """A share of the blocks, rounded half up, and at least one block."""
    return max(1, int(depth / parts + 0.5))


def blocks_of(blocks: Blocks, depth: int) -> tuple[int, ...]:
    """The numbers of the blocks that are meant in a model of some depth, in order.

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


def _checked(component: str, blocks: Any) -> Blocks:
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
    """Which components of a Vision Transformer get a second set of weights, and in which blocks.

    Each component is a file of ``tokenlens/specialization/``; None leaves it as it is.

    Args:
        norm: the norms of a block; the model's final norm goes with the last block.
        layer_scale: LayerScale of both branches.
        qkv: the projections to queries, keys and values, fused or separate.
        proj: the attention's output projection.
        mlp: the linear maps of the MLP.
        registers: whether register tokens share the weights of CLS (``"cls"``) or of the patches (``"patch"``). The
            distillation token always goes with CLS.

    Raises:
        ValueError: for blocks or a side that there is not.

    >>> Specialization(norm="all", qkv=[0, 1]).qkv
    (0, 1)
    """

    norm: Blocks = None
    layer_scale: Blocks = None
    qkv: Blocks = None
    proj: Blocks = None
    mlp: Blocks = None
    registers: Literal["cls", "patch"] = "cls"

    def __post_init__(self) -> None:
        for component in self.components():
            object.__setattr__(self, component, _checked(component, getattr(self, component)))
        if self.registers not in ("cls", "patch"):
            raise ValueError(f"registers={self.registers!r}: registers go with 'cls' or with 'patch'")

    @classmethod
    def components(cls) -> tuple[str, ...]:
        """The names of the components, in the order of a block."""
        return tuple(field.name for field in fields(cls) if field.name != "registers")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the components that are specialized, and the side of the registers."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None
        }


_PAPER = Specialization(norm="all", layer_scale="all", qkv="first_third")

PRESETS: dict[str, Specialization] = {
    "norms": Specialization(norm="all"),
    "paper": _PAPER,
    "qkv_all": Specialization(norm="all", layer_scale="all", qkv="all"),
    "everything": Specialization(norm="all", layer_scale="all", qkv="all", proj="all", mlp="all"),
}
"""The named ones. ``paper``: the architecture of arXiv 2602.08626; the others are its ablations."""


Wanted = Specialization | str | Mapping[str, Any]
"""How a specialization may be handed over: as it is, by the name of a preset, or as ``to_dict`` gave it."""


def as_specialization(value: Wanted) -> Specialization:
    """A preset by name, what ``to_dict`` gave, or a Specialization as it is.

    Raises:
        LookupError: for an unknown preset or component, with the known ones.
        ValueError: for anything else.

    >>> as_specialization({"norm": "all", "registers": "patch"})
    Specialization(norm='all', layer_scale=None, qkv=None, proj=None, mlp=None, registers='patch')
    """
    if isinstance(value, Specialization):
        return value
    if isinstance(value, str):
        if value not in PRESETS:
            close = nearest(value, PRESETS)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise LookupError(f"no specialization is called {value!r}.{hint} Available: {', '.join(PRESETS)}.")
        return PRESETS[value]
    if isinstance(value, Mapping):
        known = (*Specialization.components(), "registers")
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise LookupError(f"no component is called {', '.join(map(repr, unknown))}. Available: {', '.join(known)}.")
        return Specialization(**value)
    raise ValueError(f"a specialization is a Specialization or one of {', '.join(PRESETS)}, got {value!r}")
