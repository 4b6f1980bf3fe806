"""The model card of a model that comes with tokenlens, from what its run folder and its probes say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenlens.probes import ProbeResult
from tokenlens.training.objectives.base import options_of
from tokenlens.training.run import TrainedRun

TEACHERS = {"vit_small_patch14_dinov2": "DINOv2 ViT-S/14 (Oquab et al. 2023), weights under Apache-2.0"}
"""By timm name: what a card says of a teacher. A teacher that is not here has a licence to be looked up first."""

IMAGES = (
    "Tiny ImageNet: photographs of ImageNet classes at 64 × 64 pixels, for research use; tin80.tar holds 100 of its "
    "classes, of each the first 80 training images by name, and the validation images"
)
"""What a card says of the images."""

LIMITS = """\
- It is for trying tokenlens without a download, for tests and for tutorials. As a feature extractor it is far
  behind any published model: see the probes.
- It is small and has seen few images, all of 64 × 64 pixels. What tokenlens measures in it (where CLS and patches
  part, which channels, which heads) need not be so in a ViT-B.
- At other sizes its position embedding is resampled; it was never trained so.
- It was trained once, with one seed. A difference between `tokenlens_tiny` and `tokenlens_tiny_specialized` is
  therefore no evidence about specialization: `tokenlens verify` judges that over several seeds.
- Which groups of people, places or things it serves badly was not measured. It has learnt from a teacher and from
  images whose biases it shares.
"""

OWNERS = {"own": "**this model**", "untrained": "the same, untrained", "pixels": "pixels, no model"}


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Args:
        name: of the model.
        run: its training.
        module: the model itself.
        bytes: of the file of weights.
        sha256: of that file.
        moved: what float16 did to the outputs: ``images``, and ``mean`` and ``largest`` share of a token's length.
        probes: whose features, and the result.
    """

    name: str
    run: TrainedRun
    module: Any
    bytes: int
    sha256: str
    moved: Mapping[str, float]
    probes: Sequence[tuple[str, ProbeResult]]


def card(facts: Facts) -> str:
    """The card in Markdown."""
    parts = (
        [f"# {facts.name}", "", f"{described(facts.module, facts.run)}.", "", *_use(facts)],
        ["## Training", "", *_training(facts.run.settings, facts.run)],
        ["## Data and licences", "", *_licences(facts.run)],
        ["## Probes", "", *_probes(facts.probes, facts.sha256)],
        ["## Half precision", "", *_precision(facts)],
        ["## Limits", "", LIMITS],
        ["## To make it again", "", *_again(facts)],
    )
    text = "\n".join("\n".join([*part, ""]) for part in parts)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def described(module: Any, run: TrainedRun) -> str:
    """The model in a sentence, without its full stop."""
    recipe = run.recipe
    patch = module.patch_embed.patch_size[0]
    size = module.patch_embed.img_size[0]
    of = f"trained by `{recipe.objective}`"
    if recipe.objective == "distill":
        of = f"distilled from {TEACHERS[_teacher(run)].partition(' (')[0]}"
    two = (
        ""
        if recipe.specialization is None
        else (f"; CLS and patches have weights of their own (`{_text(recipe.specialization)}`)")
    )
    return (
        f"Vision Transformer of {len(module.blocks)} blocks, {module.embed_dim} channels and "
        f"{module.blocks[0].attn.num_heads} heads for images of {size} × {size} pixels (patches of {patch}), {of}{two}"
    )


def _teacher(run: TrainedRun) -> str:
    options = options_of(run.recipe.objective, run.recipe.objective_options)
    teacher = str(getattr(options, "teacher", "")).partition(".")[0]
    if teacher not in TEACHERS:
        raise ValueError(f"card.TEACHERS has no licence for the teacher {teacher!r}, only for {', '.join(TEACHERS)}")
    return teacher


def _use(facts: Facts) -> list[str]:
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


