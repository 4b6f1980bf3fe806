"""Hugging Face transformers: BEiT, Data2Vec and the image tower of InternVL, whose LayerScale is a bare parameter."""

from typing import ClassVar

from tokenlens.families._hf import HuggingFaceFamily


class HuggingFaceBeit(HuggingFaceFamily):
    """A vision encoder whose blocks multiply their branches by ``lambda_1`` and ``lambda_2``.

    The attention of BEiT and Data2Vec adds a relative position bias to the scores.
    """

    name = "hf_beit"
    parts: ClassVar = {
        ("BeitLayer", "Data2VecVisionLayer", "InternVLVisionLayer"): (
            "layernorm_before",
            "layernorm_after",
            "attention",
        )
    }
