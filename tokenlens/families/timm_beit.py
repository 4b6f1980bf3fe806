"""Beit of timm: BEiT and BEiT v2, whose attention adds a relative position bias to the scores."""

from tokenlens.families._timm import TimmFamily


class TimmBeit(TimmFamily):
    """timm.models.beit.Beit and its subclasses."""

    name = "timm_beit"
    timm_class = "timm.models.beit.Beit"
