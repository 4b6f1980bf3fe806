"""The models of transformers: what is recorded equals the library's own hidden states and attentions."""

import copy

import pytest
import torch

from tests.support.tiny_models import KIN, KINDS, MODELS, images
from tests.support.watching import watch
from tokenlens.families import find_family, find_vit
from tokenlens.families._hf import HuggingFaceFamily
from tokenlens.tokens import TokenLayout

HF = [name for name in sorted(KINDS | KIN) if name.startswith("hf_")]


def eager_encoder(name):
    """Return a copy of the encoder of a model that computes attention step by step and returns what it computes."""
    model = MODELS[name]()
    encoder = model if name == "hf_git" else find_family(model).trunk(model)  # GIT's encoder returns no attentions
    config = copy.deepcopy(encoder.config)
    config._attn_implementation = "eager"
    config.output_hidden_states = config.output_attentions = True
    eager = type(encoder)(config)
    assert not eager.load_state_dict(encoder.state_dict(), strict=False).unexpected_keys  # it may have a pooler
    return eager.eval()


@pytest.mark.parametrize("name", HF)
def test_equals_hidden_states_and_attentions(name):
    model, eager = MODELS[name](), eager_encoder(name)
    family = find_family(eager)
    assert isinstance(family, HuggingFaceFamily)
    witness, _ = watch(model, images(name))
    with torch.no_grad():
        output = family.forward(eager, images(name))
    close = {"atol": 2e-5, "rtol": 1e-4}
    assert len(output.hidden_states) >= 2
    assert len(output.attentions) == 2
    torch.testing.assert_close(witness.sites[0, "resid_pre"], output.hidden_states[0], **close)
    torch.testing.assert_close(witness.sites[0, "resid_post"], output.hidden_states[1], **close)
    last = witness.sites[1, "resid_post"] if family.final_norm(eager) is None else witness.sites[None, "final_norm"]
    if "blip" in name:  # its norm runs twice, over all tokens and over the pooled one, so it is no site
        last = eager.post_layernorm(last)
    torch.testing.assert_close(last, output.last_hidden_state, **close)
    for block, pattern in enumerate(output.attentions):
        every = range(pattern.shape[-1])
        torch.testing.assert_close(witness.calls[block].rows(every), pattern, **close)
        torch.testing.assert_close(witness.calls[block].columns(every), pattern, **close)


@pytest.mark.parametrize("name", sorted(KIN))
def test_kin_of_other_models(name):
    kind, model = KIN[name], MODELS[name]()
    family = find_family(model)
    assert family.name == kind.family
    assert family.layout(model, kind.image_size) == TokenLayout(
        kind.grid, kind.prefix, kind.patch_start, patch_size=kind.patch_size
    )
    assert (family.final_norm(model) is not None) == kind.final_norm
    sites = watch(model, images(name))[0].sites
    for block in range(2):
        assert torch.equal(sites[block, "resid_pre"] + sites[block, "attn_out"], sites[block, "resid_mid"])
        assert torch.equal(sites[block, "resid_mid"] + sites[block, "mlp_out"], sites[block, "resid_post"])


@pytest.mark.parametrize("name", ["hf_mae", "hf_mae_pretraining"])
def test_mae_keeps_every_patch_in_its_order(name):
    model, x = MODELS[name](), images(name)
    encoder = find_family(model).trunk(model)
    with torch.no_grad():
        patches = encoder.embeddings.patch_embeddings(x) + encoder.embeddings.position_embeddings[:, 1:]
    seen = [watch(model, x)[0].sites for _ in range(2)]
    assert torch.equal(seen[0][0, "resid_pre"][:, 1:], patches)
    assert torch.equal(seen[0][1, "resid_post"], seen[1][1, "resid_post"]), "no random numbers"
    assert model.config.mask_ratio == 0.75
    assert "without masking" in find_family(model).notes(model)[0]


def test_mae_keeps_its_mask_ratio_after_an_error():
    model = MODELS["hf_mae"]()
    with pytest.raises(RuntimeError):
        find_family(model).forward(model.double(), images("hf_mae"))
    assert model.config.mask_ratio == 0.75


def test_siglip2_cuts_patches_as_its_image_processor():
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    model, x = MODELS["hf_siglip2_vision"](), images("hf_siglip2_vision")
    seen = []
    model.embeddings.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    watch(model, x)
    assert torch.equal(seen[0], torch.stack([convert_image_to_patches(image, 8) for image in x]))


@pytest.mark.parametrize("name", ["hf_beit", "hf_data2vec_beit", "hf_internvl"])
def test_updates_include_the_bare_layer_scale(name):
    model = MODELS[name]()
    block, seen = find_family(model).blocks(model)[0], []
    block.attention.register_forward_hook(lambda *args: seen.append(args[-1][0]))
    witness, _ = watch(model, images(name))
    assert torch.equal(witness.sites[0, "attn_out"], block.lambda_1.detach() * seen[0])
    assert not witness.sites[0, "attn_out"].requires_grad


def test_an_encoder_inside_another_model_is_found_at_its_path():
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    text = transformers.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=99)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=98)
    )
    found = find_vit(model)
    assert found.module is model.model.vision_tower
    assert "The analyzed model is model.vision_tower (CLIPVisionModel, hf_vit)" in found.note


def test_a_backbone_that_normalizes_several_blocks_has_no_final_norm():
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    for stages, has_norm in ((["stage2"], True), (["stage1", "stage2"], False)):
        model = transformers.Dinov2Backbone(transformers.Dinov2Config(**sizes, out_features=stages))
        assert (find_family(model).final_norm(model) is not None) == has_norm
        assert ((None, "final_norm") in watch(model, torch.randn(1, 3, 32, 32))[0].sites) == has_norm
