"""``compare``: the numbers of several models side by side, their differences and the likeness of their features."""
# Shapes: n images, D channels, S series.

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from tokenlens.analysis import COLUMNS, Analysis, analyze, made_by
from tokenlens.differences import FALSE_DISCOVERY_RATE, q_values
from tokenlens.model_names import find_origin, training_of
from tokenlens.pairing import Match, Pairing, match_images
from tokenlens.run_folder import MANIFEST, kind_of, load_analysis, read_comparison, save_comparison
from tokenlens.series import Series, differences_of, nearest_blocks
from tokenlens.similarity import feature_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIFFERENCES = (
    "label",
    "baseline",
    "metric",
    "part",
    "site",
    "group",
    "block",
    "baseline_block",
    "depth",
    "value",
    "baseline_value",
    "difference",
    "ci_low",
    "ci_high",
    "effect",
    "p",
    "q",
    "n",
    "n_baseline",
    "test",
    "unit",
    "significant",
)
SUMMARY = tuple(name for name in DIFFERENCES if name not in ("block", "baseline_block", "depth"))


class Comparison:
    """Several analyses side by side, each set against a baseline.

    Attributes:
        analyses: by label, in the order given.
        baseline: the label of the one that the others are set against.
        pair: as it was asked for: None, True or False.
        pairing: for each label but the baseline's whether its numbers pair with the baseline's by image, and why.
        table: the rows of all analyses, with ``label`` in front and the relative ``depth`` in (0, 1] at the end:
            (block + 0.5)/blocks, 1 for the final norm, NaN for what has no block.
        differences: a row for each number of another model that the baseline has, too (``DIFFERENCES``), numbers per
            head as their mean over heads. ``difference`` = ``value`` − ``baseline_value`` with a 95 % interval; the
            ``test`` is "paired t", "Welch", "intervals" (numbers of the whole set) or "" where none is possible;
            ``effect`` is in pooled SDs over images; ``q`` is p by Benjamini and Hochberg over all tests of that label;
            ``significant`` is q < 0.05. Of models of different depth each block is set against the baseline's block
            nearest in depth.
        summary: the same for means over blocks, taken image by image (``SUMMARY``): what differs most comes first.
        similarity: debiased linear CKA between the features that two models end with, for each ordered pair of labels
            and ``group`` (cls, patch).
        similarity_note: what ``similarity`` lacks and why, or empty.
        provenance: command, versions, commit, start and seconds.

    See docs/comparing.md.

    Args:
        analyses, baseline, pair, provenance: as above.

    Raises:
        ValueError: for fewer than two analyses, a model without a number in common with the baseline, or ``pair=True``
            without common images.
    """

    def __init__(
        self,
        analyses: Mapping[str, Analysis],
        *,
        baseline: str,
        pair: bool | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if len(analyses) < 2:
            raise ValueError(f"a comparison is of at least two models, got {len(analyses)}: {', '.join(analyses)}")
        self.analyses = dict(analyses)
        self.baseline = baseline
        self.pair = pair
        self.provenance = dict(provenance or {})
        matches = {label: match_images(self.analyses[label], self._base, pair) for label in self.others}
        for label, match in matches.items():
            if pair and not match.pairing.paired:
                raise ValueError(f"{label} cannot be paired with {baseline}: {match.pairing.reason}")
        self.pairing: dict[str, Pairing] = {label: match.pairing for label, match in matches.items()}
        self.table = pd.concat([_with_depth(label, each) for label, each in self.analyses.items()], ignore_index=True)
        self.differences, self.summary = self._differences(matches)
        self.similarity, self.similarity_note = feature_similarity(self.analyses)

    @property
    def labels(self) -> list[str]:
        """All labels, in the order given."""
        return list(self.analyses)

    @property
    def others(self) -> list[str]:
        """The labels without the baseline's."""
        return [label for label in self.analyses if label != self.baseline]

    @property
    def _base(self) -> Analysis:
        return self.analyses[self.baseline]

    def _differences(self, matches: Mapping[str, Match]) -> tuple[pd.DataFrame, pd.DataFrame]:
        base = Series.of(self._base)
        differences, summaries = [], []
        for label, match in matches.items():
            analysis = self.analyses[label]
            series = Series.of(analysis)
            blocks = nearest_blocks(analysis.blocks, self._base.blocks)
            found = differences_of(series, base, match, blocks)
            if found.empty:
                metrics = [", ".join(each.metrics) or "none" for each in (analysis, self._base)]
                raise ValueError(
                    f"{label} and {self.baseline} have no number in common: their metrics are {' and '.join(metrics)}"
                )
            depth = np.where(found["site"] == "final_norm", 1.0, (found["block"] + 0.5) / max(analysis.blocks, 1))
            found["depth"] = np.where((found["block"] >= 0) | (found["site"] == "final_norm"), depth, np.nan)
            for column in ("block", "baseline_block"):
                found[column] = found[column].astype("Int64").mask(found[column] < 0)
            differences.append(self._labelled(label, found))
            summaries.append(self._labelled(label, differences_of(series.over_blocks, base.over_blocks, match, None)))
        summary = pd.concat(summaries, ignore_index=True)
        most = pd.DataFrame({"significant": ~summary["significant"], "effect": -summary["effect"].abs()})
        order = most.sort_values(["significant", "effect"], kind="stable").index
        everything = pd.concat(differences, ignore_index=True)[list(DIFFERENCES)]
        return everything, summary.loc[order, list(SUMMARY)].reset_index(drop=True)

    def _labelled(self, label: str, found: pd.DataFrame) -> pd.DataFrame:
        q = q_values(found["p"].to_numpy())
        return found.assign(label=label, baseline=self.baseline, q=q, significant=q < FALSE_DISCOVERY_RATE)

    def select(self, metric: str, **filters: Any) -> pd.DataFrame:
        """The table's rows of one metric, e.g. ``select("cls_patch_cosine", site="norm1", label="…")``.

        Raises:
            LookupError: if none of the models has the metric.
        """
        rows = self.table[self.table["metric"] == metric]
        if rows.empty:
            known = ", ".join(dict.fromkeys(self.table["metric"]))
            raise LookupError(f"the comparison has no {metric!r}; it has {known}")
        for column, wanted in filters.items():
            wanted = wanted if isinstance(wanted, list | tuple | set) else [wanted]
            rows = rows[rows[column].isin(list(wanted))]
        return rows.reset_index(drop=True)

    def plot(self, figure: str, **options: Any) -> Figure:
        """Draw a figure of comparisons of ``tokenlens list figures``; options go to its ``frame`` and ``plot``."""
        from tokenlens.figures import draw

        return draw(self, figure, **options)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, report: bool = True) -> Path:
        """Write a run folder with the analyses, the tables, the figures and the page, atomically.

        ``report=False`` writes the numbers alone. See ``tokenlens.run_folder.save_comparison``.
        """
        from tokenlens.report import write_report

        return save_comparison(self, Path(path), overwrite=overwrite, report=write_report if report else None)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Comparison:
        """Read a run folder, after checking its schema version and hashes, and compute the differences again."""
        settings, analyses = read_comparison(Path(path))
        return Comparison(
            analyses, baseline=settings["baseline"], pair=settings["pair"], provenance=settings["provenance"]
        )

    def __repr__(self) -> str:
        found = self.differences.groupby("label")["significant"].agg(["sum", "size"])
        against = "; ".join(
            f"{label}: {found.loc[label, 'sum']} of {found.loc[label, 'size']} numbers differ, "
            f"{'paired' if self.pairing[label].paired else 'unpaired'}"
            for label in self.others
        )
        return f"Comparison(baseline {self.baseline}; {against})"

    def _repr_html_(self) -> str:
        from tokenlens.report import summary_html

        return summary_html(self)


