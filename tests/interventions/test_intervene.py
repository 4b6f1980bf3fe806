"""Laws of interventions, and agreement with computations from hooks alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import tokenlens
from tests.support.command_line import finished, process
from tests.support.tiny_models import KINDS, MODELS, images
from tests.support.watching import hooks, watch
from tokenlens.families import find_family
from tokenlens.interventions import EFFECT_COLUMNS, Intervention, intervene, replacements
from tokenlens.storage.result import Result

CLASSIFIER = "timm_vit"
NO_LAST_OUTPUT = ("timm_cait", "capi_rms")
"""Kinds whose last block has no site ``resid_post``."""

WITH_CLS = [name for name, kind in KINDS.items() if "cls" in kind.prefix and name not in NO_LAST_OUTPUT]


def run(model: nn.Module, pixels: torch.Tensor, **options) -> Intervention:
    return intervene(model, pixels, **{"batch_size": 2} | options)


def values(found: Intervention, metric: str = "final_cosine", **filters) -> np.ndarray:
    rows = found.table
    for column, wanted in {"metric": metric, **filters}.items():
        rows = rows[rows[column] == wanted]
    return found.per_image.to_numpy()[:, rows.index]


@pytest.mark.parametrize("name", KINDS)
def test_replacing_tokens_by_themselves_changes_nothing(name):
    model, pixels = MODELS[name](), images(name, 3)
    family = find_family(model)
    layout = family.layout(model, tuple(pixels.shape[-2:]))
    whole = [block for block in family.blocks(model) if family.block_layout(block, layout) == layout]
    taps = {site: tap for site, tap in family.taps(whole[0]).sites.items() if site in family.taps(whole[-1]).sites}
    single = [site for site, tap in taps.items() if tap.gain is None and not tap.plus]
    sites = [site for site in single if site != "resid_mid" or {"resid_pre", "attn_out"} <= set(single)]
    before = watch(model, pixels)[0].sites
    found = run(model, pixels, replace=layout.groups[0], by="itself", site=sites, img_size=tuple(pixels.shape[-2:]))
    cosines = found.select("final_cosine")
    assert np.allclose(cosines["value"], 1, atol=1e-12)
    assert set(cosines["n"]) == {3}
    assert "resid_pre" in set(cosines["site"])
    after = watch(model, pixels)[0].sites
    assert all(torch.equal(before[key], after[key]) for key in before), "the model is left as it was"
    assert hooks(model) == 0


@pytest.mark.parametrize("name", WITH_CLS)
def test_replacing_cls_after_the_last_block_changes_no_patch(name):
    found = run(MODELS[name](), images(name, 2), by=["zero", "shuffle"], blocks=[-1])
    assert (values(found, group="patch") == 1).all()
    assert (values(found, group="cls", by="shuffle") < 1).all()


def final_tokens(model: nn.Module, pixels: torch.Tensor, **options) -> list[torch.Tensor]:
    """Return the final tokens of every forward pass of an intervention on one batch."""
    finals: list[torch.Tensor] = []
    norm = find_family(model).final_norm(model)
    with norm.register_forward_hook(lambda _module, _args, y: finals.append(y.clone())):
        run(model, pixels, batch_size=len(pixels), **options)
    return finals


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov2_registers", "hf_dinov2"])
def test_the_laws_hold_to_the_bit(name):
    model, pixels = MODELS[name](), images(name, 2)
    sites = ["resid_pre", "norm1", "attn_out", "resid_mid", "norm2", "mlp_out", "resid_post"]
    size = tuple(pixels.shape[-2:])
    untouched, *replaced = final_tokens(model, pixels, by="itself", site=sites, replace=["cls", "patch"], img_size=size)
    assert len(replaced) == 2 * len(sites) * len(find_family(model).blocks(model))
    assert all(torch.equal(each, untouched) for each in replaced)
    untouched, zero = final_tokens(model, pixels, by="zero", blocks=[-1], img_size=size)
    assert torch.equal(zero[:, 1:], untouched[:, 1:]), "CLS after the last block reaches no other token"
    assert not torch.equal(zero[:, 0], untouched[:, 0])


@pytest.mark.parametrize(("by", "extra"), [(["zero"], 1), (["zero", "mean", "noise", "shuffle"], 2)])
def test_k_conditions_take_at_most_k_plus_two_passes(by, extra):
    passes = final_tokens(MODELS[CLASSIFIER](), images(CLASSIFIER, 3), by=by, blocks="each")
    assert len(passes) == 2 * len(by) + extra
    found = final_tokens(MODELS[CLASSIFIER](), images(CLASSIFIER, 3), replace="high_norm", by="register", blocks=[1])
    assert len(found) == 2 + 2


def expected_cosines(model: nn.Module, pixels: torch.Tensor, block: int, new_CLS: torch.Tensor) -> torch.Tensor:
    """Return each image's mean cosine of the final patches to themselves, with plain hooks of PyTorch."""
    finals: list[torch.Tensor] = []
    handle = model.norm.register_forward_hook(lambda _module, _args, y: finals.append(y.double()))
    with torch.no_grad():
        model(pixels)

        def replace(_module, _args, output):
            output = output.clone()
            output[:, 0] = new_CLS
            return output

        with model.blocks[block].register_forward_hook(replace):
            model(pixels)
    handle.remove()
    before, after = finals
    return cosine_similarity(before[:, 1:], after[:, 1:], dim=-1).mean(-1)


