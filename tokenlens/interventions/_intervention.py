"""The result of ``intervene`` and its run folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from tokenlens.interventions._photographs import ReplacedPhotographs
from tokenlens.interventions._targets import CONTROL
from tokenlens.storage.files import write_json
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import SCHEMA_VERSION, check_manifest
from tokenlens.storage.tables import COLUMNS, TEXT_COLUMNS, read_table, select_rows
from tokenlens.storage.wording import counted
from tokenlens.tokens import TokenLayout

EFFECT_COLUMNS = ("model", "replace", "by", *COLUMNS[1:])
"""Columns of ``Intervention.table``."""

_FILES = ("intervention.json", "table.csv", "per_image.safetensors")
_PHOTOGRAPHS = "photographs.safetensors"


@dataclass
class Intervention(Result):
    """The effects of replacing tokens, with intervals over images.

    The run folder holds ``intervention.json`` (settings and provenance), ``table.csv``, ``per_image.safetensors``,
    ``photographs.safetensors``, the figures and the page.

    Attributes:
        model: full name of the model.
        layout: its tokens and patch grid.
        blocks: number of blocks.
        table: a tidy frame, one row per effect, with the columns of ``EFFECT_COLUMNS``. ``replace`` and ``by`` name the
            intervention, ``block`` and ``site`` where it was made; docs/interventions.md lists the metrics. ``value``
            is the mean over images, ``sd`` their standard deviation, ``n`` the number of images of which a token was
            replaced, ``ci_low`` and ``ci_high`` a 95 % interval of the mean of paired values. The score of a probe is
            that of all these images together, with a bootstrap interval.
        per_image: (images, rows of the table), float32; NaN where no token of an image was replaced, and for a score
            that is no mean over images.
        provenance: how the numbers came about; JSON-able.
        not_applicable: effects and conditions that do not apply to this model, with the reason.
        photographs: the first images, with maps of their final patches; None if there are none.
    """

    kind: ClassVar[str] = "intervention"

    model: str
    layout: TokenLayout
    blocks: int
    table: pd.DataFrame
    per_image: pd.DataFrame
    provenance: dict[str, Any]
    not_applicable: dict[str, str] = field(default_factory=dict)
    photographs: ReplacedPhotographs | None = None

    @property
    def untrained(self) -> bool:
        """Whether the weights are random, which every figure and table then says."""
        return bool(self.provenance.get("untrained"))

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.provenance["images"]["count"])

    def select(self, metric: str, **filters: Any) -> pd.DataFrame:
        """Return the table's rows of one metric, e.g. ``select("final_cosine", group="patch", by="mean")``.

        Raises:
            LookupError: if the metric is not in the table, with the reason where it does not apply.
        """
        known = list(dict.fromkeys(self.table["metric"]))
        if metric not in known:
            reason = self.not_applicable.get(metric, f"it has {', '.join(known)}")
            raise LookupError(f"the intervention on {self.model} has no {metric!r}: {reason}")
        return select_rows(self.table, metric=metric, **filters)

    @property
    def sentences(self) -> list[str]:
        """Sentences, one for each replaced group: where and by which replacement the other tokens change most."""
        found = []
        for replace in self.provenance["replace"]:
            rows = _of_others(self.table[self.table["replace"] == replace], replace)
            rows = rows[rows["by"] != "register"]  # which replaces no token
            seen = rows[~rows["by"].isin([*self.provenance["unseen"], "itself"])]
            rows = seen if len(seen) else rows
            if rows.empty or replace == CONTROL:
                continue
            most = rows.loc[rows["value"].idxmin()]
            interval = f", 95 % interval {most['ci_low']:.3f} to {most['ci_high']:.3f}" if most["n"] > 1 else ""
            among = ", ".join(dict.fromkeys(rows["by"]))
            found.append(
                f"Replacing {_NAMES.get(replace, replace)} changes {_NAMES[most['group']]} most at {most['site']} of "
                f"block {most['block']}, where {_WORDS.get(most['by'], most['by'])} takes its place: cosine to the "
                f"untouched model {most['value']:.3f}{interval} (n = {most['n']}; compared: {among})."
            )
        return found + self._sentences_on_scores() + self._sentences_on_norms()

    def _sentences_on_scores(self) -> list[str]:
        """Return sentences on where the score of the probe is lowest with each group replaced."""
        changes = self.table[(self.table["metric"] == "probe_score") & (self.table["part"] == "change")]
        changes = changes[~changes["by"].isin([*self.provenance["unseen"], "itself"]) & (changes["replace"] != CONTROL)]
        found = []
        for replace, rows in changes.groupby("replace", sort=False):
            most = rows.loc[rows["value"].idxmin()]
            value, low, high = (100 * most[name] for name in ("value", "ci_low", "ci_high"))
            interval = f", 95 % interval {low:+.1f} to {high:+.1f}" if most["n"] > 1 else ""
            score = self.provenance["probe"]
            found.append(
                f"The {score['task']} probe has {100 * score['value']:.1f} % {score['unit']} in the untouched model. "
                f"With {_NAMES.get(str(replace), str(replace))} replaced it is lowest at {most['site']} of block "
                f"{most['block']}, by {most['by']}: {value:+.1f} points{interval} (n = {most['n']}; of "
                f"{counted(len(rows), 'condition')})."
            )
        return found

    def _sentences_on_norms(self) -> list[str]:
        """Return sentences on what a test-time register does to the share of high-norm patches."""
        table = self.table[(self.table["by"] == "register") & (self.table["metric"] == "high_norm_share")]
        shares = table.set_index(["replace", "block", "part"]).sort_index()
        found = []
        for replace, block in dict.fromkeys(key[:2] for key in shares.index):
            after, change = (shares.loc[(replace, block, part)] for part in ("after", "change"))
            neurons = "neurons of random patches" if replace == CONTROL else "register neurons"
            interval = f", 95 % interval {100 * change['ci_low']:+.2f} to {100 * change['ci_high']:+.2f}"
            found.append(
                f"With an added token that takes over the {neurons} of blocks up to {block}, "
                f"{100 * after['value']:.2f} % of the patches have high norms behind the last block "
                f"({100 * change['value']:+.2f} points{interval if change['n'] > 1 else ''}, n = {change['n']})."
            )
        return found

    def _write(self, folder: Path) -> None:
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "model": self.model,
            "blocks": self.blocks,
            "layout": asdict(self.layout),
            "not_applicable": self.not_applicable,
            "provenance": self.provenance,
        }
        if self.photographs is not None:
            settings["photographs"] = self.photographs.describe()
            save_file(self.photographs.to_arrays(), folder / _PHOTOGRAPHS)
        write_json(folder / SETTINGS[self.kind], settings)
        self.table.to_csv(folder / "table.csv", index=False)
        values = np.ascontiguousarray(self.per_image.to_numpy(dtype=np.float32))
        save_file({"per_image": values}, folder / "per_image.safetensors")

    @classmethod
    def _read(cls, folder: Path) -> Intervention:
        check_manifest(folder, _FILES)
        settings = read_settings(folder, cls.kind)
        table = read_table(folder / "table.csv", texts=(*TEXT_COLUMNS, "replace", "by")).astype({"n": "int64"})
        values = load_file(folder / "per_image.safetensors")["per_image"]
        names = pd.Index(settings["provenance"]["images"]["names"], name="image")
        photographs = None
        if "photographs" in settings:
            check_manifest(folder, [_PHOTOGRAPHS])
            arrays = load_file(folder / _PHOTOGRAPHS)
            photographs = ReplacedPhotographs.from_arrays(settings["photographs"], arrays)
        return cls(
            model=settings["model"],
            layout=TokenLayout.from_dict(settings["layout"]),
            blocks=settings["blocks"],
            table=table[list(EFFECT_COLUMNS)],
            per_image=pd.DataFrame(values, index=names),
            provenance=settings["provenance"],
            not_applicable=settings["not_applicable"],
            photographs=photographs,
        )

    def __repr__(self) -> str:
        untrained = ", untrained" if self.untrained else ""
        conditions = len(self.table[["replace", "by", "site", "block"]].drop_duplicates())
        return f"Intervention({self.model}{untrained}: {conditions} conditions, {self.images} images)"


_NAMES = {
    "cls": "[CLS]",
    "dist": "the distillation token",
    "reg": "the registers",
    "patch": "patches",
    "high_norm": "the high-norm patches",
}
_WORDS = {"mean": "the mean", "noise": "noise", "shuffle": "that of another image", "zero": "zero"}


def _of_others(rows: pd.DataFrame, replace: str) -> pd.DataFrame:
    """Return the final cosines of tokens that were not replaced: patches, or CLS where patches were replaced."""
    cosines = rows[rows["metric"] == "final_cosine"]
    if replace not in ("patch", "high_norm"):
        return cosines[cosines["group"] == "patch"]
    others = cosines[cosines["group"] == "cls"]
    return others if len(others) else cosines[cosines["part"] == "others"]
