import json

import pytest

import golden


def test_golden_numbers():
    """If a change is meant to change these, run ``make golden`` and say why in the commit."""
    expected, found = json.loads(golden.PATH.read_text()), golden.compute()
    assert found["phantom"] == expected["phantom"]
    assert found["chosen"] == expected["chosen"]
    assert found["dm_loss"] == pytest.approx(expected["dm_loss"], rel=1e-3)
    assert found["dm_mean_pixel"] == pytest.approx(expected["dm_mean_pixel"], abs=0.05)
    assert found["mean_probabilities"] == pytest.approx(expected["mean_probabilities"], abs=1e-3)
