"""Kernel ridge regression on the features of a pool of partly trained networks.

A ridge regression fitted to the synthetic images and their labels should predict the real
images' labels. The images are learned through the regression, which has a closed form, so
no training needs to be unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from medistill.distil.descent import loss_gradient, through
from medistill.distil.matching import ridge_prediction
from medistill.distil.method import Gradients, MethodInfo, Observed, State, register
from medistill.distil.networked import NetworkMethod
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import CHUNK, Batch
from medistill.keys import Key
from medistill.nets.convnet import Parameters


@register
class FRePo(NetworkMethod):
    """Neural feature regression with pooling (Zhou, Nezhadarya, Ba, NeurIPS 2022), algorithm 1, equation 4.

    Here real images are drawn evenly from the strata, and labels are learned as probabilities
    (those of the logits that are learned), because a recipient trains with cross entropy; the
    regression's targets are those probabilities less the share of the strata that an output
    stands for: 1/outputs for classes. Networks of the pool are trained by plain gradient descent.
    """

    info = MethodInfo(
        name="frepo",
        title="Neural feature regression with pooling",
        version=2,
        kind="distillation",
        cost="minutes",
        bibtex=(
            "@inproceedings{zhou2022frepo, title={Dataset Distillation using Neural Feature Regression}, "
            "author={Zhou, Yongchao and Nezhadarya, Ehsan and Ba, Jimmy}, booktitle={NeurIPS}, year={2022}}"
        ),
        learns_labels=True,
        queries=("embeddings",),
        couples_classes=True,
    )

    iterations: int = Field(1000, ge=1, le=10_000_000, description="steps on the images")
    learn_labels: bool = Field(True, description="learn labels too; else each image keeps its class")
    label_learning_rate: float = Field(0.02, ge=0, le=1e6, description="of the labels' logits")
    certainty: float = Field(0.9, gt=0, lt=1, description="probability of an image's own class to begin with")
    networks: int = Field(10, ge=1, le=1000, description="networks in the pool")
    longest_training: int = Field(
        100, ge=1, le=100_000, description="a network is made anew after at most that many steps"
    )
    network_learning_rate: float = Field(0.01, gt=0, le=10, description="of the networks, plain gradient descent")
    network_batch: int = Field(256, ge=1, le=65536, description="synthetic images per step of a network")
    real_batch: int = Field(512, ge=1, le=1_000_000, description="real images per step, of all classes together")
    ridge: float = Field(1e-6, gt=0, le=1, description="ridge, as a share of the kernel's mean diagonal")
    filters: int = Field(64, ge=1, le=4096, description="filters per convolution")

    def steps(self, problem: DistillationProblem) -> int:
        return self.iterations

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        return Optimiser("adam", learning_rate=0.02)

    def label_rate(self) -> float:
        return self.label_learning_rate

    def memory_mb(self, problem: DistillationProblem, strata: int) -> float:
        network = self.network(problem)
        count = sum(problem.synthetic_per_stratum)
        features = 8e-6 * network.embedding_size * (self.real_batch + count)
        synthetic, real = (problem.at_once(n) for n in (count, min(CHUNK, self._per_stratum(problem))))
        asking = min(problem.workers.number, len(problem.present(range(problem.strata))))
        inside = synthetic * self.activation_mb(problem) + asking * real * self.real_mb(problem)
        return self.with_images_mb(problem, inside) + 3 * features + self.networks * (4e-6 * network.parameter_count)

    def setup(self, problem: DistillationProblem, key: Key) -> State:
        state = State(self.first_images(problem, key), problem.targets)
        if self.learn_labels:
            # Logits whose probabilities give the own class its certainty and the others equal shares.
            state.label_logits = problem.task.logits(self.certainty, problem.targets.to(state.images.dtype))
        draw = key.child("ages").numpy()
        # Networks begin at different ages, so that they are not all new at once.
        ages = [int(draw.integers(self.longest_training)) for _ in range(self.networks)]
        state.buffers["ages"] = torch.tensor(ages)
        state.buffers["births"] = torch.zeros(self.networks, dtype=torch.int64)
        for slot in range(self.networks):
            self._keep(state, slot, problem.parameters(self.network(problem), key.child("network", slot, 0)))
        return state

    def _per_stratum(self, problem: DistillationProblem) -> int:
        """Real images of a stratum in a step."""
        return -(-self.real_batch // len(problem.present(range(problem.strata))))

    def observe(
        self, state: State, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> dict[str, Tensor]:
        """Features of real images drawn evenly from the strata, (m, d), and their targets, (m, outputs)."""
        here = key.child("step", state.step)
        network, parameters = self.network(problem), self._parameters(state, self._slot(here))
        augment = self.sample_augmentation(problem, here.child("augment"))

        def of(stratum: int) -> Batch:
            def embedded(images: Tensor) -> Tensor:
                return self.embed(network, parameters, augment(images))

            drawn = here.child("real", stratum)
            return self.real(problem).embeddings(embedded, stratum, self._per_stratum(problem), drawn).value

        answers = list(problem.workers.map(of, strata))
        return {"real": torch.cat([f.images for f in answers]), "targets": torch.cat([f.targets for f in answers])}

    def loss(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Tensor:
        embed = self._embedding(state, problem, key)
        return self._misfit(embed(state.images), state, observed, problem)

    def gradients(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Gradients:
        """Of :meth:`loss`; workers take images through the network, there and back."""
        synthetic, back = through(problem, self._embedding(state, problem, key), state.images)
        asked = [t.requires_grad_(True) for t in (synthetic, state.label_logits) if t is not None]
        with torch.enable_grad():
            loss = self._misfit(synthetic, state, observed, problem)
        slopes = torch.autograd.grad(loss, asked)
        return Gradients(loss.detach(), back(slopes[0]), slopes[1] if len(slopes) > 1 else None)

    def _embedding(self, state: State, problem: DistillationProblem, key: Key) -> Callable[[Tensor], Tensor]:
        """From images to this step's features of them."""
        here = key.child("step", state.step)
        network, parameters = self.network(problem), self._parameters(state, self._slot(here))
        augment = self.sample_augmentation(problem, here.child("augment"))
        return lambda images: self.embed(network, parameters, augment(images))

    def _misfit(self, synthetic: Tensor, state: State, observed: Observed, problem: DistillationProblem) -> Tensor:
        """How far the regression fitted to the synthetic images' features is from the real images' targets."""
        shares = problem.task.representatives().mean(axis=0)
        centre = torch.from_numpy(shares).to(synthetic)
        targets = self._labels(state, problem).to(synthetic.dtype) - centre
        predicted = ridge_prediction(synthetic, targets, observed["real"], self.ridge)
        truth = observed["targets"].to(predicted.dtype) - centre.to(predicted.dtype)
        return 0.5 * (predicted - truth).square().sum(1).mean().to(synthetic.dtype)

    def after_update(
        self, state: State, problem: DistillationProblem, key: Key, gradients: Mapping[str, Tensor]
    ) -> None:
        here = key.child("step", state.step)
        slot = self._slot(here)
        buffers = state.buffers
        buffers["ages"], buffers["births"] = buffers["ages"].clone(), buffers["births"].clone()
        buffers["ages"][slot] += 1
        network = self.network(problem)
        if buffers["ages"][slot] >= self.longest_training:
            buffers["ages"][slot] = 0
            buffers["births"][slot] += 1
            again = key.child("network", slot, int(buffers["births"][slot]))
            self._keep(state, slot, problem.parameters(network, again))
            return
        parameters = self._parameters(state, slot)
        order = torch.randperm(len(state.targets), generator=here.child("order").generator())
        rows = order[: self.network_batch]
        x = self.sample_augmentation(problem, here.child("own"))(state.images.detach()[rows])
        labels = self._labels(state, problem).detach()[rows]

        def loss(learned: Parameters, part: slice) -> Tensor:
            return problem.task.loss(self.logits(network, learned, x[part]), labels[part])

        slopes = loss_gradient(problem, loss, parameters, len(rows))
        self._keep(state, slot, {n: p - self.network_learning_rate * slopes[n] for n, p in parameters.items()})

    def _slot(self, key: Key) -> int:
        return int(key.child("slot").numpy().integers(self.networks))

    @staticmethod
    def _labels(state: State, problem: DistillationProblem) -> Tensor:
        """What is trained towards, as probabilities."""
        if state.label_logits is not None:
            return problem.task.probabilities(state.label_logits)
        return state.targets.to(state.images.dtype)

    @staticmethod
    def _keep(state: State, slot: int, parameters: Parameters) -> None:
        state.buffers.update({f"network{slot}.{name}": tensor for name, tensor in parameters.items()})

    @staticmethod
    def _parameters(state: State, slot: int) -> Parameters:
        prefix = f"network{slot}."
        return {n.removeprefix(prefix): t for n, t in state.buffers.items() if n.startswith(prefix)}
