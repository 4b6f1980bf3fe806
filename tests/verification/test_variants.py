"""Names of variants and their specializations."""

from __future__ import annotations

import pytest

from tests.support.tiny_training import tiny_recipe
from tokenlens.verification.trained_models import describe_setting
from tokenlens.verification.variants import recipe_of_variant, specialization_of, variant_of

VARIANTS = ("standard", "norms", "paper", "qkv_all", "everything", "qkv_first_third", "mlp", "proj")


def test_variants_have_names():
    for name in VARIANTS:
        assert variant_of(specialization_of(name)) == name
    with pytest.raises(LookupError, match=r"no variant is called 'papr'. Did you mean paper"):
        specialization_of("papr")


def test_registers_and_attention_bias_are_other_models_with_the_same_variants():
    recipe = tiny_recipe()
    settings = {}
    for name in ("standard", "registers", "bias"):
        twin = recipe_of_variant(recipe, "paper" if name == "standard" else f"{name}_paper")
        other = recipe_of_variant(recipe, name)
        assert (variant_of(other.specialization), variant_of(twin.specialization)) == ("standard", "paper")
        data = {"data": {"count": 8}, "steps": 4}
        texts = {describe_setting({"recipe": each.to_dict(), **data}) for each in (other, twin)}
        assert len(texts) == 1
        settings[name] = texts.pop()
    assert len(set(settings.values())) == 3
    assert "attention bias" in settings["bias"]
    assert "reg_tokens 4" in settings["registers"]
    assert recipe_of_variant(recipe, "bias_mlp").specialization["mlp"] == "all"
    for wrong in ("bias_papr", "biass", "bias_bias"):
        with pytest.raises(LookupError, match="Did you mean"):
            recipe_of_variant(recipe, wrong)
