"""Eva of timm: EVA, EVA-02, DINOv3, Perception Encoder and the RoPE ViTs."""

from tokenlens.families._timm import TimmFamily


class TimmEva(TimmFamily):
    """timm.models.eva.Eva and its subclasses."""

    name = "timm_eva"
    timm_class = "timm.models.eva.Eva"
