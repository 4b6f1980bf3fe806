"""Write the model card and the NOTICE of a model that comes with tokenlens, from its run folder and its probes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenlens.probes import ProbeResult
from tokenlens.training.objectives.base import make_options
from tokenlens.training.trained_run import TrainedRun

TEACHERS = {"vit_small_patch14_dinov2": "DINOv2 ViT-S/14 (Oquab et al. 2023), weights under Apache-2.0"}
"""The card's text on each teacher, by timm name. Look up the licence of a teacher before adding it."""

NOTICES = {
    "vit_small_patch14_dinov2": """\
DINOv2 ViT-S/14 (dinov2_vits14, https://github.com/facebookresearch/dinov2),
Copyright (c) Meta Platforms, Inc. and affiliates,
licensed under the Apache License, Version 2.0
(http://www.apache.org/licenses/LICENSE-2.0)."""
}
"""Origin and copyright of weights that a shipped model started from, by timm name."""

IMAGES = "Tiny ImageNet: photographs of ImageNet classes at 64 × 64 pixels, for research use"
"""The card's text on the images."""

CHOICE = (
    "Choice: of the trainings of a verification, those with seed 0 ship, one standard and one specialized. That was "
    "decided before any score was seen."
)

LIMITS = """\
- It is for trying tokenlens without a download, for tests and for tutorials. As a feature extractor it is far
  behind its teacher.
- It has four blocks, and was tuned for minutes on few images of 64 × 64 pixels. What tokenlens measures in it (where
  CLS and patches differentiate, in which channels and heads) need not hold in a ViT-B.
- At other sizes its position embedding is resampled; it was not tuned at them.
- Each of the two was trained once. A difference between `tokenlens_tiny` and `tokenlens_tiny_specialized` is
  therefore no evidence about specialization: `tokenlens verify` judges that over several seeds.
- It was not measured for which people, regions or objects it works badly. It shares the biases of its teacher and of
  its images.
"""

OTHER_COLUMNS = ("step", "epoch", "loss", "lr", "weight_decay", "grad_norm", "images_per_second")
"""Columns of metrics.csv that are not parts of the loss."""

MODELS = {
    "this": "**this model**",
    "start": "its start, before the training",
    "untrained": "the same, untrained",
    "pixels": "pixels, no model",
}
"""The card's text on each model that was probed."""


@dataclass(frozen=True)
class Start:
    """The first blocks of the teacher, which a training started from.

    Args:
        kept: number of blocks.
        of: number of the teacher's blocks.
    """

    kept: int
    of: int


@dataclass(frozen=True)
class Facts:
    """The content of a card.

    Args:
        name: name of the model.
        run: its training.
        start: the blocks of the teacher that it started from; None for another start.
        module: the model.
        bytes: size of the file of weights.
        sha256: hash of that file.
        change: effect of float16 on the outputs: number of ``images``, and ``mean`` and ``largest`` change of a token
            relative to its length.
        probes: pairs of the model whose features were probed (a key of ``MODELS``, or a name) and the result.
    """

    name: str
    run: TrainedRun
    start: Start | None
    module: Any
    bytes: int
    sha256: str
    change: Mapping[str, float]
    probes: Sequence[tuple[str, ProbeResult]]


