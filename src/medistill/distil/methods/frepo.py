"""Kernel ridge regression on the features of a pool of partly trained networks.

A ridge regression fitted to the synthetic images and their labels should predict the real
images' labels. The images are learned through the regression, which has a closed form, so
no training needs to be unrolled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from medistill.distil.matching import ridge_prediction
from medistill.distil.method import MethodInfo, Observed, State, register
from medistill.distil.networked import NetworkMethod
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
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
        version=1,
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
        synthetic, real = (problem.at_once(n) for n in (count, self._per_stratum(problem)))
        return (
            self.with_images_mb(problem, (synthetic + real) * self.activation_mb(problem))
            + 3 * features
            + self.networks * (4e-6 * network.parameter_count)
        )

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
        answers = [
            self.real(problem).embeddings(
                lambda images: self.embed(network, parameters, augment(images)),
                stratum, self._per_stratum(problem), here.child("real", stratum),
            ).value
            for stratum in strata
        ]  # fmt: skip
        return {"real": torch.cat([f.images for f in answers]), "targets": torch.cat([f.targets for f in answers])}

    def loss(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Tensor:
        here = key.child("step", state.step)
        network, parameters = self.network(problem), self._parameters(state, self._slot(here))
        augment = self.sample_augmentation(problem, here.child("augment"))
        synthetic = self.embed(network, parameters, augment(state.images), problem.micro_batch_size)
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
        parameters = {n: p.detach().requires_grad_(True) for n, p in self._parameters(state, slot).items()}
        order = torch.randperm(len(state.targets), generator=here.child("order").generator())
        rows = order[: self.network_batch]
        x = self.sample_augmentation(problem, here.child("own"))(state.images.detach()[rows])
        labels = self._labels(state, problem).detach()[rows]
        with torch.enable_grad():
            logits = self.logits(network, parameters, x, problem.micro_batch_size)
            loss = problem.task.loss(logits, labels)
        network_gradients = torch.autograd.grad(loss, list(parameters.values()))
        updated = {
            name: parameter.detach() - self.network_learning_rate * gradient
            for (name, parameter), gradient in zip(parameters.items(), network_gradients, strict=True)
        }
        self._keep(state, slot, updated)

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
