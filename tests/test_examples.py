"""Examples to learn from: those of several databases together."""

from medistill.prediction.examples import read_examples
from medistill.records.store import Store
from studies import described, record


def result_of_two_images():
    level = {m: {"mean": 0.8} for m in ("balanced_accuracy", "auroc")}
    return {
        "arms": dict.fromkeys(("distilled", "random", "full"), level), "recovery": {"balanced_accuracy": 1.0},
        "gain_over_random": {"balanced_accuracy": {"mean": 0.0}}, **described({"images": 2.0}),
    }  # fmt: skip


def test_what_is_called_alike_in_another_database_is_told_apart(tmp_path):
    for name, factor in (("basis", 1), ("mine", 2)):
        with Store(tmp_path / f"{name}.db", write=True) as store:
            for method in ("dm", "random"):
                told = {"determined": {"distil": {"factor": factor}}}
                told["method"] = {"method": method}
                data = {"group": name, "data": name, "data_identity": name}
                store.record(
                    record(
                        identity=f"{name} {method}",
                        method=method,
                        specification=told,
                        result=result_of_two_images(),
                        **data,
                    ),
                    [],
                )
    found = read_examples([tmp_path / "basis.db", tmp_path / "mine.db"])
    assert {(e.method, e.distil["factor"]) for e in found} == {
        ("dm", 1), ("dm (mine)", 2), ("random", 1), ("random (mine)", 2),
    }  # fmt: skip


def test_own_runs_of_data_that_the_tool_knows_take_no_example_away(tmp_path):
    """The same data by the same method at the same size, evaluated with another number of draws."""
    for name, seeds, draws in (("basis", (0, 1), 4), ("mine", (0,), 1)):
        how = {"evaluate": {"recipe": {}, "nets": ["convnet"], "random_draws": draws}}
        with Store(tmp_path / f"{name}.db", write=True) as store:
            for seed in seeds:
                identity = f"{name} {seed}"
                store.record(
                    record(identity=identity, seed=seed, specification=how, result=result_of_two_images()), []
                )
    assert len(read_examples([tmp_path / "basis.db", tmp_path / "mine.db"])) == 3
