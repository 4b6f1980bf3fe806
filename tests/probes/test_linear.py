"""The linear probe: heads that do not see each other, and scores that agree with scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from tests.probes.test_base import clusters
from tests.support.coloured_images import class_folders
from tokenlens.probes import Heads, Schedule, probe, train_heads
from tokenlens.probes.linear import SCHEDULE, Linear, head_losses

CPU = torch.device("cpu")


def test_heads_do_not_see_each_other():
    train = clusters(60, 3, 1.0, seed=0)
    labels_N = torch.from_numpy(train.labels_N)

    def loss_of(heads, indices_B, _epoch):
        return head_losses(heads, train.features_NF[indices_B], labels_N[indices_B])

    for optimizer in ("SGD", "AdamW"):
        schedule = Schedule(optimizer, (1e-3, 1e-2, 1e9), batch_size=16, epochs=4, max_steps=99, weight_decay=0.01)
        together = train_heads(loss_of, np.arange(60), 12, 3, schedule, 0, CPU)
        for k in (0, 1):  # the third one has gone wrong beside them
            alone = train_heads(loss_of, np.arange(60), 12, 3, schedule, 0, CPU, (schedule.learning_rates[k],))
            torch.testing.assert_close(together.weights[k], alone.weights[0])
            torch.testing.assert_close(together.biases[k], alone.biases[0])


def test_a_head_is_batch_norm_and_a_linear_map():
    heads = Heads(6, 4, 2)
    for parameter in heads.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    x_RF = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) + 2
    logits = heads.train()(x_RF)
    z_RF = (x_RF - x_RF.mean(0)) / (x_RF.var(0, unbiased=False) + 1e-5).sqrt()
    for k in range(2):
        expected = z_RF @ heads.weights[k].T + heads.biases[k]
        torch.testing.assert_close(logits[:, 4 * k : 4 * k + 4], expected)
    labels = torch.arange(50) % 4
    expected = torch.stack(
        [nn.functional.cross_entropy(logits[:, :4], labels), nn.functional.cross_entropy(logits[:, 4:], labels)]
    )
    torch.testing.assert_close(head_losses(heads, x_RF, labels), expected)


def test_as_good_as_logistic_regression():
    train, test = clusters(400, 5, 2.0, seed=0), clusters(400, 5, 2.0, seed=1)
    found = Linear().score(Linear().fit(train, seed=0), test, [str(i) for i in range(400)])
    other = LogisticRegression(max_iter=500).fit(train.features_NF.numpy(), train.labels_N)
    assert abs(found.value - other.score(test.features_NF.numpy(), test.labels_N)) < 0.03


def test_accuracies_are_torchmetrics():
    train, test = clusters(300, 8, 2.5, seed=0), clusters(120, 8, 2.5, seed=1)
    head = Linear().fit(train, seed=0)
    ranked_MR = Linear().rank(head, test.features_NF, 8)
    judged = Linear().score(head, test, [str(i) for i in range(120)])
    scores_MC = torch.zeros(120, 8)
    for rank in range(5):
        scores_MC[torch.arange(120), torch.from_numpy(ranked_MR[:, rank])] = float(5 - rank)
    for k, name in ((1, "top-1 accuracy"), (5, "top-5 accuracy")):
        expected = MulticlassAccuracy(8, average="micro", top_k=k)(scores_MC, torch.from_numpy(test.labels_N))
        [value] = judged.table.loc[judged.table["quantity"] == name, "value"]
        assert value == pytest.approx(float(expected))


def test_the_same_seed_gives_the_same_number(tmp_path):
    data = class_folders(tmp_path / "data")
    one, two = (probe("raw_pixels", "linear", data, seed=3) for _ in range(2))
    assert (one.per_image["prediction"] == two.per_image["prediction"]).all()
    assert one.table.equals(two.table)
    assert one.value == 1


@pytest.mark.parametrize(("count", "steps"), [(10, 50), (128, 50), (700, 250), (10**6, 12500)])
def test_many_images_do_not_take_more_steps_than_dinov2(count, steps):
    assert SCHEDULE.steps(count) == steps
    assert f"{steps} steps of {min(count, 128)} images" in SCHEDULE.describe(count)
