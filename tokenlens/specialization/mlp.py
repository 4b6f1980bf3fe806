"""The linear maps of the MLP."""

from tokenlens.specialization._linear import LinearComponent


class MLP(LinearComponent):
    """Two linear maps, or three in a gated MLP."""
