"""Laws that every objective keeps; a new one is covered as soon as it has its test case."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch

from tests.training.objectives._tiny import (
    IMAGES,
    STEPS,
    at,
    backbone,
    batch,
    built,
    case,
    optimizer_of,
    part,
    photographs,
    seeded,
    step,
)
from tests.training.objectives._tiny import tensors as snapshot
from tests.training.objectives._tiny import views as augmentation
from tokenlens.training.objectives.base import Objective, TrainingBatch, make_options, objectives
from tokenlens.training.overrides import with_settings
from tokenlens.training.recipe import Recipe

NAMES = objectives.names()
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The options of each objective's case, in the same folder all the time."""
    folders: dict[str, Any] = {}

    def options(name: str) -> dict[str, Any]:
        if name not in folders:
            folders[name] = case(name).options(tmp_path_factory.mktemp(name))
        return folders[name]

    return options


@pytest.fixture
def made(chosen):
    """Makes the objective of a name, and the whole batch of a step."""

    def make(name: str, **how: Any) -> tuple[Objective, TrainingBatch]:
        return built(name, chosen(name), **how), batch(augmentation(name, chosen(name)))

    return make


def numbers(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: loss.item() for key, loss in losses.items()}


def gradients(objective: Objective) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in objective.named_parameters()}


@every
def test_it_and_its_options_are_explained_and_can_be_set_by_name(name):
    assert len(objectives.describe(name)) > 20
    assert objectives.get(name).__doc__
    kind = objectives.get(name).Options
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    explained = "".join(cls.__doc__ or "" for cls in kind.__mro__)
    recipe = Recipe(objective=name, model="vit_tiny_patch16_224", steps=1)
    for option, value in dataclasses.asdict(kind()).items():
        assert f"{option}:" in explained, option
        changed = with_settings(recipe, [f"objective_options.{option}={value!r}"], kind)
        assert make_options(name, changed.objective_options) == kind()


@every
def test_an_unknown_option_is_named_with_its_neighbours(name):
    option = next(iter(objectives.get(name).Options.__dataclass_fields__))
    with pytest.raises(
        LookupError, match=rf"no option of the objective {name} is called '{option}x'.*Did you mean {option}"
    ):
        make_options(name, {f"{option}x": 1})


@every
def test_views_come_from_the_sample_seed_alone_and_pass_to_workers(name, chosen):
    views = augmentation(name, chosen(name))
    passed = pickle.loads(pickle.dumps(views))
    for index, image in enumerate(photographs()[:3]):
        before = copy.deepcopy(image)
        found = []
        for augment in (views, passed, views):
            seeded(index)
            found.append(augment(image))
            torch.rand(1)
        assert image == before, "the image of the data set is left as it is"
        for other in found[1:]:
            assert len(other) == len(found[0])
            assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
        assert all(view.dtype == torch.float32 and view.ndim == 3 and view.isfinite().all() for view in found[0])


@every
@pytest.mark.parametrize(
    ("kind", "preset"), [("plain", None), ("registers", "paper"), ("distilled", None), ("plain", "everything")]
)
def test_gradients_reach_what_is_trained_and_nothing_else(name, kind, preset, made):
    objective, whole = made(name, kind=kind, specialization=preset)
    losses = objective(whole, at(3))
    assert set(losses) >= {"loss"}
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    losses["loss"].backward()
    frozen = [key for key, parameter in objective.named_parameters() if not parameter.requires_grad]
    for key, gradient in gradients(objective).items():
        if key in frozen:
            assert gradient is None, key
        else:
            assert gradient is not None, f"{key} would stop DDP, which waits for its gradient"
            assert gradient.isfinite().all(), key
            # Biases of keys have none but rounding, nor has what is specialized for tokens that no loss uses.
            assert gradient.ndim == 1 or preset == "everything" or gradient.abs().sum() > 0, key
    trained = dict(objective.named_parameters())
    assert all(trained[f"backbone.{key}"].requires_grad for key, _ in objective.backbone.named_parameters())


@every
@pytest.mark.parametrize(("kind", "preset"), [("plain", "paper"), ("registers", "everything")])
def test_standard_and_specialized_start_with_bitwise_the_same_losses(name, kind, preset, made):
    standard, whole = made(name, kind=kind)
    specialized, same = made(name, kind=kind, specialization=preset)
    assert len(list(specialized.parameters())) > len(list(standard.parameters()))
    assert numbers(specialized(same, at(0))) == numbers(standard(whole, at(0)))