def test_the_effects_agree_with_plain_hooks():
    model, pixels = MODELS[CLASSIFIER](), images(CLASSIFIER, 5)
    found = run(model, pixels, by=["zero", "mean", "shuffle"], blocks=[0])
    cls_BD = watch(model, pixels)[0].sites[0, "resid_post"][:, 0]
    for by, new in {"zero": torch.zeros_like(cls_BD), "mean": cls_BD.double().mean(0).float()}.items():
        expected = expected_cosines(model, pixels, 0, new)
        assert np.allclose(values(found, by=by, group="patch")[:, 0], expected, atol=1e-6), by
    # Every image gets the token of another one: no donor twice, none its own.
    by_donor = np.stack([expected_cosines(model, pixels, 0, cls_BD[donor].expand_as(cls_BD)) for donor in range(5)])
    difference = np.abs(by_donor - values(found, by="shuffle", group="patch")[:, 0])
    donors = difference.argmin(0)
    assert difference.min(0).max() < 1e-6
    assert sorted(donors) == list(range(5))
    assert not (donors == np.arange(5)).any()


def test_noise_has_the_mean_and_spread_of_the_group():
    model, pixels = MODELS["timm_dinov2_registers"](), images("timm_dinov2_registers", 64)
    seen: list[torch.Tensor] = []

    class Watched(replacements.get("noise")):  # type: ignore[misc]
        def compute(self, x_BTD, given):
            seen.append(super().compute(x_BTD, given))
            return seen[-1]

    real = replacements.get
    try:
        replacements.get = lambda name: Watched
        run(model, pixels, replace="cls", by="noise", blocks=[0], batch_size=16)
    finally:
        replacements.get = real
    noise = torch.cat(seen).double()
    tokens = watch(model, pixels)[0].sites[0, "resid_post"].double()
    patches = tokens[:, 5:].flatten(0, 1)
    sd = patches.std(0)
    assert ((noise[:, 5:].flatten(0, 1).mean(0) - patches.mean(0)) / sd).abs().max() < 0.15
    assert (noise[:, 5:].flatten(0, 1).std(0) / sd - 1).abs().max() < 0.1
    spread = tokens[:, 0].std(0)
    assert ((noise[:, 0].mean(0) - tokens[:, 0].mean(0)) / spread).abs().max() < 0.6


