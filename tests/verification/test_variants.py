"""Names of variants and their specializations."""

from __future__ import annotations

import pytest

from tokenlens.verification.variants import specialization_of, variant_of

VARIANTS = ("standard", "norms", "paper", "qkv_all", "everything", "qkv_first_third", "mlp", "proj")


def test_variants_have_names():
    for name in VARIANTS:
        assert variant_of(specialization_of(name)) == name
    with pytest.raises(LookupError, match=r"no variant is called 'papr'. Did you mean paper"):
        specialization_of("papr")