def write_card(facts: Facts) -> str:
    """Return the card in Markdown."""
    parts = (
        [f"# {facts.name}", "", f"{describe_model(facts.module, facts.run, facts.start)}.", "", *_write_use(facts)],
        ["## Training", "", *_write_training(facts.run.settings, facts)],
        ["## Data and licences", "", *_write_licences(facts)],
        ["## Probes", "", *_write_probes(facts.probes, facts.sha256)],
        ["## Half precision", "", *_write_precision(facts)],
        ["## Limits", "", LIMITS],
        ["## Reproduce", "", *_write_commands(facts)],
    )
    text = "\n".join("\n".join([*part, ""]) for part in parts)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def write_notice(facts: Facts) -> str:
    """Return the NOTICE for weights that started from others: their origin, copyright, and what was changed."""
    assert facts.start is not None
    recipe = facts.run.recipe
    shape = " × ".join(map(str, facts.module.patch_embed.grid_size))
    specialized = ""
    if recipe.specialization is not None:
        specialized = f"CLS and patches were given separate weights (preset {_format(recipe.specialization)}); "
    changes = (
        f"Changed by the tokenlens authors: only the first {facts.start.kept} of {facts.start.of} blocks are kept; the "
        f"position embedding is resampled to {shape} patches; {specialized}all weights were trained on by distilling "
        f"the complete model on {IMAGES.partition(':')[0]} (images for research use); they are stored in float16."
    )
    return "\n".join(
        [
            facts.name,
            "Copyright 2026 The tokenlens authors",
            "",
            "The weights in this folder are licensed under the Apache License, Version 2.0. They derive from",
            NOTICES[_teacher(facts.run)],
            "",
            textwrap.fill(changes, 78),
            "",
        ]
    )


def describe_model(module: Any, run: TrainedRun, start: Start | None = None) -> str:
    """Describe the model in a sentence, without its full stop."""
    recipe = run.recipe
    patch = module.patch_embed.patch_size[0]
    size = module.patch_embed.img_size[0]
    of = f"trained by `{recipe.objective}`"
    if recipe.objective == "distill":
        teacher = TEACHERS[_teacher(run)].partition(" (")[0]
        of = f"distilled from {teacher}"
        if start is not None:
            of = f"the first {start.kept} of {start.of} blocks of {teacher}, distilled from all of them"
    specialized = ""
    if recipe.specialization is not None:
        specialized = f"; separate weights for CLS and patches (`{_format(recipe.specialization)}`)"
    return (
        f"Vision Transformer of {len(module.blocks)} blocks, {module.embed_dim} channels and "
        f"{module.blocks[0].attn.num_heads} heads for images of {size} × {size} pixels "
        f"(patches of {patch}), {of}{specialized}"
    )


def _teacher(run: TrainedRun) -> str:
    options = make_options(run.recipe.objective, run.recipe.objective_options)
    teacher = str(getattr(options, "teacher", "")).partition(".")[0]
    if teacher not in TEACHERS:
        raise ValueError(f"card.TEACHERS has no licence for the teacher {teacher!r}, only for {', '.join(TEACHERS)}")
    return teacher


def _write_use(facts: Facts) -> list[str]:
    millions = sum(parameter.numel() for parameter in facts.module.parameters()) / 1e6
    classes = facts.module.num_classes
    return [
        f"{millions:.2f} million parameters, {facts.bytes / 1e6:.1f} MB in float16; "
        + (f"a classifier of {classes} classes." if classes else "no classifier."),
        "",
        "```python",
        "import tokenlens",
        "",
        f'analysis = tokenlens.analyze("{facts.name}")',
        "```",
    ]