def test_numbers_do_not_depend_on_the_batch_size():
    model, pixels = MODELS["timm_dinov2_registers"](), images("timm_dinov2_registers", 5)
    options = {"replace": ["cls", "patch"], "by": ["mean", "noise", "shuffle"], "blocks": [0]}
    one, three = (run(model, pixels, batch_size=size, **options) for size in (1, 3))
    assert np.allclose(one.per_image, three.per_image, atol=2e-6, equal_nan=True)
    pd.testing.assert_index_equal(one.per_image.index, three.per_image.index)
    assert list(one.per_image.index) == [f"image {i}" for i in range(5)]


def test_class_outputs_are_compared_and_left_out_without_a_classifier():
    model, pixels = MODELS[CLASSIFIER](), images(CLASSIFIER, 4)
    found = run(model, pixels, by=["zero", "itself"], blocks=[1])
    assert (values(found, "class_kl", by="itself") == 0).all()
    assert (values(found, "class_agreement", by="itself") == 1).all()
    assert (values(found, "class_kl", by="zero") > 0).all()
    bare = run(MODELS["dinov2_hub"](), images("dinov2_hub"), by="zero", blocks=[0])
    assert "does not classify" in bare.not_applicable["class_kl"]
    with pytest.raises(LookupError, match="does not classify"):
        bare.select("class_kl")


def test_high_norm_patches_are_replaced_with_a_control_of_as_many():
    name = "timm_dinov2"
    model, pixels = MODELS[name](), images(name, 6)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def plant(_module, _args, output):  # patch 5 of the first four images becomes an outlier
        output = output.clone()
        output[: min(4, len(output)), 6] = 300 * direction
        return output

    with model.blocks[0].register_forward_hook(plant):
        found = run(model, pixels, replace="high_norm", by="mean", blocks=[0], batch_size=6)
    tokens = found.select("replaced_tokens").set_index("replace")["value"]
    assert tokens["high_norm"] == tokens["high_norm_control"] == pytest.approx(4 / 6)
    cosines = found.select("final_cosine", group="patch", part="others").set_index("replace")
    assert set(cosines["n"]) == {4}
    plain = run(MODELS[name](), pixels, replace="high_norm", by="mean", blocks=[0])
    assert "final_cosine" not in set(plain.table["metric"])
    assert any("no image has such a token" in reason for reason in plain.not_applicable.values())


def test_a_random_network_shows_no_effect_of_high_norm_beyond_its_control():
    # Nothing is special about tokens of a random network, so replacing one group costs what as many others cost.
    model, pixels = MODELS["timm_vit"](), images("timm_vit", 24)
    found = run(model, pixels, replace=["patch"], by="shuffle", blocks=[0], share=1 / 16, seed=1, batch_size=8)
    other = run(model, pixels, replace=["patch"], by="shuffle", blocks=[0], share=1 / 16, seed=2, batch_size=8)
    difference = values(found, group="cls") - values(other, group="cls")
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference)) + 1e-9


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"replace": "reg"}, LookupError, "no reg token"),
        ({"by": "zeros"}, LookupError, "zero"),
        ({"site": "q"}, LookupError, "attention kernel"),
        ({"blocks": [7]}, LookupError, "blocks 0 to 1"),
        ({"replace": "patch", "share": 0.0}, ValueError, "share"),
        ({"blocks": "all"}, ValueError, "each"),
        ({"blocks": []}, LookupError, "at least one of the blocks"),
        ({"seed": 2**40}, ValueError, "seed"),
        ({"replace": []}, ValueError, "at least one"),
    ],
)
def test_wrong_inputs_are_refused_and_leave_no_hook(options, error, words):
    model = MODELS[CLASSIFIER]()
    with pytest.raises(error, match=words):
        run(model, images(CLASSIFIER), **options)
    assert hooks(model) == 0


def test_one_image_cannot_be_shuffled():
    with pytest.raises(ValueError, match="two images"):
        run(MODELS[CLASSIFIER](), images(CLASSIFIER, 1), by="shuffle")


