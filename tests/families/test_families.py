"""Every family: its layout, sites and attention; recording leaves no trace in its models."""

import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from tests.support.command_line import REPOSITORY
from tests.support.markdown import blocks
from tests.support.tiny_models import KINDS, MODELS, images
from tests.support.watching import hooks, tensors, watch
from tokenlens.families.base import BlockTaps, Family, Tap, families, find_family
from tokenlens.recording.recorder import IncompleteRecording, evaluating
from tokenlens.tokens import Site, TokenLayout

ALL = sorted(KINDS)
REGULAR = [name for name in ALL if not KINDS[name].special_blocks]
SOME = ["timm_vit", "timm_beit", "timm_eva02", "hf_vit", "hf_vit_eager", "torchvision_vit", "dino_hub"]


@pytest.mark.parametrize("name", ALL)
def test_family_and_layout(name):
    kind, model = KINDS[name], MODELS[name]()
    family = find_family(model)
    assert family.name == kind.family
    assert family.layout(model, kind.image_size) == TokenLayout(kind.grid, kind.prefix, patch_size=kind.patch_size)
    assert len(family.blocks(model)) == kind.blocks
    assert (family.final_norm(model) is not None) == kind.final_norm


@pytest.mark.parametrize("name", REGULAR)
def test_residual_stream_adds_up(name):
    kind = KINDS[name]
    witness, _ = watch(MODELS[name](), images(name))
    sites = witness.sites
    for block in range(2):
        pre, post = sites[block, "resid_pre"], sites[block, "resid_post"]
        assert not torch.allclose(pre, post, atol=0.1)
        if not kind.residual:
            assert {site for b, site in sites if b == block} == {"resid_pre", "norm1", "resid_post"}
            continue
        attn_out, mid, mlp_out = (sites[block, site] for site in ("attn_out", "resid_mid", "mlp_out"))
        assert torch.equal(pre + attn_out, mid)
        assert torch.equal(mid + mlp_out, post)
        torch.testing.assert_close(pre + attn_out + mlp_out, post)
        assert min(attn_out.std(), mlp_out.std()) > 0.01
        if not kind.norms:
            assert not {"norm1", "norm2"} & {site for b, site in sites if b == block}
        elif "post_norm" in name:
            assert torch.equal(sites[block, "norm1"], attn_out)
            assert torch.equal(sites[block, "norm2"], mlp_out)
        else:
            assert torch.equal(witness.norms[block, "norm1"][1], pre)
            assert torch.equal(witness.norms[block, "norm2"][1], mid)
    assert torch.equal(sites[0, "resid_post"], sites[1, "resid_pre"])
    if kind.final_norm:
        assert torch.equal(witness.norms[None, "final_norm"][1], sites[1, "resid_post"])


@pytest.mark.parametrize("name", [name for name in REGULAR if name.startswith("timm_") and name != "timm_naflexvit"])
def test_resid_post_is_what_timm_calls_intermediate_features(name):
    model, x = MODELS[name](), images(name)
    special = len(KINDS[name].prefix)
    options = {"return_prefix_tokens": True} if special else {}
    with torch.no_grad():
        expected = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True, **options)
    witness, _ = watch(model, x)
    for block, features in enumerate(expected):
        found = witness.sites[block, "resid_post"]
        patches, prefix = features if special else (features, found[:, :0])
        assert torch.equal(found, torch.cat([prefix, patches], dim=1))


@pytest.mark.parametrize("name", ALL)
def test_output_is_bit_identical_and_hooks_are_gone(name):
    model, x = MODELS[name](), images(name)
    model.train()
    before = hooks(model)
    with evaluating(model):
        plain = tensors(find_family(model).forward(model, x))
    _, output = watch(model, x)
    assert len(plain) == len(tensors(output)) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, tensors(output), strict=True))
    assert plain[0].abs().sum() > 0
    assert hooks(model) == before
    assert all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(plain, tensors(watch(model, x)[1]), strict=True)), "twice"


@pytest.mark.parametrize(
    ("name", "error"), [*((name, RuntimeError) for name in ALL), *((name, KeyboardInterrupt) for name in SOME)]
)
def test_no_trace_after_an_error(name, error, monkeypatch):
    model, x = MODELS[name](), images(name)
    family, before = find_family(model), hooks(model)
    attention = family.taps(family.blocks(model)[-1]).attention
    forward = attention.forward

    def fail(*args, **kwargs):
        forward(*args, **kwargs)
        raise error("in the middle")

    monkeypatch.setattr(attention, "forward", fail)
    with pytest.raises(error, match="in the middle"):
        watch(model, x)
    assert hooks(model) == before
    assert _len_torch_dispatch_stack() == 0
    assert torch.is_grad_enabled()


