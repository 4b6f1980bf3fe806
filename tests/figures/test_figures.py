"""The look and the files of figures, the options that all have, and the numbers of each figure of an analysis."""

from __future__ import annotations

import contextlib
import re
import sys
import zlib
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tests.support.command_line import REPOSITORY
from tests.support.figure_subjects import figure_of, subject, texts
from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.figures import NothingToDraw, draw, figures, figures_of
from tokenlens.figures._files import as_svg, save_figure
from tokenlens.figures.style import COLOURS

NAMES = figures_of("analysis")


@pytest.mark.parametrize("name", ["depth_profile", "channel_selectivity"])
def test_the_same_numbers_give_the_same_file(name, tmp_path):
    one, two = (
        save_figure(draw(subject("one block"), name), tmp_path / folder, name)[0].read_bytes() for folder in "ab"
    )
    assert one == two


def test_a_large_heat_map_stays_small(tmp_path):
    figure = figure_of("large and untrained", "channel_selectivity")
    svg, _ = save_figure(figure, tmp_path, "large")
    assert svg.stat().st_size <= 200_000


def test_the_users_style_does_not_matter():
    usual = as_svg(draw(subject("one block"), "depth_profile"), "x")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20, "text.usetex": True}):
        assert as_svg(draw(subject("one block"), "depth_profile"), "x") == usual


def test_the_real_thing_is_drawn():
    from tests.support.tiny_models import MODELS, images
    from tokenlens.analysis.analyze import analyze

    for kind in ("timm_deit_distilled", "timm_registers_only", "timm_eva_post_norm"):
        analysis = analyze(MODELS[kind](), images(kind, 5))
        frames = {}
        for name in figures_of("analysis"):
            with contextlib.suppress(NothingToDraw):
                frames[name] = figures.module(name).frame(analysis)
        assert set(frames) >= {"depth_profile", "stage_split", "norm_statistics", "token_norm", "head_matrix"}
        assert ("cka" in frames) == (kind != "timm_registers_only")
        position = "after" if kind == "timm_eva_post_norm" else "before"
        assert f"norm1 ({position} attention)" in texts(draw(analysis, "depth_profile"))


# The shared look


def luminance(colour: str) -> float:
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], channels))


def test_group_colours_differ():
    groups = [COLOURS[group] for group in ("cls", "dist", "reg", "patch")]
    assert len(set(groups)) == 4
    assert abs(luminance(COLOURS["cls"]) - luminance(COLOURS["patch"])) > 0.05


def test_markup_and_dollars_in_names_are_only_text(tmp_path):
    analysis = synthetic_analysis(blocks=2, model="<script>$\\alpha$</script>&amp;")
    svg, _ = save_figure(draw(analysis, "token_norm"), tmp_path, "x")
    root = ElementTree.parse(svg).getroot()
    words = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("<script>$\\alpha$</script>&amp;" in text for text in words)
    assert root.find(".//{http://www.w3.org/2000/svg}script") is None


def test_a_figure_shows_itself_in_a_notebook():
    figure = draw(subject("usual"), "token_norm")
    svg = figure._repr_svg_()
    assert svg.rstrip().endswith("</svg>")
    assert figure._repr_jpeg_() is None
    smallest = min(float(size) for size in re.findall(r"font(?:-size)?: ?([\d.]+)px", svg))
    drawn, shown = (float(re.search(pattern, svg)[1]) for pattern in (r'viewBox="0 0 ([\d.]+)', r'width="([\d.]+)pt"'))
    assert smallest * shown / drawn * 96 / 72 >= 10, "pixels"
    assert isinstance(subject("usual").plot("token_norm"), Figure)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="a figure's name"):
        save_figure(Figure(), tmp_path, name)


def test_unknown_figures_and_options_are_named():
    with pytest.raises(LookupError, match="Did you mean depth_profile"):
        draw(subject("usual"), "depth_profil")
    with pytest.raises(ValueError, match=r"no option metrik\. Options: metric, .*log, blocks, width, height, style"):
        draw(subject("usual"), "depth_profile", metrik="cka")


def test_the_callers_axes_are_drawn_on():
    figure = Figure()
    axes = figure.subplots(1, 3)
    assert draw(subject("usual"), "depth_profile", ax=axes) is figure
    assert len({panel.get_ylim() for panel in axes}) == 1
    assert "vit_small_patch14_dinov2" in texts(figure)
    single = Figure().subplots()
    assert draw(subject("usual"), "depth_profile", metric="cka", ax=single) is single.figure
    with pytest.raises(ValueError, match=r"has 3 panels \(1 × 3\), got 2 axes"):
        draw(subject("usual"), "depth_profile", ax=axes[:2])