def _training(settings: Mapping[str, Any], run: TrainedRun) -> list[str]:
    last = run.metrics.iloc[-1]
    losses = [name for name in run.metrics.columns if name not in TAKEN]
    first = settings["sessions"][0]
    hardware = first["hardware"]
    start = settings["start"]
    start_text = "random weights" if start is None else without_folders(start["source"])
    on = hardware["gpu"] or f"{hardware['processor']}, {_counted(hardware['threads'], 'thread')}"
    return [
        f"Recipe `{settings['name']}`, objective `{run.recipe.objective}`, from {start_text}, seed {run.recipe.seed}.",
        "",
        f"- Images: {settings['data']['count']:,} in {settings['steps']:,} steps of {run.recipe.batch_size} "
        f"({_text(last['epoch'])} epochs).",
        f"- Loss at the end: {last['loss']:.4f}{_in_brackets(f'{name} {last[name]:.4f}' for name in losses)}, "
        "means over the last steps.",
        f"- Hardware: {on}, {first['processes']} process{'es' * (first['processes'] > 1)}.",
        f"- Time: {settings['seconds'] / 60:.0f} minutes of steps, {settings['images_per_second']:.1f} images per "
        f"second, in {_counted(len(settings['sessions']), 'session')}, from {first['started'][:10]}.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in first['versions'].items())}"
        + (f"; commit {first['commit']}." if first["commit"] else "."),
        "",
        "All settings:",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{name}` | {without_folders(_text(value))} |" for name, value in _flat(settings["recipe"])),
    ]


def _in_brackets(parts: Iterable[str]) -> str:
    text = ", ".join(parts)
    return f" ({text})" if text else ""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


TAKEN = ("step", "epoch", "loss", "lr", "weight_decay", "grad_norm", "images_per_second")
"""Columns of metrics.csv that are not parts of the loss."""


def _licences(run: TrainedRun) -> list[str]:
    data = run.settings["data"]
    classes = f" of {data['classes']} classes" if data.get("classes") else ""
    here = f"{without_folders(data['source'])}, {data['split']}: {data['count']:,} images{classes}"
    rows = [("images", f"{IMAGES}; here {here}, SHA-256 of names and labels {data['sha256'][:16]}")]
    if run.recipe.objective == "distill":
        rows.append(("teacher", TEACHERS[_teacher(run)]))
    terms = "part of tokenlens, under Apache-2.0; weigh the images' terms before any use that is not research"
    rows.append(("this model", terms))
    return ["| what | where from, on what terms |", "|---|---|", *(f"| {what} | {text} |" for what, text in rows)]


def _probes(probes: Sequence[tuple[str, ProbeResult]], sha256: str) -> list[str]:
    if not probes:
        return ["None was run."]
    own = {found.provenance["identity"]["weights"] == sha256 for owner, found in probes if owner == "own"}
    called = {True: "the weights that ship", False: "the weights as trained, in float32"}
    precision = " and ".join(called[one] for one in sorted(own))
    order = list(OWNERS)
    ranked = sorted(probes, key=lambda one: (one[1].task, order.index(one[0]) if one[0] in order else len(order)))
    return [
        "Frozen features, measured by `tokenlens probe`; the interval is over test images."
        + (f" This model's are of {precision}." if own else ""),
        "",
        "| probe | on | features of | | images | % | 95 % | of | n |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {found.task} | {_test_images(found)} | {OWNERS.get(owner, owner)} | "
            f"{found.protocol.get('source', 'patches')} | {found.protocol['images']} | {100 * found.value:.1f} | "
            f"{100 * found.ci_low:.1f}–{100 * found.ci_high:.1f} | {found.unit} | {found.n} |"
            for owner, found in ranked
        ),
    ]


def _test_images(found: ProbeResult) -> str:
    return without_folders(str(found.protocol["test images"]))


def _precision(facts: Facts) -> list[str]:
    moved = facts.moved
    return [
        "The weights are stored in float16 and computed with in float32. Against the weights as trained, the tokens "
        f"of the final norm move by {100 * moved['mean']:.3f} % of their length on average, by "
        f"{100 * moved['largest']:.3f} % at most ({moved['images']:.0f} views of the sample photographs, all tokens).",
        "",
        f"`model.safetensors`: SHA-256 {facts.sha256}",
    ]


def _again(facts: Facts) -> list[str]:
    command = facts.run.settings["sessions"][0]["command"]
    known = command.startswith("tokenlens train ")
    return [
        "```bash",
        without_folders(command) if known else "# trained in Python, with the settings above",
        f"python shipping/make.py RUN {facts.name} --probes PROBE PROBE …",
        "```",
    ]


def without_folders(text: str) -> str:
    """Paths from the root or from above shortened to their last name: one machine's folders say nothing to others.

    >>> without_folders("train --data /data/a/b.tar --set cache=../c/d, ~/.cache/e, hf-hub:owner/name, images/s")
    'train --data b.tar --set cache=d, ~/.cache/e, hf-hub:owner/name, images/s'
    """
    return re.sub(r"(?<![\w.~:/-])(?:\.\.)?/(?:[^\s/]+/)*", "", text)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
