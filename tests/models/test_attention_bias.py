"""A learned key and value in every attention: softmax over [keys; k'] weights [values; v']."""

import pytest
import timm
import torch
from timm.layers import set_fused_attn

import tokenlens
from tests.support.tiny_models import MODELS, images
from tokenlens.models import load_model
from tokenlens.models.attention_bias import BiasedAttention, add_attention_bias
from tokenlens.specialization import save, save_timm_folder, specialize

NAME = "timm_dinov2_registers"


def biased(name=NAME):
    """Return a model whose attention biases matter."""
    model = add_attention_bias(MODELS[name]())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.bias_k.normal_(0, 2, generator=generator)
            block.attn.bias_v.normal_(0, 1, generator=generator)
    return model


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "scale_norm": True, "gated": True}])
@pytest.mark.parametrize("fused", [True, False])
def test_agrees_with_the_softmax_in_float64(fused, options):
    set_fused_attn(fused)
    try:
        attention = timm.layers.Attention(24, num_heads=3, qkv_bias=True, norm_layer=torch.nn.LayerNorm, **options)
    finally:
        set_fused_attn(True)
    attention = attention.double().eval()
    attention.__class__ = BiasedAttention
    attention.add_bias()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    x = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, 7, 24, dtype=torch.float64)
    for image in range(2):
        q, k, v = (part.reshape(7, 3, 8) for part in attention.qkv(x[image]).chunk(3, dim=-1))
        heads = []
        for head in range(3):
            keys = torch.stack([*attention.k_norm(k[:, head]), attention.bias_k[8 * head : 8 * head + 8]])
            values = torch.stack([*v[:, head], attention.bias_v[8 * head : 8 * head + 8]])
            scores = attention.q_norm(q[:, head]) @ keys.T / 8**0.5
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            heads.append(weights @ values)
        both = attention.norm(torch.cat(heads, dim=-1))
        both = both * torch.sigmoid(attention.gate(x[image])) if options else both
        expected[image] = attention.proj(both)
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="takes no mask"):
        attention(x, attn_mask=torch.zeros(7, 7))


def test_it_adds_a_key_and_a_value_and_changes_nothing_else():
    before = MODELS[NAME]().state_dict()
    model = add_attention_bias(MODELS[NAME]())
    after = model.state_dict()
    added = {f"blocks.{block}.attn.bias_{which}" for block in range(2) for which in "kv"}
    assert set(after) - set(before) == added
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(0 < after[name].abs().max() < 0.2 for name in added)


def test_it_is_saved_and_loaded_also_when_specialized(tmp_path):
    model, x = biased(), images(NAME)
    output = model(x)
    save_timm_folder(model, tmp_path / "biased")
    assert torch.equal(load_model(f"local-dir:{tmp_path / 'biased'}").module(x), output)
    specialize(model, "paper")
    assert torch.equal(model(x), output)  # the law of equality holds for the specialization of this model
    save(model, tmp_path / "both")
    loaded = load_model(f"local-dir:{tmp_path / 'both'}")
    assert torch.equal(loaded.module(x), output)
    assert loaded.family.layout(loaded.module, (32, 32)).attention_bias


def test_models_that_cannot_have_it_say_why():
    with pytest.raises(ValueError, match="has an attention bias already"):
        add_attention_bias(biased())
    with pytest.raises(ValueError, match="specialized; add the attention bias first"):
        add_attention_bias(specialize(MODELS[NAME](), {"qkv": "all"}))
    with pytest.raises(ValueError, match=r"needs the standard attention.*this Eva has EvaAttention"):
        add_attention_bias(MODELS["timm_dinov3"]())
    with pytest.raises(ValueError, match="has no published weights"):
        timm.create_model("attention_bias_vit", architecture="vit_tiny_patch16_224", pretrained=True)
    with pytest.raises(ValueError, match="needs architecture="):
        timm.create_model("attention_bias_vit")


def test_interventions_work_with_it():
    result = tokenlens.intervene(biased(), images(NAME), replace="cls", by=["itself", "zero"], blocks=[0])
    assert set(result.table["by"]) == {"itself", "zero"}