# Options that all figures have


def test_sizes_are_what_was_asked_for():
    for width, height in (("single", None), (120, 60), ("double", 100)):
        figure = draw(subject("one block"), "token_norm", width=width, height=height)
        across, high = figure.get_size_inches() * 25.4
        assert across == pytest.approx({"single": 85, "double": 170}.get(width, width))
        assert height is None or high == pytest.approx(height)
    with pytest.raises(ValueError, match=r"'single' \(85 mm\), .* or a number of millimetres, got 'wide'"):
        draw(subject("one block"), "token_norm", width="wide")
    with pytest.raises(ValueError, match="width must be 30 to 1000 mm, got 3"):
        draw(subject("one block"), "token_norm", width=3)
    with pytest.raises(ValueError, match="leave out ax"):
        draw(subject("one block"), "cka", ax=Figure().subplots(1, 4), width="single")


def test_a_style_overrides_the_shared_one(tmp_path):
    file = tmp_path / "mine.mplstyle"
    file.write_text("font.size: 11\naxes.edgecolor: red\n", encoding="utf-8")
    settings = dict(matplotlib.rcParams)
    for style in ({"font.size": 11}, str(file), ["grayscale", file]):
        figure = draw(subject("one block"), "depth_profile", style=style)
        assert figure.axes[0].yaxis.label.get_fontsize() == pytest.approx(11)
    assert dict(matplotlib.rcParams) == settings
    serif = draw(subject("one block"), "depth_profile", style={"font.family": "serif"})
    assert as_svg(serif, "x").count('font-family="serif') == 1
    with pytest.raises(LookupError, match=r"no matplotlib style and no file 'grayscal'\. Did you mean grayscale"):
        draw(subject("one block"), "depth_profile", style="grayscal")
    with pytest.raises(ValueError, match="cannot be used"):
        draw(subject("one block"), "depth_profile", style={"no.such": 1})


def test_blocks_that_cannot_be_are_refused():
    with pytest.raises(NothingToDraw, match="no block '12-14' to draw: vit_small_patch14_dinov2 has 0 to 11"):
        draw(subject("usual"), "depth_profile", blocks="12-14")
    for blocks in ("a", "5-2", [1.5], "0..3", [True]):
        with pytest.raises(ValueError, match="blocks must be a number, a list"):
            draw(subject("usual"), "depth_profile", blocks=blocks)


def test_norms_and_parts_can_be_chosen():
    for name in (
        "depth_profile",
        "stage_split",
        "norm_statistics",
        "channel_selectivity",
        "selectivity_summary",
        "image_similarity",
        "centroid_separation",
    ):
        frame = figures.module(name).frame(subject("usual"), norms="norm1")
        assert set(frame["norm"]) == {"norm1"}
    assert set(figures.module("token_norm").frame(subject("usual"), parts="mean")["part"]) == {"mean"}
    assert set(figures.module("update_ratio").frame(subject("usual"), sites=["attn_out"])["site"]) == {"attn_out"}
    assert set(figures.module("stage_split").frame(subject("usual"), groups="cls-patch")["group"]) == {"cls-patch"}


def test_a_pdf_embeds_its_fonts_as_truetype(tmp_path):
    (pdf,) = save_figure(draw(subject("one block"), "head_matrix"), tmp_path, "x", formats=["pdf"])
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    streams = data + b"".join(_inflated(data))
    assert b"/FontFile2" in streams
    assert b"/Type3" not in streams
    assert b"CreationDate" not in data
    (again,) = save_figure(draw(subject("one block"), "head_matrix"), tmp_path / "b", "x", formats=["pdf"])
    assert again.read_bytes() == data


def _inflated(data):
    for part in data.split(b"stream\n")[1:]:
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj().decompress(part)


def test_text_becomes_outlines_when_asked(tmp_path):
    figure = figure_of("usual", "token_norm")
    (plain,) = save_figure(figure, tmp_path / "a", "x", formats=["svg"])
    (outlined,) = save_figure(figure, tmp_path / "b", "x", formats=["svg"], outlines=True)
    assert "<text" in plain.read_text(encoding="utf-8")
    text = outlined.read_text(encoding="utf-8")
    assert "<text" not in text
    root = ElementTree.fromstring(text)
    ids = {node.get("id") for node in root.iter()}
    links = [node.get("{http://www.w3.org/1999/xlink}href") for node in root.iter()]
    assert {link[1:] for link in links if link} <= ids
    assert all(name is None or name.startswith("x-") for name in ids)


