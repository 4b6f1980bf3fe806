"""The docstring of every metric has all sections of its card, and the card agrees with the class."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.command_line import REPOSITORY
from tokenlens.metrics import metrics

pytest.importorskip("mkdocs", reason="mkdocs is not installed; the extra [docs] does it")


def _cards():
    spec = importlib.util.spec_from_file_location("metric_cards", REPOSITORY / "docs" / "making" / "metric_cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, {card.name: card for card in module.read_cards()}


MAKING, CARDS = _cards()


def test_every_metric_has_a_card_and_its_line_in_the_index():
    assert sorted(CARDS) == metrics.names()
    index = MAKING.index_of(list(CARDS.values()))
    for name in CARDS:
        assert f"({name}.md) | {metrics.describe(name)} |" in index


@pytest.mark.parametrize("name", metrics.names())
def test_every_section_is_there_and_the_attributes_are_those_of_the_class(name):
    card, metric = CARDS[name], metrics.get(name)
    assert card.definition
    for section in ("Formula", "Reference", "Pitfalls", "Tested against"):
        assert card.sections.get(section), f"the docstring of {metric.__name__} has no section {section!r}"
    page = MAKING.page_of(card)
    units = metric.unit if isinstance(metric.unit, dict) else {}
    endings = {part.removeprefix("input_").removeprefix("output_") for part in units}
    assert not units or set(card.parts) == endings, "one definition for each part"
    for part in endings:
        assert f"| `{part}` | " in page
    for attribute, value in card.attributes.items():
        assert value == getattr(metric, attribute) or not (value or getattr(metric, attribute)), attribute


def test_the_numbers_link_to_the_cards():
    class Page:
        class file:  # noqa: N801
            src_uri = "the-numbers.md"

    linked = MAKING.on_page_markdown("| `cka` | see [`cka`](x) and `other` |", Page)
    assert linked == "| [`cka`](metrics/cka.md) | see [`cka`](x) and `other` |"
