"""Write the model card of a model that comes with tokenlens, from its run folder and its probes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenlens.probes import ProbeResult
from tokenlens.training.objectives.base import make_options
from tokenlens.training.trained_run import TrainedRun

TEACHERS = {"vit_small_patch14_dinov2": "DINOv2 ViT-S/14 (Oquab et al. 2023), weights under Apache-2.0"}
"""The card's text on each teacher, by timm name. Look up the licence of a teacher before adding it."""

IMAGES = (
    "Tiny ImageNet: photographs of ImageNet classes at 64 × 64 pixels, for research use; tin80.tar holds 100 of its "
    "classes, of each the first 80 training images by name, and the validation images"
)
"""The card's text on the images."""

LIMITS = """\
- It is for trying tokenlens without a download, for tests and for tutorials. As a feature extractor it is far
  behind any published model: see the probes.
- It is small and has seen few images, all of 64 × 64 pixels. What tokenlens measures in it (where CLS and patches
  differentiate, in which channels and heads) need not hold in a ViT-B.
- At other sizes its position embedding is resampled; it was not trained at them.
- It was trained once, with one seed. A difference between `tokenlens_tiny` and `tokenlens_tiny_specialized` is
  therefore no evidence about specialization: `tokenlens verify` judges that over several seeds.
- It was not measured for which people, regions or objects it works badly. It shares the biases of its teacher and of
  its images.
"""

OTHER_COLUMNS = ("step", "epoch", "loss", "lr", "weight_decay", "grad_norm", "images_per_second")
"""Columns of metrics.csv that are not parts of the loss."""

MODELS = {"this": "**this model**", "untrained": "the same, untrained", "pixels": "pixels, no model"}


@dataclass(frozen=True)
class Facts:
    """The content of a card.

    Args:
        name: name of the model.
        run: its training.
        module: the model.
        bytes: size of the file of weights.
        sha256: hash of that file.
        change: effect of float16 on the outputs: number of ``images``, and ``mean`` and ``largest`` change of a token
            relative to its length.
        probes: pairs of the model whose features were probed (a key of ``MODELS``, or a name) and the result.
    """

    name: str
    run: TrainedRun
    module: Any
    bytes: int
    sha256: str
    change: Mapping[str, float]
    probes: Sequence[tuple[str, ProbeResult]]


def write_card(facts: Facts) -> str:
    """Return the card in Markdown."""
    parts = (
        [f"# {facts.name}", "", f"{describe_model(facts.module, facts.run)}.", "", *_write_use(facts)],
        ["## Training", "", *_write_training(facts.run.settings, facts.run)],
        ["## Data and licences", "", *_write_licences(facts.run)],
        ["## Probes", "", *_write_probes(facts.probes, facts.sha256)],
        ["## Half precision", "", *_write_precision(facts)],
        ["## Limits", "", LIMITS],
        ["## Reproduce", "", *_write_commands(facts)],
    )
    text = "\n".join("\n".join([*part, ""]) for part in parts)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def describe_model(module: Any, run: TrainedRun) -> str:
    """Describe the model in a sentence, without its full stop."""
    recipe = run.recipe
    patch = module.patch_embed.patch_size[0]
    size = module.patch_embed.img_size[0]
    of = f"trained by `{recipe.objective}`"
    if recipe.objective == "distill":
        of = f"distilled from {TEACHERS[_teacher(run)].partition(' (')[0]}"
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


def _write_training(settings: Mapping[str, Any], run: TrainedRun) -> list[str]:
    last = run.metrics.iloc[-1]
    losses = ", ".join(f"{name} {last[name]:.4f}" for name in run.metrics.columns if name not in OTHER_COLUMNS)
    first = settings["sessions"][0]
    hardware = first["hardware"]
    start = settings["start"]
    start_text = "random weights" if start is None else shorten_paths(start["source"])
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
        "",
        "All settings:",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{name}` | {shorten_paths(_format(value))} |" for name, value in _flatten(settings["recipe"])),
    ]


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _write_licences(run: TrainedRun) -> list[str]:
    data = run.settings["data"]
    classes = f" of {data['classes']} classes" if data.get("classes") else ""
    here = f"{shorten_paths(data['source'])}, {data['split']}: {data['count']:,} images{classes}"
    rows = [("images", f"{IMAGES}; here {here}, SHA-256 of names and labels {data['sha256'][:16]}")]
    if run.recipe.objective == "distill":
        rows.append(("teacher", TEACHERS[_teacher(run)]))
    terms = "part of tokenlens, under Apache-2.0; check the terms of the images before any use other than research"
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
        "| probe | data | model | features | images | % | 95 % | score | n |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {found.task} | {_describe_images(found)} | {MODELS.get(model, model)} | "
            f"{found.protocol.get('source', 'patches')} | {found.protocol['images']} | {100 * found.value:.1f} | "
            f"{100 * found.ci_low:.1f}–{100 * found.ci_high:.1f} | {found.unit} | {found.n} |"
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
    known = command.startswith("tokenlens train ")
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