def test_formats_are_named(tmp_path):
    files = save_figure(figure_of("one block", "token_norm"), tmp_path, "x", formats=("png", "pdf", "svg"))
    assert [file.name for file in files] == ["x.png", "x.pdf", "x.svg"]
    with pytest.raises(ValueError, match="saved as svg, png, pdf, got jpg"):
        save_figure(figure_of("one block", "token_norm"), tmp_path, "x", formats=["jpg"])


# Single figures


def test_depth_profile_takes_any_metric():
    analysis = subject("standard")
    frame = figures.module("depth_profile").frame
    assert set(frame(analysis)["state"]) == {"before", "after"}
    around = frame(analysis, metric="cls_patch_cosine")
    assert set(around["norm"]) == {"norm1", "norm2", "final_norm"}
    heads = frame(analysis, metric="attention_entropy", part="normalized")
    assert set(heads["band"]) == {"heads"}
    assert (heads["ci_low"] <= heads["value"]).all()
    sites = frame(analysis, metric="cls_patch_cosine", sites=["attn_out", "mlp_out"])
    assert set(sites["site"]) == {"attn_out", "mlp_out"}
    for options in (
        {"metric": "cls_patch_cosine"},
        {"metric": "attention_entropy"},
        {"metric": "token_norm", "log": True},
        {"metric": "cls_patch_cosine", "sites": ["attn_out", "mlp_out"]},
        {"metric": "update_ratio", "part": "ratio"},
    ):
        assert isinstance(draw(analysis, "depth_profile", **options), Figure)
    with pytest.raises(NothingToDraw, match=r"has no site 'q'\. It has: 'resid_pre', 'norm1'"):
        frame(analysis, metric="cls_patch_cosine", sites=["q"])
    with pytest.raises(LookupError, match="no metric is called 'knn'"):
        frame(analysis, metric="knn")


def test_stages_add_up_to_the_total():
    frame = figures.module("stage_split").frame(subject("usual"))
    wide = frame.pivot(index=["norm", "group", "block"], columns="stage", values="value")
    np.testing.assert_allclose(wide[["centring", "gamma", "beta"]].sum(axis=1), wide["total"], atol=1e-12)


def test_the_split_of_a_specialized_norm_shows_both_sides():
    analysis = subject("usual")
    frame = figures.module("stage_split").frame(analysis)
    apart = frame[frame["group"] == "cls-patch"]
    assert set(apart["weights"]) == {"CLS's and patches'"}
    assert set(frame.loc[frame["group"] == "patch-patch", "weights"]) == {"patches'"}
    wide = apart.pivot(index=["norm", "block"], columns="stage", values="value")
    for stage in ("gamma", "beta"):
        np.testing.assert_allclose(wide[f"{stage}_shared"] + wide[f"{stage}_own"], wide[stage], atol=1e-12)
    figure = figure_of("usual", "stage_split")
    hatched = [bar for bar in figure.axes[0].patches if bar.get_hatch()]
    assert len(hatched) == 2 * analysis.blocks
    said = texts(figure).replace("\n", " ")
    assert "separate γ and β for CLS and patches" in said
    assert "specialized γ of CLS" in said
    standard = draw(subject("standard"), "stage_split")
    assert "specialized" not in texts(standard)
    assert not any(bar.get_hatch() for bar in standard.axes[0].patches)


def untrained_specialization():
    """Return the analysis of a model directly after specialization."""
    analysis = synthetic_analysis(blocks=2, specialized=True)
    table, arrays = analysis.table, analysis.arrays
    zero = table["part"].isin(["gamma_own", "beta_own", "total_own", "relative_distance"])
    table.loc[zero, ["value", "ci_low", "ci_high"]] = 0.0
    table.loc[(table["metric"] == "weight_distance") & (table["part"] == "cosine"), "value"] = 1.0
    for name in [name for name in arrays if name.startswith("norm_differentiation/cls_")]:
        arrays[name] = arrays[name.replace("/cls_", "/patch_")]
    return analysis


@pytest.mark.parametrize("name", ["weight_distance", "norm_weights", "stage_split"])
def test_equal_weights_are_called_equal(name):
    figure = draw(untrained_specialization(), name)
    assert "are equal" in texts(figure).replace("\n", " ")
    assert all(panel.has_data() for panel in figure.axes)
    assert "equal" not in texts(figure_of("usual", name))