def position_bias(model: nn.Module, block: nn.Module, attention: nn.Module) -> Tensor | float:
    """Return the relative position bias of a model from its tables."""
    for part in (block, getattr(attention, "attention", None), getattr(model, "beit", None)):  # transformers
        for name in ("relative_position_bias", "shared_position_bias"):
            if getattr(part, name, None) is not None:
                return getattr(part, name)((4, 4)).double()
    if getattr(attention, "relative_position_bias_table", None) is not None:
        return attention._get_rel_pos_bias().double()
    if getattr(model, "rel_pos_bias", None) is not None:
        return model.rel_pos_bias().double()
    return attention.rel_pos.get_bias().double() if hasattr(attention, "rel_pos") else 0.0


def after_attention(attention: nn.Module) -> nn.Module:
    """Return the first module after the heads."""
    names = ("norm", "attn_out_proj", "proj", "o_proj", "out_proj", "output", "projection_layer", "projection")
    return next(getattr(attention, name) for name in names if hasattr(attention, name))


@pytest.mark.parametrize("name", REGULAR)
def test_attention_equals_float64_softmax(name):
    kind, model, x = KINDS[name], MODELS[name](), images(name)
    family = find_family(model)
    attentions = [family.taps(block).attention for block in family.blocks(model)]
    seen: dict[int, list[Tensor]] = {0: [], 1: []}
    for block, attention in enumerate(attentions):
        if isinstance(attention, nn.MultiheadAttention):  # its fast path calls no module
            attention.register_forward_hook(lambda _, __, output, block=block: seen[block].append(output[0]))
            continue
        for branch in [branch.attn for branch in attention.attns] if hasattr(attention, "attns") else [attention]:
            after_attention(branch).register_forward_pre_hook(lambda _, args, block=block: seen[block].append(args[0]))
    witness, _ = watch(model, x)
    assert sorted(witness.calls) == [0, 1]
    layout = family.layout(model, kind.image_size)
    for block, call in witness.calls.items():
        assert (call.pattern_BHTT is None) == (kind.scores is None), "whether a fused kernel was used"
        q, k, v = (t.double() for t in (call.q_BHTd, call.k_BHTd, call.v_BHTd))
        head_count = 2 * family.taps(family.blocks(model)[block]).parallel
        assert q.shape == k.shape == v.shape == (2, head_count, layout.tokens, q.shape[-1])
        scale = q.shape[-1] ** -0.5 if kind.scores is None else kind.scores
        bias = position_bias(model, family.blocks(model)[block], attentions[block])
        assert ("beit" in name or "relpos" in name) == (isinstance(bias, Tensor) and bias.std() > 0.05)
        pattern = (q @ k.transpose(-1, -2) * scale + bias).softmax(-1)
        every = range(layout.tokens)
        torch.testing.assert_close(call.rows(every).double(), pattern, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(call.columns(every).double(), pattern, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(call.pattern().double(), pattern, atol=1e-6, rtol=1e-5)
        heads = (pattern @ v).transpose(1, 2).flatten(2).float()
        if isinstance(attentions[block], nn.MultiheadAttention):
            heads = attentions[block].out_proj(heads)
        expected = torch.cat(seen[block], dim=-1)
        heads = heads if len(expected) == len(heads) else heads.transpose(0, 1)  # (tokens, images, channels)
        torch.testing.assert_close(heads, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_autocast_bf16(name):
    model, x = MODELS[name](), images(name)
    with torch.autocast("cpu", torch.bfloat16):
        with evaluating(model):
            plain = tensors(find_family(model).forward(model, x))
        witness, output = watch(model, x)
    assert all(torch.equal(a, b) for a, b in zip(plain, tensors(output), strict=True))
    rows = witness.calls[1].rows([0])
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 2, 1), atol=0.02, rtol=0)
    torch.testing.assert_close(rows[..., 0], witness.calls[1].columns([0])[:, :, :1, 0], atol=0.02, rtol=0)


def test_every_family_has_a_tiny_model():
    assert {kind.family for kind in KINDS.values()} == set(families.names())


FIXED_SIZE = ("timm_vit", "timm_beit", "timm_eva02", "hf_vit", "hf_clip_vision", "torchvision_vit")
ANY_SIZE = ("timm_vit_wide", "timm_naflexvit", "dino_hub")


@pytest.mark.parametrize("name", FIXED_SIZE + ANY_SIZE)
def test_wrong_image_size_is_named(name):
    model, fixed = MODELS[name](), name in FIXED_SIZE
    size, text = ((40, 40), "takes images of 32×32 pixels, got 40×40") if fixed else ((30, 32), "patches of 8×8")
    with pytest.raises(ValueError, match=text):
        find_family(model).layout(model, size)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda vit: nn.Sequential(nn.TransformerEncoderLayer(8, 2, batch_first=True)),
            r"no family for torch\.nn\.modules\.container\.Sequential.*timm_vit.*add-a-family",
        ),
        (nn.DataParallel, r"DataParallel is not .* one Vision Transformer: module \(.*get_submodule\('module'\)"),
        (lambda vit: torch.jit.trace(vit, images("torchvision_vit"), check_trace=False), "it is TorchScript.*original"),
        (torch.compile, r"the model is compiled.*_orig_mod"),
    ],
    ids=["unknown", "wrapped", "traced", "compiled"],
)
def test_models_of_no_family_are_named(make, message):
    with pytest.raises(LookupError, match=message):
        find_family(make(MODELS["torchvision_vit"]()))