def _write_training(settings: Mapping[str, Any], facts: Facts) -> list[str]:
    run = facts.run
    last = run.metrics.iloc[-1]
    losses = ", ".join(f"{name} {last[name]:.4f}" for name in run.metrics.columns if name not in OTHER_COLUMNS)
    first = settings["sessions"][0]
    hardware = first["hardware"]
    start_text = "random weights"
    if facts.start is not None:
        start_text = f"the first {facts.start.kept} blocks of {shorten_paths(settings['start']['source'])}"
    elif settings["start"] is not None:
        start_text = shorten_paths(settings["start"]["source"])
    on = hardware["gpu"] or f"{hardware['processor']}, {_count(hardware['threads'], 'thread')}"
    return [
        f"Recipe `{settings['name']}`, objective `{run.recipe.objective}`, from {start_text}, seed {run.recipe.seed}.",
        "",
        f"- Images: {settings['data']['count']:,} in {settings['steps']:,} steps of {run.recipe.batch_size} "
        f"({_format(last['epoch'])} epochs).",
        f"- Loss at the end: {last['loss']:.4f}{f' ({losses})' if losses else ''}, means over the last steps.",
        f"- Hardware: {on}, {first['processes']} process{'es' * (first['processes'] > 1)}.",
        f"- Time: {settings['seconds'] / 60:.0f} minutes of steps, {settings['images_per_second']:.1f} images per "
        f"second, in {_count(len(settings['sessions']), 'session')}, from {first['started'][:10]}.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in first['versions'].items())}"
        + (f"; commit {first['commit']}." if first["commit"] else "."),
        *([f"- {CHOICE}"] if first["command"].startswith("tokenlens verify ") else []),
        "",
        "All settings:",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{name}` | {shorten_paths(_format(value))} |" for name, value in _flatten(settings["recipe"])),
    ]


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _write_licences(facts: Facts) -> list[str]:
    run = facts.run
    data = run.settings["data"]
    classes = f" of {data['classes']} classes" if data.get("classes") else ""
    here = f"{shorten_paths(data['source'])}, {data['split']}: {data['count']:,} images{classes}"
    rows = [("images", f"{IMAGES}; here {here}, SHA-256 of names and labels {data['sha256'][:16]}")]
    if run.recipe.objective == "distill":
        rows.append(("teacher", TEACHERS[_teacher(run)]))
    terms = (
        f"Apache-2.0{' (see NOTICE)' if facts.start is not None else ''}; tuned on images that are for research use: "
        "check their terms before any other use"
    )
    rows.append(("this model", terms))
    return ["| what | source and terms |", "|---|---|", *(f"| {what} | {text} |" for what, text in rows)]


def _write_probes(probes: Sequence[tuple[str, ProbeResult]], sha256: str) -> list[str]:
    if not probes:
        return ["No probe was run."]
    ours = {found.provenance["identity"]["weights"] == sha256 for model, found in probes if model == "this"}
    called = {True: "the shipped weights", False: "the weights as trained, in float32"}
    precision = " and ".join(called[one] for one in sorted(ours))
    order = list(MODELS)
    ranked = sorted(probes, key=lambda one: (one[1].task, order.index(one[0]) if one[0] in order else len(order)))
    return [
        "Frozen features, measured with `tokenlens probe`; the interval is over test images."
        + (f" This model was probed with {precision}." if ours else ""),
        "",
        "| probe | data | model | features | images | seed | % | 95 % | score | n |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {found.task} | {_describe_images(found)} | {MODELS.get(model, model)} | "
            f"{found.protocol.get('source', 'patches')} | {found.protocol['images']} | {found.provenance['seed']} | "
            f"{100 * found.value:.1f} | {100 * found.ci_low:.1f}–{100 * found.ci_high:.1f} | {found.unit} | {found.n} |"
            for model, found in ranked
        ),
    ]


def _describe_images(found: ProbeResult) -> str:
    return shorten_paths(str(found.protocol["test images"]))


def _write_precision(facts: Facts) -> list[str]:
    change = facts.change
    return [
        "The weights are stored in float16 and used in float32. Compared with the weights as trained, the tokens of "
        f"the final norm move by {100 * change['mean']:.3f} % of their length on average, by "
        f"{100 * change['largest']:.3f} % at most "
        f"({change['images']:.0f} views of the sample photographs, all tokens).",
        "",
        f"`model.safetensors`: SHA-256 {facts.sha256}",
    ]


def _write_commands(facts: Facts) -> list[str]:
    command = facts.run.settings["sessions"][0]["command"]
    known = command.startswith("tokenlens ")
    return [
        "```bash",
        shorten_paths(command) if known else "# trained in Python, with the settings above",
        f"python shipping/make.py RUN {facts.name} --probes PROBE PROBE …",
        "```",
    ]


def shorten_paths(text: str) -> str:
    """Shorten absolute and parent-relative paths to their last name, since other machines do not have the folders.

    >>> shorten_paths("train --data /data/a/b.tar --set cache=../c/d, ~/.cache/e, hf-hub:owner/name, images/s")
    'train --data b.tar --set cache=d, ~/.cache/e, hf-hub:owner/name, images/s'
    """
    return re.sub(r"(?<![\w.~:/-])(?:\.\.)?/(?:[^\s/]+/)*", "", text)


def _flatten(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{before}{name}.")
        else:
            yield before + name, value


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_format, value))
    return str(value)
