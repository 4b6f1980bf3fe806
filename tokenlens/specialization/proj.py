"""The output projection of the attention."""

from tokenlens.specialization._linear import LinearComponent


class Proj(LinearComponent):
    """The linear map applied after the heads are concatenated."""