def test_unknown_blocks_in_a_known_model_are_named():
    model = MODELS["timm_vit"]()
    model.blocks[1] = nn.TransformerEncoderLayer(32, 2, batch_first=True)
    with pytest.raises(LookupError, match=r"because of torch\.nn\.modules\.transformer\.TransformerEncoderLayer"):
        watch(model, images("timm_vit"))
    assert hooks(model) == 0


def test_a_model_with_a_compiled_block_is_refused():
    model = MODELS["timm_vit"]()
    model.blocks[1].compile()
    with pytest.raises(LookupError, match=r"blocks\.1 is compiled"):
        find_family(model)


@pytest.mark.parametrize(
    ("name", "method", "wrong", "message"),
    [
        ("timm_dinov2_registers", "layout", lambda *_: TokenLayout((4, 4)), "21 tokens, but its family expected 17"),
        (
            "dinov2_hub",
            "taps",
            lambda taps, block: BlockTaps(taps.sites | {Site.ATTN_OUT: Tap(block.drop_path1)}, taps.attention),
            r"DinoVisionTransformer did not reach 2 .* block 0 attn_out, block 1",
        ),
        (
            "dino_hub",
            "taps",
            lambda taps, block: BlockTaps(taps.sites | {Site.ATTN_OUT: Tap(block.drop_path)}, taps.attention),
            "block 0 attn_out was seen twice.*shared or called twice",
        ),
        (
            "timm_vit",
            "taps",
            lambda taps, block: BlockTaps(taps.sites, block.mlp),
            "2 expected sites: block 0 attention, block 1 attention",
        ),
    ],
    ids=["layout", "a module that does not run", "a module that is called twice", "another module than attention"],
)
def test_a_family_that_is_wrong_is_stopped(name, method, wrong, message, monkeypatch):
    model = MODELS[name]()
    family = find_family(model)
    right = getattr(family, method)
    monkeypatch.setattr(family, method, lambda *args: wrong(right(*args), args[0]))
    with pytest.raises(ValueError, match=message):  # IncompleteRecording is one
        watch(model, images(name), family)
    assert hooks(model) == 0


class EncoderFamily(Family):
    """A family for nn.TransformerEncoderLayer, whose fast path calls none of its children."""

    def layout(self, model, image_size):
        return TokenLayout((4, 4), ())

    def blocks(self, model):
        return list(model.layers)

    def taps(self, block):
        return BlockTaps({Site.RESID_PRE: Tap(block, "input"), Site.NORM1: Tap(block.norm1)}, block.self_attn)

    def forward(self, model, images):
        return model(images.flatten(2).transpose(1, 2))


def test_transformer_encoder_is_recorded_or_refused():
    # PyTorch 2.15 leaves the fast path if a child has a hook, and everything is seen; else missing sites are named.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(2, 8, 4, 4)
    try:
        witness, _ = watch(model, x, EncoderFamily())
    except IncompleteRecording as error:
        message = str(error)
    else:
        call = witness.calls[1]
        expected = (call.q_BHTd @ call.k_BHTd.mT * 4**-0.5).softmax(-1)
        torch.testing.assert_close(call.rows(range(16)), expected, atol=1e-6, rtol=1e-5)
        return
    assert re.search(r"block 0 norm1.*nn\.TransformerEncoder", message)


def test_matching_imports_no_library_of_models():
    code = (
        "import sys, torch\nfrom tokenlens.families import find_family\n"
        "try:\n    find_family(torch.nn.Linear(2, 2))\nexcept LookupError:\n    pass\n"
        "print([name for name in ('timm', 'transformers', 'torchvision') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_page_on_adding_a_family_runs():
    code = [block.text for block in blocks(REPOSITORY / "docs" / "add-a-family.md", "python")]
    assert len(code) >= 3
    exec(compile("\n".join(code), "add-a-family.md", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("name", [name for name in ALL if KINDS[name].prefix and KINDS[name].family != "timm_cait"])
def test_components_get_one_vector_per_token(name):
    """What specialization replaces must see (images, tokens, channels): it chooses weights along the second axis."""
    model, x = MODELS[name](), images(name)
    family = find_family(model)
    block, shapes = family.blocks(model)[0], {}
    components = family.components(block)
    names = [field for field in ("norm", "layer_scale", "qkv", "proj", "mlp") if field not in components.refused]
    for path in (path for field in names for path in components.of(field)):
        module = block.get_submodule(path) if not isinstance(vars(block)["_parameters"].get(path), Tensor) else None
        if module is not None:
            module.register_forward_pre_hook(lambda _, args, path=path: shapes.update({path: args[0].shape[:-1]}))
    tokens = family.layout(model, KINDS[name].image_size).tokens
    watch(model, x)
    assert set(shapes.values()) == ({(2, tokens)} if names else set()), shapes