def test_weight_distance_is_grouped_by_component():
    frame = figures.module("weight_distance").frame(subject("usual"))
    assert list(dict.fromkeys(frame["component"])) == ["norm", "qkv"]
    assert set(frame.loc[frame["component"] == "qkv", "block"]) == {0, 1, 2, 3}
    assert set(frame.loc[frame["final"], "block"]) == {12}
    assert len(figure_of("usual", "weight_distance").axes) == 4
    only = figures.module("weight_distance").frame(subject("usual"), components="qkv")
    assert set(only["parameter"]) == {"attn.qkv.weight", "attn.qkv.bias"}
    with pytest.raises(NothingToDraw, match=r"not specialized in mlp\. It has: norm, qkv"):
        figures.module("weight_distance").frame(subject("usual"), components="mlp")
    with pytest.raises(NothingToDraw, match=r"does not apply to .*: no module of the model is specialized"):
        figures.module("weight_distance").frame(subject("standard"))


def test_bars_are_stacked_from_zero_outwards():
    analysis = synthetic_analysis(blocks=1)
    rows = (analysis.table["metric"] == "norm_differentiation") & (analysis.table["part"] == "beta")
    analysis.table.loc[rows, "value"] = -0.2
    figure = draw(analysis, "stage_split")
    spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in figure.axes[0].patches]
    centring, gamma, beta = spans
    assert centring[0] == 0
    assert gamma[0] == pytest.approx(centring[1])
    assert beta == pytest.approx((0, -0.2))


def test_an_attention_map_is_in_units_of_uniform():
    frame = figures.module("cls_attention_map").frame
    maps = frame(subject("usual")).groupby("map")["value"].mean()
    np.testing.assert_allclose(maps, 1.0)
    assert set(frame(subject("usual"), block=3)["map"]) == {f"head {head}" for head in range(6)}
    with pytest.raises(NothingToDraw, match="has blocks 0 to 11, got 12"):
        frame(subject("usual"), block=12)


def test_a_head_matrix_has_the_quantities_of_the_model():
    frame = figures.module("head_matrix").frame
    assert list(dict.fromkeys(frame(subject("usual"))["quantity"])) == ["cls-patch", "cls-cls", "patch-cls", "entropy"]
    assert set(frame(subject("no cls"))["quantity"]) == {"patch-reg"}
    assert set(frame(subject("usual"), quantities=["entropy"])["quantity"]) == {"entropy"}
    with pytest.raises(NothingToDraw, match=r"no cls-reg per head\. It has: cls-patch, cls-cls"):
        frame(subject("usual"), quantities=["cls-reg"])


def test_all_shares_of_attention_have_one_scale_with_a_unit():
    panels = draw(subject("usual"), "head_matrix").axes
    limits = [panel.get_images()[0].get_clim() for panel in panels if panel.get_images()]
    assert limits[0] == limits[1] == limits[2] == (0.0, limits[0][1])
    assert limits[3][1] == 1.0
    assert {panel.get_xlabel() for panel in panels[4:]} == {"share of attention", "entropy / log P"}


@pytest.mark.parametrize("width", ["single", "double"])
@pytest.mark.parametrize("name", ["cka", "head_matrix", "channel_selectivity", "norm_weights", "compare_heads"])
def test_block_0_is_on_top_of_every_heat_map(name, width):
    figure = draw(subject("two" if name.startswith("compare") else "usual"), name, width=width)
    maps = [panel for panel in figure.axes if panel.get_images()]
    assert maps
    for panel in maps:
        bottom, top = panel.get_ylim()
        assert top < bottom, panel.get_title(loc="left")


def test_channels_are_in_one_order_in_all_panels():
    figure = draw(subject("usual"), "channel_selectivity")
    images = [np.asarray(panel.get_images()[0].get_array()) for panel in figure.axes[:4]]
    assert images[0].shape == (12, 64)
    assert (np.diff(images[1].mean(0)) >= 0).all()
    arrays = subject("usual").arrays
    order = np.argsort(arrays["dimension_selectivity/output_norm1"].values.mean(0), kind="stable")
    np.testing.assert_allclose(images[2], arrays["dimension_selectivity/input_norm2"].values[:, order])


def test_cka_that_is_not_defined_is_not_drawn():
    analysis = synthetic_analysis(blocks=2)
    for name in [name for name in analysis.arrays if name.startswith("cka/")]:
        analysis.arrays[name].values[:] = np.nan
    with pytest.raises(NothingToDraw, match="needs four images"):
        figures.module("cka").frame(analysis)


def test_the_documented_example_works(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "add-a-figure.md").read_text(encoding="utf-8")
    source = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "attention_peak.py").write_text(source, encoding="utf-8")
    import tokenlens.figures as package

    folders = package.__spec__.submodule_search_locations
    folders.append(str(tmp_path))
    try:
        assert "attention_peak" in figures.names()
        assert "vit_small" in texts(draw(subject("usual"), "attention_peak"))
    finally:
        folders.remove(str(tmp_path))
        sys.modules.pop("tokenlens.figures.attention_peak", None)
