"""The result of ``compare``: several analyses, their differences and the similarity of their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from tokenlens.analysis.analysis import NUMBERS, Analysis, read_numbers
from tokenlens.comparison.numbers import ModelNumbers, compare_numbers, nearest_blocks
from tokenlens.comparison.pairing import Match, Pairing, match_images
from tokenlens.comparison.similarity import feature_similarity
from tokenlens.statistics.differences import FALSE_DISCOVERY_RATE, q_values
from tokenlens.storage.files import write_json
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import SCHEMA_VERSION, check_manifest, slug
from tokenlens.storage.tables import COLUMNS, select_rows

DIFFERENCES = (
    *("label", "baseline", "metric", "part", "site", "group", "block", "baseline_block", "depth"),
    *("value", "baseline_value", "difference", "ci_low", "ci_high", "effect", "p", "q"),
    *("n", "n_baseline", "test", "unit", "significant"),
)
SUMMARY = tuple(name for name in DIFFERENCES if name not in ("block", "baseline_block", "depth"))


class Comparison(Result):
    """Several analyses, each compared with a baseline; see docs/comparing.md.

    The run folder holds ``comparison.json``, the numbers of each analysis below ``runs/``, and the tables as CSV, which
    are computed again when it is loaded.

    Attributes:
        analyses: the analyses by label, in the order given.
        baseline: label of the analysis that the others are compared with.
        pair: the ``pair`` that was requested: None, True or False.
        pairing: for each label except the baseline, whether its numbers pair with the baseline's by image, and why.
        table: the rows of all analyses, with ``label`` in front and the relative ``depth`` in (0, 1] at the end:
            (block + 0.5)/blocks, 1 for the final norm, NaN for numbers without a block.
        differences: one row per number that both a model and the baseline have (``DIFFERENCES``); numbers per head as
            their mean over heads. ``difference`` = ``value`` − ``baseline_value`` with a 95 % interval; ``test`` is
            "paired t", "Welch", "intervals" (numbers of the whole set) or "" where no test is possible; ``effect`` is
            in pooled standard deviations over images; ``q`` is p adjusted by Benjamini and Hochberg over all tests of
            that label; ``significant`` is q < 0.05. If the depths differ, each block is compared with the baseline's
            block nearest in relative depth.
        summary: the same for means over blocks, taken image by image (``SUMMARY``), largest effects first.
        similarity: debiased linear CKA between the final features of two models, one row per ordered pair of labels
            and ``group`` (cls, patch).
        similarity_note: what is missing in ``similarity`` and why, or empty.
        provenance: command, versions, commit, start and seconds.

    Raises:
        ValueError: for fewer than two analyses, a model without a number in common with the baseline, or ``pair=True``
            without common images.
    """

    kind: ClassVar[str] = "comparison"

    def __init__(
        self,
        analyses: Mapping[str, Analysis],
        *,
        baseline: str,
        pair: bool | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if len(analyses) < 2:
            raise ValueError(f"a comparison needs at least two models, got {len(analyses)}: {', '.join(analyses)}")
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
        """All labels except the baseline."""
        return [label for label in self.analyses if label != self.baseline]

    @property
    def _base(self) -> Analysis:
        return self.analyses[self.baseline]

    def _differences(self, matches: Mapping[str, Match]) -> tuple[pd.DataFrame, pd.DataFrame]:
        base = ModelNumbers.of(self._base)
        differences, summaries = [], []
        for label, match in matches.items():
            analysis = self.analyses[label]
            numbers = ModelNumbers.of(analysis)
            blocks = nearest_blocks(analysis.blocks, self._base.blocks)
            found = compare_numbers(numbers, base, match, blocks)
            if found.empty:
                metrics = [", ".join(each.metrics) or "none" for each in (analysis, self._base)]
                raise ValueError(
                    f"{label} and {self.baseline} have no number in common; their metrics are {' and '.join(metrics)}"
                )
            depth = np.where(found["site"] == "final_norm", 1.0, (found["block"] + 0.5) / max(analysis.blocks, 1))
            found["depth"] = np.where((found["block"] >= 0) | (found["site"] == "final_norm"), depth, np.nan)
            for column in ("block", "baseline_block"):
                found[column] = found[column].astype("Int64").mask(found[column] < 0)
            differences.append(self._labelled(label, found))
            summaries.append(self._labelled(label, compare_numbers(numbers.over_blocks, base.over_blocks, match, None)))
        summary = pd.concat(summaries, ignore_index=True)
        most = pd.DataFrame({"significant": ~summary["significant"], "effect": -summary["effect"].abs()})
        order = most.sort_values(["significant", "effect"], kind="stable").index
        everything = pd.concat(differences, ignore_index=True)[list(DIFFERENCES)]
        return everything, summary.loc[order, list(SUMMARY)].reset_index(drop=True)

    def _labelled(self, label: str, found: pd.DataFrame) -> pd.DataFrame:
        q = q_values(found["p"].to_numpy())
        return found.assign(label=label, baseline=self.baseline, q=q, significant=q < FALSE_DISCOVERY_RATE)

    def select(self, metric: str, **filters: Any) -> pd.DataFrame:
        """Return the table's rows of one metric, e.g. ``select("cls_patch_cosine", site="norm1", label="…")``.

        Raises:
            LookupError: if none of the models has the metric.
        """
        known = list(dict.fromkeys(self.table["metric"]))
        if metric not in known:
            raise LookupError(f"the comparison has no {metric!r}; it has {', '.join(known)}")
        return select_rows(self.table, metric=metric, **filters)

    def _write(self, folder: Path) -> None:
        members = {label: f"runs/{number}_{slug(label)}" for number, label in enumerate(self.analyses)}
        for label, analysis in self.analyses.items():
            (folder / members[label]).mkdir(parents=True)
            analysis._write(folder / members[label])
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "labels": self.labels,
            "baseline": self.baseline,
            "pair": self.pair,
            "runs": members,
            "pairing": {label: asdict(pairing) for label, pairing in self.pairing.items()},
            "similarity_note": self.similarity_note,
            "provenance": self.provenance,
        }
        write_json(folder / SETTINGS[self.kind], settings)
        for name in ("table", "differences", "summary", "similarity"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False)

    @classmethod
    def _read(cls, folder: Path) -> Comparison:
        """Read the analyses and compute the differences again."""
        check_manifest(folder, [SETTINGS[cls.kind]])
        settings = read_settings(folder, cls.kind)
        members = settings["runs"]
        check_manifest(folder, [f"{member}/{file}" for member in members.values() for file in NUMBERS])
        analyses = {label: read_numbers(folder / members[label]) for label in settings["labels"]}
        return cls(analyses, baseline=settings["baseline"], pair=settings["pair"], provenance=settings["provenance"])

    def __repr__(self) -> str:
        found = self.differences.groupby("label")["significant"].agg(["sum", "size"])
        against = "; ".join(
            f"{label}: {found.loc[label, 'sum']} of {found.loc[label, 'size']} numbers differ, "
            f"{'paired' if self.pairing[label].paired else 'unpaired'}"
            for label in self.others
        )
        return f"Comparison(baseline {self.baseline}; {against})"


def _with_depth(label: str, analysis: Analysis) -> pd.DataFrame:
    table = analysis.table
    depth = ((table["block"].astype("Float64") + 0.5) / max(analysis.blocks, 1)).to_numpy(float, na_value=np.nan)
    depth = np.where(table["site"] == "final_norm", 1.0, depth)
    return pd.DataFrame({"label": label, **{name: table[name] for name in COLUMNS}, "depth": depth})