def test_hooks_are_gone_after_an_error_in_the_model():
    model = MODELS[CLASSIFIER]()

    def fail(*_):
        raise RuntimeError("broken")

    handle = model.blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        run(model, images(CLASSIFIER))
    handle.remove()
    assert hooks(model) == 0


def test_a_run_folder_is_read_back_as_it_was(tmp_path):
    found = run(MODELS[CLASSIFIER](), images(CLASSIFIER, 3), replace=["cls", "patch"], by=["zero", "mean"])
    folder = found.save(tmp_path / "run", report=False)
    read = Result.load(folder)
    assert isinstance(read, Intervention)
    pd.testing.assert_frame_equal(read.table, found.table)
    assert tuple(read.table.columns) == EFFECT_COLUMNS
    assert np.array_equal(read.per_image.to_numpy(), found.per_image.to_numpy(), equal_nan=True)
    assert read.provenance["unseen"].keys() == {"zero"}
    assert read.layout == found.layout
    means = np.nanmean(read.per_image.to_numpy().astype(float), axis=0)
    assert np.allclose(means, read.table["value"], rtol=1e-5), "the table is recomputable from the values per image"


def test_interventions_on_two_models_are_compared_by_image(tmp_path):
    from tokenlens import compare

    pixels = images(CLASSIFIER, 4)
    one, two = MODELS[CLASSIFIER](), MODELS["timm_dinov2"]()
    results = [run(model, pixels, by=["zero", "mean"], blocks=[0]) for model in (one, two)]
    folder = results[1].save(tmp_path / "two", report=False)
    found = compare(results[0], folder, labels=["one", "two"])
    assert found.pairing["two"].paired
    row = found.differences.query("metric == 'final_cosine' and part == 'cls by zero all' and group == 'patch'").iloc[0]
    expected = [float(values(each, by="zero", group="patch").mean()) for each in (results[1], results[0])]
    assert (row["value"], row["baseline_value"]) == pytest.approx(expected, abs=1e-6)
    analysis = tokenlens.analyze(one, pixels, metrics=["token_norm"])
    with pytest.raises(ValueError, match=r"interventions only: Intervention\(.* is one, Analysis\(.* is not"):
        compare(results[0], analysis)


def test_two_processes_give_what_one_gives(tmp_path):
    script = """
import sys, torch, pandas
from torch import distributed
from tests.support.command_line import finished, process
from tests.support.tiny_models import MODELS, images
from tokenlens import intervene
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
options = {"replace": ["cls", "patch"], "by": ["mean", "noise"], "blocks": [0], "batch_size": 2}
found = intervene(MODELS["timm_vit"](), images("timm_vit", 5), **options)
if rank == 0:
    found.save(out, report=False)
distributed.destroy_process_group()
"""
    running = [process("-c", script, rank, tmp_path / "store", tmp_path / "run", cwd=tmp_path) for rank in (0, 1)]
    for each in running:
        exit_code, _, stderr = finished(each)
        assert exit_code == 0, stderr
    together = Intervention.load(tmp_path / "run")
    alone = run(MODELS[CLASSIFIER](), images(CLASSIFIER, 5), replace=["cls", "patch"], by=["mean", "noise"], blocks=[0])
    pd.testing.assert_frame_equal(together.table, alone.table, rtol=1e-5, atol=2e-6)
    assert np.allclose(together.per_image, alone.per_image, atol=2e-6)


def test_specialized_models_can_be_replaced_in(tmp_path):
    from tokenlens import specialize

    model = MODELS["timm_dinov2"]()
    pixels = images("timm_dinov2", 3)
    plain = run(model, pixels, by="zero", blocks=[0])
    specialized = specialize(model, "paper")
    found = run(specialized, pixels, by="zero", blocks=[0])
    assert np.allclose(found.table["value"], plain.table["value"], atol=1e-6)
    assert find_family(specialized).name == "timm_vit"
    assert found.provenance["specialization"]["prefix"] == ["cls"]
