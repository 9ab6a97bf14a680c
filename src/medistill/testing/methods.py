"""What every method must do."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any, ClassVar
from unittest import mock

import torch

from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.preprocess import prepare
from medistill.distil import loop
from medistill.distil.method import Method, State, make_method
from medistill.distil.private_images import Mechanism, PrivateRealImages, generated_images
from medistill.distil.problem import DistillationProblem, make_problem
from medistill.files import CACHE_VARIABLE
from medistill.keys import Key
from medistill.parallel import StepSharing, Workers


def small_problem(
    ipc: int = 2, factor: int = 1, mechanism: Mechanism | None = None, **phantom: Any
) -> DistillationProblem:
    """A problem of a few dozen 16-pixel phantom images; other arguments as for ``Phantom``."""
    spec = Phantom(**{"classes": 3, "images": 36, "size": 16, **phantom})
    return make_problem(prepare(make_phantom(spec)), ipc, None, factor, None, mechanism)


class MethodConformance:
    """Tests that follow from the contract alone."""

    method: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    rounding: ClassVar[float] = 1e-4
    """By which images may differ where only so many go through a network at once; a high rate makes it more."""

    def make(self) -> Method:
        """The method under test."""
        return make_method({"name": self.method, **self.settings})

    def run(self, problem: DistillationProblem, seed: int = 0, chunk: int | None = None) -> State:
        """Distil from start to end."""
        key = Key(seed)
        method = self.make()
        return loop.run(method, problem, key, loop.start(method, problem, key), strata_per_piece=chunk)

    def check_images(self, problem: DistillationProblem) -> State:
        """Distil and check shape, labels and range."""
        state = self.run(problem)
        low, high = problem.bounds
        assert state.images.shape == (sum(problem.synthetic_per_stratum), problem.channels, *problem.stored_shape)
        membership = problem.task.membership(state.targets.numpy())
        assert membership[range(len(membership)), problem.stratum_of.tolist()].all()
        assert torch.isfinite(state.images).all()
        assert ((state.images >= low - 1e-5) & (state.images <= high + 1e-5)).all()
        return state

    def test_one_image_per_class(self) -> None:
        self.check_images(small_problem(1))

    def test_many_images_per_class(self) -> None:
        self.check_images(small_problem(7))

    def test_colour(self) -> None:
        self.check_images(small_problem(2, colour=True))

    def test_other_sizes_square_or_not(self) -> None:
        self.check_images(small_problem(2, size=28))
        self.check_images(small_problem(2, size=18, width=25))
        self.check_images(small_problem(1, size=64, images=6))

    def test_one_class_alone(self) -> None:
        problem = small_problem(3)
        self.check_images(replace(problem, synthetic_per_stratum=(3, 0, 0)))

    def test_grades(self) -> None:
        self.check_supported(small_problem(2, task="grades"))

    def test_findings(self) -> None:
        self.check_supported(small_problem(2, task="findings"))

    def test_volumes(self) -> None:
        self.check_supported(small_problem(2, depth=16))

    def check_supported(self, problem: DistillationProblem) -> None:
        """Distil data of a kind that the method may say it is not made for."""
        if self.make().info.refusal(problem.task, len(problem.shape)) is None:
            self.check_images(problem)

    def test_what_is_declared_is_asked(self) -> None:
        """What is asked and not declared is refused in all other tests; here what is declared and never asked."""
        method = self.make()
        for query in method.queries:
            problem = small_problem().queried_by([other for other in method.queries if other != query])
            try:
                self.run(problem)
            except TypeError as refused:
                assert query in str(refused)
            else:
                raise AssertionError(f"'{query}' is declared and never asked")

    def test_the_loss_asks_no_real_image(self) -> None:
        problem, key, method = small_problem(), Key(0), self.make()
        if not method.steps(problem):
            return
        state = loop.start(method, problem, key)
        state.images = problem.decode(state.images)
        strata = problem.present(range(problem.strata))
        observed = method.observe(state, problem, strata, key)
        buffers = {name: tensor.clone() for name, tensor in state.buffers.items()}
        blind = problem.queried_by(())
        first = method.gradients(state, observed, blind, strata, key)
        second = method.gradients(state, observed, blind, strata, key)
        assert first.images is not None and second.images is not None
        assert torch.equal(first.images, second.images)
        assert set(buffers) == set(state.buffers)
        assert all(torch.equal(tensor, state.buffers[name]) for name, tensor in buffers.items())

    def test_a_private_release_is_of_each_image_alone(self) -> None:
        """Where images of a batch changed what others contribute, one person would move all of them."""
        method, key = self.make(), Key(0)
        if not method.info.private or method.starts_from_real_images:
            return
        problem = small_problem(mechanism=Mechanism("image", 1.0))
        images, found = problem.real, []
        assert isinstance(images, PrivateRealImages)
        answer = images.release

        def looked_at(statistic: Any, *arguments: Any) -> Any:
            shown = problem.normalisation.normalise(generated_images(problem.channels, problem.shape)[:5])
            with torch.no_grad():
                found.append((statistic(shown, 1), torch.cat([statistic(image[None], 1) for image in shown])))
            return answer(statistic, *arguments)

        with mock.patch.object(images, "release", looked_at):
            state = method.setup(problem, key)
            method.release(state, problem, images, key, lambda seen: None)
        ((together, alone),) = found
        assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
        assert {"means", "counts", "clip"} <= set(state.buffers)
        asked_once = loop.run(
            method, problem, key, loop.start(method, small_problem(mechanism=images.mechanism), key)
        )
        assert torch.isfinite(asked_once.images).all()

    def test_stored_at_half_the_side(self) -> None:
        problem = small_problem(2, factor=2)
        assert problem.synthetic_per_stratum == (8, 8, 8) and problem.stored_shape == (8, 8)
        self.check_images(problem)
        self.check_images(small_problem(1, factor=2, size=18, width=25))

    def test_class_smaller_than_asked_for(self) -> None:
        problem = small_problem(6, images=30, imbalance=8)
        assert min(problem.synthetic_per_stratum) < 6
        self.check_images(problem)

    def test_whole_class_asked_for(self) -> None:
        problem = small_problem(12)
        assert problem.synthetic_per_stratum == problem.real_per_stratum
        self.check_images(problem)

    def test_same_key_same_bytes_whatever_the_global_state(self) -> None:
        problem = small_problem()
        torch.manual_seed(1)
        first = self.run(problem)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        second = self.run(problem)
        assert torch.equal(first.images, second.images)
        assert torch.equal(state, torch.get_rng_state())

    def test_another_key_gives_other_images(self) -> None:
        problem = small_problem(2)
        if not self.make().steps(problem) and self.method not in ("random", "k-means"):
            return  # some coresets have nothing to draw
        assert not torch.equal(self.run(problem).images, self.run(problem, seed=1).images)

    def test_stopped_and_resumed_gives_the_same_bytes(self) -> None:
        problem, key, method = small_problem(), Key(0), self.make()
        whole = self.run(problem)
        for stop in range(1, method.steps(problem)):
            state = loop.start(method, problem, key)

            class Stopped(Exception):
                pass

            def after_step(state: State, losses: list[float], stop: int = stop) -> None:
                if state.step == stop:
                    raise Stopped

            try:
                loop.run(method, problem, key, state, after_step)
            except Stopped:
                state = state.clone()
            resumed = loop.run(method, problem, key, state)
            assert torch.equal(whole.images, resumed.images)

    def test_classes_one_by_one_give_the_same_images(self) -> None:
        problem = small_problem()
        whole, parts = self.run(problem), self.run(problem, chunk=1)
        assert torch.allclose(whole.images, parts.images, atol=1e-4)

    def test_a_few_images_at_once_give_the_same_images(self) -> None:
        """At each step from where the whole is: over several, at a high rate, rounding grows to anything."""
        problem, method, key = small_problem(5), self.make(), Key(0)
        state = loop.start(method, problem, key)
        for step in range(method.steps(problem)):
            parted = state.clone()
            loop.run(method, problem, key, state, until=step + 1)
            loop.run(method, problem.in_micro_batches(3), key, parted, until=step + 1)
            assert torch.allclose(state.images, parted.images, atol=self.rounding)
            for name, buffer in state.buffers.items():
                assert torch.allclose(buffer.double(), parted.buffers[name].double(), rtol=1e-3, atol=1e-3), name
        chosen = loop.start(method, problem.in_micro_batches(3), key)
        assert torch.allclose(loop.start(method, problem, key).images, chosen.images, atol=self.rounding)

    def test_any_number_of_workers_gives_the_same_bytes(self) -> None:
        """Also where an operation may take two threads; each with an empty cache, else the first one's is found."""
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            for problem in (small_problem(), small_problem(12, factor=2, images=240)):
                found = [self._with_empty_cache(problem.worked_by(Workers(number))) for number in (1, 2, 3)]
                with mock.patch.multiple(StepSharing, TRIED=1, REST=1, LONGEST=1):  # in turn within layers
                    found += [self._with_empty_cache(problem.worked_by(Workers(number))) for number in (2, 3)]
                assert all(torch.equal(found[0].images, other.images) for other in found[1:])
        finally:
            torch.set_num_threads(threads)

    def _with_empty_cache(self, problem: DistillationProblem) -> State:
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {CACHE_VARIABLE: folder}):
            self.make().prepare(problem, Key(0), lambda _: None)
            return self.run(problem)

    def test_unknown_setting_is_refused(self) -> None:
        from medistill.errors import ConfigError

        try:
            make_method({"name": self.method, **self.settings, "no_such_setting": 1})
        except ConfigError:
            return
        raise AssertionError("an unknown setting was accepted")

    def test_citation_and_description(self) -> None:
        info = self.make().info
        assert info.title and (info.bibtex or info.name == "random")
        assert all(field.description for field in type(self.make()).model_fields.values())