@every
def test_heads_and_teachers_are_the_same_around_a_specialized_model(name, made):
    standard, specialized = snapshot(made(name)[0]), snapshot(made(name, specialization="paper")[0])
    for key, value in standard.items():
        path, _, leaf = key.rpartition(".")
        twice = f"{path}.cls.{leaf}" in specialized
        names = [f"{path}.{group}.{leaf}" for group in ("cls", "patch")] if twice else [key]
        assert all(torch.equal(specialized[name], value) for name in names), key
        assert not twice or "blocks." in key or "norm." in key


@every
def test_draws_come_from_seed_and_step_alone_and_leave_the_batch_as_it_was(name, made):
    objective, whole = made(name)
    twin, before = made(name)
    found = []
    for number, one in enumerate((objective, twin)):
        seeded(number)
        states = torch.get_rng_state()
        found.append(numbers(one(whole, at(5))))
        assert torch.equal(torch.get_rng_state(), states), "the global random state is left as it was"
    assert found[0] == found[1]
    assert all(torch.equal(one, two) for one, two in zip(whole.views, before.views, strict=True))


@every
def test_after_step_changes_only_what_it_says(name, made):
    objective, whole = made(name, specialization="paper")
    optimizer = optimizer_of(objective)
    for number in range(2):
        step(objective, whole, at(number), optimizer)
    objective(whole, at(2))["loss"].backward()
    objective.after_backward(at(2))
    optimizer.step()
    before = snapshot(objective)
    objective.after_step(at(2))
    after = snapshot(objective)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    moves = tuple(case(name).MOVES)
    assert bool(changed) == bool(moves)
    assert all(key.startswith(moves) for key in changed)
    trained = {key for key, parameter in objective.named_parameters() if parameter.requires_grad}
    assert not changed & trained


@every
def test_a_state_dict_carries_everything(name, made):
    objective, whole = made(name, specialization="paper")
    optimizer = optimizer_of(objective)
    for number in range(3):
        step(objective, whole, at(number), optimizer)
    other, _ = made(name, specialization="paper", seed=1)
    other.load_state_dict(snapshot(objective))
    for number in (3, 4):
        assert numbers(objective(whole, at(number))) == numbers(other(whole, at(number)))
        objective.after_step(at(number))
        other.after_step(at(number))
    results = [one.result().state_dict() for one in (objective, other)]
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


@every
def test_the_result_is_a_backbone(name, made):
    objective, _ = made(name)
    classes = objectives.get(name).classes(objective.options, objective.setting.classes)
    result, plain = objective.result(), backbone(classes)
    assert type(result) is type(plain)
    assert result.state_dict().keys() == plain.state_dict().keys()


@every
def test_mirrored_parts_add_up_to_the_whole_batch(name, made):
    if not case(name).SPLITS:
        pytest.skip("its loss compares the images of a part with each other")
    whole_objective, whole = made(name)
    split_objective, _ = made(name)
    expected = whole_objective(whole, at(4))
    expected["loss"].backward()
    quarter = IMAGES // 4
    ends = [*range(quarter), *range(IMAGES - quarter, IMAGES)]
    middle = list(range(quarter, IMAGES - quarter))
    sums = dict.fromkeys(expected, 0.0)
    for positions in (ends, middle):
        for key, loss in split_objective(part(whole, positions), at(4)).items():
            sums[key] += loss.item() / 2
            if key == "loss":
                (loss / 2).backward()
    for key, loss in expected.items():
        assert sums[key] == pytest.approx(loss.item(), rel=1e-5), key
    found = gradients(split_objective)
    for key, gradient in gradients(whole_objective).items():
        if gradient is not None:
            torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-5, msg=key)


@every
def test_the_loss_of_a_few_images_falls_if_teachers_and_centres_stand_still(name, made):
    objective, whole = made(name, specialization="paper")
    optimizer = optimizer_of(objective)
    trained = {key for key, parameter in objective.named_parameters() if parameter.requires_grad}
    still = {key: value for key, value in snapshot(objective).items() if key not in trained}

    def mean_loss() -> float:
        with torch.no_grad():
            return sum(loss(number).item() for number in range(4)) / 4

    def loss(number: int) -> torch.Tensor:
        objective.load_state_dict(still, strict=False)
        return objective(whole, at(number))["loss"]

    before = mean_loss()
    for number in range(STEPS):
        optimizer.zero_grad()
        loss(number).backward()
        optimizer.step()
    assert mean_loss() < 0.95 * before
