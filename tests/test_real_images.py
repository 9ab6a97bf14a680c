"""The guard of the real images: what it answers, whom it says it touched, and what it refuses."""

import numpy as np
import pytest
import torch

from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.distil import loop
from medistill.distil.method import make_method, methods
from medistill.distil.problem import make_problem
from medistill.distil.real_images import Batch, RealImages
from medistill.keys import Key

PHANTOM = "phantom:classes=3,images=36,size=16"
FINDINGS = "phantom:task=findings,classes=3,images=40,size=16"


@pytest.fixture(scope="module")
def prepared():
    return prepare(load(PHANTOM))


def real_of(prepared, *queries):
    return make_problem(prepared, 2, None).real.queried_by(queries)


def images_of(prepared, rows):
    return prepared.normalisation.normalise(torch.from_numpy(prepared.train.pixels[rows]))


def test_a_mean_is_that_of_the_rows_it_names(prepared):
    answer = real_of(prepared, "mean").mean(lambda x: x.flatten(1), 1, 5, Key(0))
    assert len(answer.rows) == len(set(answer.rows)) == 5
    assert (prepared.train.targets[answer.rows, 1] == 1).all()
    assert torch.allclose(answer.value, images_of(prepared, answer.rows).flatten(1).mean(0), atol=1e-6)


def test_no_more_images_than_a_stratum_has(prepared):
    answer = real_of(prepared, "mean").mean(lambda x: x.flatten(1), 0, 10_000, Key(0))
    assert sorted(answer.rows) == np.flatnonzero(prepared.train.targets[:, 0]).tolist()


def test_an_answer_says_whose_images_it_touched(prepared):
    answer = real_of(prepared, "draw").draw(2, torch.tensor([4, 1, 3]))
    owners = prepared.dataset.train.patients
    assert answer.patients.tolist() == sorted(set(owners[answer.rows]))
    assert torch.equal(answer.value.images, images_of(prepared, answer.rows))
    assert np.array_equal(answer.value.targets.numpy(), prepared.train.targets[answer.rows])


def test_whose_images_they_are_is_none_where_nobody_knows(tiny_npz):
    answer = real_of(prepare(load(tiny_npz)), "draw").draw(0, torch.tensor([0, 1]))
    assert answer.patients is None


def test_a_gradient_sees_images_with_their_own_targets():
    prepared = prepare(load(FINDINGS))
    seen = []

    def gradient(batch: Batch) -> list[torch.Tensor]:
        seen.append(batch.targets)
        return [batch.images.sum(0)]

    answer = real_of(prepared, "gradient").gradient(gradient, 0, 6, Key(0))
    assert np.array_equal(seen[0].numpy(), prepared.train.targets[answer.rows])
    assert (seen[0][:, 0] == 1).all() and (seen[0].sum(1) > 1).any()


def test_embeddings_of_a_whole_stratum_are_in_the_order_of_the_images(prepared):
    answer = real_of(prepared, "embeddings").embeddings(lambda x: x.flatten(1), 1)
    assert answer.rows.tolist() == np.flatnonzero(prepared.train.targets[:, 1]).tolist()
    assert torch.equal(answer.value.images, images_of(prepared, answer.rows).flatten(1))


def test_training_passes_every_image_once(prepared):
    batches = list(real_of(prepared, "training").training(10, Key(0)))
    rows = np.concatenate([answer.rows for answer in batches])
    assert sorted(rows) == list(range(len(prepared.train)))
    assert [len(answer.rows) for answer in batches[:-1]] == [10] * (len(batches) - 1)


def test_micro_batches_change_answers_by_rounding_alone(prepared):
    whole, parts = (real_of(prepared, "mean").in_micro_batches(size) for size in (None, 3))
    ask = {"statistic": lambda x: x.flatten(1), "stratum": 0, "count": 10, "key": Key(1)}
    assert torch.allclose(whole.mean(**ask).value, parts.mean(**ask).value, atol=1e-6)


@pytest.mark.parametrize("query", ["mean", "gradient", "embeddings", "draw", "training"])
def test_what_is_not_declared_is_not_answered(prepared, query):
    real = real_of(prepared, *({"mean", "gradient", "embeddings", "draw", "training"} - {query}))
    asks = {
        "mean": lambda: real.mean(lambda x: x, 0, 1, Key(0)),
        "gradient": lambda: real.gradient(lambda b: [], 0, 1, Key(0)),
        "embeddings": lambda: real.embeddings(lambda x: x, 0),
        "draw": lambda: real.draw(0, torch.tensor([0])),
        "training": lambda: next(real.training(4, Key(0))),
    }
    with pytest.raises(TypeError, match=f"asks for '{query}' must declare it"):
        asks[query]()


def test_nothing_is_answered_before_a_method_says_what_it_needs(prepared):
    with pytest.raises(TypeError, match="must declare"):
        make_problem(prepared, 2, None).real.draw(0, torch.tensor([0]))


def test_no_method_grants_itself_more_than_it_was_granted(prepared):
    granted = real_of(prepared, "mean")
    with pytest.raises(TypeError, match="must declare"):
        granted.queried_by(("mean", "draw")).draw(0, torch.tensor([0]))
    assert len(granted.queried_by(("mean", "draw")).mean(lambda x: x.flatten(1), 0, 3, Key(0)).rows) == 3


def test_methods_of_distribution_matching_ask_for_means_once_they_start_from_noise(prepared, monkeypatch):
    """What a private mechanism has to answer: nothing but means."""
    asked: list[str] = []

    def noted(query):
        answer = getattr(RealImages, query)
        return lambda self, *given, **named: (asked.append(query), answer(self, *given, **named))[1]

    for query in ("mean", "gradient", "embeddings", "draw", "training"):
        monkeypatch.setattr(RealImages, query, noted(query))
    method = make_method({"name": "dm", "iterations": 4, "networks": 2, "filters": 8, "real_batch": 8})
    problem = make_problem(prepared, 2, None)
    loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)))
    # Two networks and three classes, each once, however many steps.
    assert asked == ["mean"] * 6


def test_every_method_declares_what_it_asks():
    for name, method in methods().items():
        assert method.info.queries, name
