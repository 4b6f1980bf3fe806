"""k-NN: scikit-learn's classifier with the same weights agrees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.probes.test_base import clusters
from tests.support.coloured_images import class_folders
from tokenlens.probes import hold_out, probe
from tokenlens.probes.knn import TEMPERATURE, Knn, weighted_knn


@pytest.mark.parametrize("k", [1, 5, 20, 60])
def test_it_is_scikit_learns(k):
    train, test = clusters(200, 7, 1.5, seed=0), clusters(80, 7, 1.5, seed=1)
    found_MR = weighted_knn(test.features_NF, train.features_NF, torch.from_numpy(train.labels_N), 7, k)
    neighbours = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / TEMPERATURE)
    ).fit(train.features_NF.double().numpy(), train.labels_N)
    votes_MC = neighbours.predict_proba(test.features_NF.double().numpy())
    assert found_MR.shape == (80, 5)
    assert (found_MR[:, 0].numpy() == votes_MC.argmax(1)).all()
    voted = np.sort(votes_MC)[:, -3:]
    clear = (np.diff(voted) > 1e-6).all(1) & (voted[:, 0] > 0)  # classes without a vote are in no order
    third_M = np.argsort(votes_MC)[:, -3]
    assert (found_MR[:, 2].numpy() == third_M)[clear].all()


def test_parts_do_not_matter(monkeypatch):
    train, test = clusters(50, 4, 1.0, seed=0), clusters(30, 4, 1.0, seed=1)
    arguments = test.features_NF, train.features_NF, torch.from_numpy(train.labels_N), 4, 10
    whole = weighted_knn(*arguments)
    monkeypatch.setattr("tokenlens.probes.knn._MAX_NUMBERS", 400)
    assert torch.equal(weighted_knn(*arguments)[:, 0], whole[:, 0])


def test_k_is_chosen_on_held_out_images():
    train, test = clusters(300, 5, 2.0, seed=0), clusters(40, 5, 2.0, seed=1)
    table = Knn().score(Knn().fit(train, seed=0), test, [str(i) for i in range(40)]).table.set_index("of")
    held = hold_out(300, 0, train.labels_N)
    kept, out = torch.from_numpy(~held), torch.from_numpy(held)
    labels_N, features_NF = torch.from_numpy(train.labels_N), train.features_NF
    for k in (10, 20, 100, 200):
        ranked = weighted_knn(features_NF[out], features_NF[kept], labels_N[kept], 5, k)
        assert table.loc[f"k = {k}", "value"] == (ranked[:, 0].numpy() == train.labels_N[held]).mean()


def test_progress_counts_every_vote_to_the_end():
    train, test = clusters(50, 4, 1.0, seed=0), clusters(30, 4, 1.0, seed=1)
    seen = []
    probe = Knn(lambda *numbers: seen.append(numbers))
    probe.score(probe.fit(train, seed=0), test, [str(i) for i in range(30)])
    held = int(hold_out(50, 0, train.labels_N).sum())
    chosen, voted = seen[:-2], seen[-2:]
    assert [done for _, done, _, _ in chosen] == [0, held, 2 * held]  # k = 10 and 20
    assert {(total, unit) for _, _, total, unit in chosen} == {(2 * held, "images")}
    assert [numbers[1:] for numbers in voted] == [(0, 30, "images"), (30, 30, "images")]


def test_few_images_have_few_neighbours():
    head = Knn().fit(clusters(8, 2, 0.1, seed=0), seed=0)
    found = Knn().score(head, clusters(6, 2, 0.1, seed=1), list("abcdef"))
    assert found.value == 1


def test_a_fifth_of_each_class_is_hold_out():
    labels_N = np.repeat([0, 1, 2], [50, 20, 4])
    held = hold_out(74, 0, labels_N)
    assert np.bincount(labels_N[held], minlength=3).tolist() == [10, 4, 0]
    assert hold_out(74, 0).sum() == 14
    assert hold_out(4, 0, np.array([0, 0, 1, 1])).sum() == 1
    assert (hold_out(74, 1) != hold_out(74, 0)).any()


def test_colours_are_told_apart(tmp_path):
    result = probe("raw_pixels", "knn", class_folders(tmp_path / "data"))
    assert result.value == 1
    assert result.n == 12
    assert result.unit == "top-1 accuracy"
    assert list(result.per_image.columns) == ["image", "label", "prediction", "correct", "correct_top5"]
    assert result.per_image["correct"].mean() == result.value
    assert "top-5 accuracy" not in set(result.table["quantity"])  # of three classes