def compare(
    *subjects: Analysis | str | os.PathLike[str] | nn.Module,
    baseline: int | str = 0,
    labels: Sequence[str] | None = None,
    pair: bool | None = None,
    images: Any = None,
    **analyze_options: Any,
) -> Comparison:
    """Set the numbers of several models against one of them, with intervals and tests.

    Args:
        subjects: at least two of: an ``Analysis``, a run folder, a model's name, a module. Names and modules are
            analyzed first, runs are loaded; neither model nor images are needed for those.
        baseline: position (from 0) or label of the model that the others are set against.
        labels: what to call the models; by default their names, and what tells equal names apart. "(untrained)" is
            added to those of random weights.
        pair: None pairs by image where both saw the same images in the same order; True aligns the common images by
            their hash; False never pairs.
        images: what models are analyzed on, as for ``analyze``; by default the images of the first run that is given,
            at its limit, seed and size, and ``"sample"`` without one.
        analyze_options: other options of ``analyze`` for the models.

    Raises:
        LookupError: for a subject that is neither a run folder nor a model, or an unknown baseline.
        ValueError: for fewer than two subjects, labels that do not fit, images or options without a model to analyze, a
            damaged or newer run, nothing in common, or whatever ``analyze`` refuses.
    """
    started, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    if len(subjects) < 2:
        raise ValueError(f"a comparison is of at least two runs or models, got {len(subjects)}")
    if labels is not None:
        _check_labels(labels, len(subjects))
        _position(baseline, list(labels))
    loaded = [_loaded(subject) for subject in subjects]
    given = analyze_options if images is None else {"images": images, **analyze_options}
    if given and None not in loaded:
        raise ValueError(f"{', '.join(given)}: for models that are analyzed, but all {len(subjects)} are runs already")
    if images is None and None in loaded:
        given = _images_of(next((run for run in loaded if run is not None), None)) | given
    analyses = [
        run if run is not None else analyze(subject, **given)  # type: ignore[arg-type]
        for subject, run in zip(subjects, loaded, strict=True)
    ]
    folders = [_folder_name(subject) for subject in subjects]
    names = list(labels) if labels is not None else _default_labels(analyses, folders)
    position = _position(baseline, names)
    # Whatever a model is called, random weights are said everywhere.
    names = [
        f"{name} (untrained)" if each.untrained and "untrained" not in name else name
        for name, each in zip(names, analyses, strict=True)
    ]
    comparison = Comparison(dict(zip(names, analyses, strict=True)), baseline=names[position], pair=pair)
    comparison.provenance = {
        **made_by("compare"),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    return comparison


def load_run(path: str | os.PathLike[str]) -> Analysis | Comparison:
    """Read a run folder of either kind.

    Raises:
        FileNotFoundError, ValueError: as ``tokenlens.run_folder.load_analysis`` does.
    """
    return Comparison.load(path) if kind_of(Path(path)) == "comparison" else load_analysis(Path(path))


def is_run(subject: Any) -> bool:
    """Whether ``compare`` takes a subject for an analysis or a run folder, not for a model."""
    if isinstance(subject, nn.Module):
        return False
    if isinstance(subject, str):
        folder = Path(subject).expanduser()
        return (folder / MANIFEST).is_file() and training_of(folder) is None
    return True


def _with_depth(label: str, analysis: Analysis) -> pd.DataFrame:
    table = analysis.table
    depth = ((table["block"].astype("Float64") + 0.5) / max(analysis.blocks, 1)).to_numpy(float, na_value=np.nan)
    depth = np.where(table["site"] == "final_norm", 1.0, depth)
    return pd.DataFrame({"label": label, **{name: table[name] for name in COLUMNS}, "depth": depth})


def _loaded(subject: Any) -> Analysis | None:
    """The analysis that a subject is or holds; None for a model, whose name is checked."""
    if isinstance(subject, Analysis):
        return subject
    if not isinstance(subject, str | os.PathLike | nn.Module):
        raise ValueError(
            f"expected an Analysis, a run folder, a model's name or a module, got {type(subject).__qualname__}"
        )
    if not isinstance(subject, nn.Module) and is_run(subject):
        return load_analysis(Path(subject).expanduser())
    if isinstance(subject, str):
        try:
            find_origin(subject)
        except (LookupError, ValueError) as error:
            if Path(subject).is_dir():
                raise FileNotFoundError(f"{subject} has no {MANIFEST}: it is not a finished run folder") from error
            if isinstance(error, LookupError):
                raise LookupError(f"{subject!r} is neither a run folder nor a model: {error}") from error
            raise
    return None


def _images_of(run: Analysis | None) -> dict[str, Any]:
    """Options of ``analyze`` for the images of a run."""
    if run is None:
        return {}
    told = run.provenance["images"]
    if not told.get("given"):
        raise ValueError(
            f"the run of {run.model} does not say how to get its images again ({told['source']}); choose images"
        )
    return {
        "images": told["given"],
        "limit": told["limit"],
        "seed": run.provenance["seed"],
        "img_size": tuple(run.provenance["image_size"]),
    }


def _folder_name(subject: Any) -> str:
    """The name of a run's folder; empty for all that is no folder."""
    if isinstance(subject, Analysis | nn.Module) or not is_run(subject):
        return ""
    return Path(subject).expanduser().resolve().name


def _default_labels(analyses: Sequence[Analysis], folders: Sequence[str]) -> list[str]:
    """Model names; equal ones are told apart by their run folders, and by numbers where that does not do."""
    names = [f"{each.model} (untrained)" if each.untrained else each.model for each in analyses]
    names = [
        f"{name} · {folder}" if folder and names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]
    labels: list[str] = []
    for name in names:
        number = 1
        while (label := name if number == 1 else f"{name} #{number}") in labels:
            number += 1
        labels.append(label)
    return labels


def _check_labels(labels: Sequence[str], count: int) -> None:
    if isinstance(labels, str) or len(labels) != count:
        raise ValueError(f"expected a label for each of the {count} subjects, got {labels!r}")
    if len(set(labels)) != count or not all(labels):
        raise ValueError(f"expected labels that differ and are not empty, got {', '.join(map(repr, labels))}")


def _position(baseline: int | str, labels: Sequence[str]) -> int:
    if isinstance(baseline, str):
        if baseline not in labels:
            raise LookupError(f"no model is labelled {baseline!r}; the labels are {', '.join(map(repr, labels))}")
        return labels.index(baseline)
    if not 0 <= baseline < len(labels):
        raise LookupError(f"the baseline is a label or a position from 0 to {len(labels) - 1}, got {baseline}")
    return baseline
