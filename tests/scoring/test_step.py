"""`step=` gives the loss where no `training_step` does: the same number as the gradients of that loss by hand."""

import copy
import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from lightning_zico import ZeroShotSearch, ZeroShotSelector, ZiCoCallback, score
from lightning_zico.errors import UnsupportedModuleError
from lightning_zico.scoring import MemoryCache
from tests.callbacks.training import quiet_trainer
from tests.modules import Classifier, assert_untouched, make_batches, make_network, twice
from tests.search.spaces import Bits
from tests.search.spaces import batches as bits_batches

bce = nn.functional.binary_cross_entropy_with_logits


class GAN(LightningModule):
    """Two networks and two optimisers, optimised by hand as Lightning's documentation has it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, width), nn.LeakyReLU(), nn.Linear(width, 1))

    def losses(self, real: Tensor) -> tuple[Tensor, Tensor]:
        fake = self.generator(real[:, 3:].sin())  # noise that is the same in every call
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, fixed, (fake,))
        of_real, of_fake = self.discriminator(real), self.discriminator(fake.detach())
        told = bce(of_real, torch.ones_like(of_real)) + bce(of_fake, torch.zeros_like(of_fake))
        return bce(fooled, torch.ones_like(fooled)), told

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, loss in zip(self.optimizers(), self.losses(batch), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.generator, self.discriminator)]


def gan_step(gan: GAN, batch: Any, batch_idx: int) -> Tensor:
    return sum(gan.losses(batch))


def cross_entropy_step(module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def reals(num_batches: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, 6, generator=generator) for _ in range(num_batches)]


def zico_by_hand(gan: GAN, batches: list[Tensor]) -> float:
    """Sum the layers' logarithms, with each network's gradient taken of its own loss alone."""
    total = 0.0
    for idx, network in enumerate((gan.generator, gan.discriminator)):
        weights = [layer.weight for layer in network if isinstance(layer, nn.Linear)]
        stacks = [torch.autograd.grad(gan.losses(batch)[idx], weights) for batch in batches]
        for gradients in zip(*stacks, strict=True):
            stack = torch.stack(gradients).double()
            deviation = stack.std(0, correction=0)
            total += math.log((stack.abs().mean(0) / deviation)[deviation > 0].sum())
    return total


def test_a_gan_is_scored_by_the_gradients_that_train_each_network() -> None:
    torch.manual_seed(0)
    gan = GAN()
    with assert_untouched(gan):
        card = score(gan, reals(), ["zico", "params", "macs"], step=gan_step)
    assert card["zico"].value == pytest.approx(zico_by_hand(gan, reals()), rel=1e-4)
    assert set(card["zico"].layers) == {n for n, p in gan.named_parameters() if p.ndim == 2}


@pytest.mark.parametrize("axis", ["batch", "sample"])
@pytest.mark.parametrize("make", [make_network, Classifier])
def test_a_step_that_says_what_the_loss_function_says_gives_its_number(make: Any, axis: Any) -> None:
    first, second = twice(make)
    by_loss = score(first, make_batches(), ["zico", "snip"], nn.functional.cross_entropy, axis=axis)
    by_step = score(second, make_batches(), ["zico", "snip"], step=cross_entropy_step, axis=axis)
    for name in ("zico", "snip"):
        assert by_step[name].value == by_loss[name].value
    a_dictionary = score(second, make_batches(), step=lambda *given: {"loss": cross_entropy_step(*given)}, axis=axis)
    assert a_dictionary["zico"].value == by_loss["zico"].value


def test_a_step_runs_where_training_step_does() -> None:
    seen = []

    def step(module: Any, batch: Any, batch_idx: int) -> Tensor:
        module.log("loss", 1.0, prog_bar=True, sync_dist=True)
        module.logger.experiment.add_scalar("loss", 1.0)
        seen.append((batch_idx, module.trainer.training, module.trainer.max_epochs, torch.is_autocast_enabled("cpu")))
        assert len(module.optimizers()) == 2
        return gan_step(module, batch, batch_idx)

    selector = ZeroShotSelector(proxies="zico", step=step, precision="bf16-mixed")
    assert selector.rank([GAN], reals(2)).errors == {}
    assert {idx for idx, *_ in seen} == {0, 1}
    assert all(training and autocast for _, training, _, autocast in seen)
    assert selector.leaderboard_.provenance["step"] == "step"


def test_every_entrance_takes_a_step() -> None:
    torch.manual_seed(0)
    gan, factories = GAN(), {"small": lambda: GAN(4), "large": lambda: GAN(16)}
    ranked = ZeroShotSelector(proxies="zico", step=gan_step).rank(factories, reals())
    assert ranked.errors == {}
    callback = ZiCoCallback(num_batches=3, step=gan_step)
    gan_twin = copy.deepcopy(gan)
    quiet_trainer(callback, max_epochs=1).fit(gan_twin, DataLoader(reals(), None))
    assert callback.history[0]["score"] == score(gan, reals(), step=gan_step)["zico"].value
    assert gan_twin.global_step > 0
    searched = ZeroShotSearch(Bits(), num_trials=3, num_classes=3, proxies="zico", step=cross_entropy_step)
    by_step = searched.run(bits_batches())
    by_loss = ZeroShotSearch(Bits(), num_trials=3, num_classes=3, proxies="zico").run(bits_batches())
    assert [row["score"] for row in by_step] == [row["score"] for row in by_loss]
    assert by_step.provenance["study"] != by_loss.provenance["study"]


def test_another_step_is_another_key_of_the_cache() -> None:
    cache, gan = MemoryCache(), GAN()
    halved = lambda module, batch, batch_idx: 0.5 * module.losses(batch)[0]  # noqa: E731
    values = [
        ZeroShotSelector(proxies="zico", step=step, cache=cache).rank([gan], reals()).rows[0]["score"]
        for step in (gan_step, halved, gan_step)
    ]
    assert values[0] == values[2] != values[1]


@pytest.mark.parametrize(("output", "said"), [(None, "returned None"), ({"x": 1}, "without a loss")])
def test_a_step_without_a_loss_says_so(output: Any, said: str) -> None:
    card = score(GAN(), reals(), step=lambda *_: output)
    assert said in card["zico"].error
    assert "`step=`" in card["zico"].error


def test_errors_of_manual_optimisation_name_the_step() -> None:
    assert "`step=`" in score(GAN(), reals())["zico"].error
    with pytest.raises(UnsupportedModuleError, match="`step=`"):
        quiet_trainer(ZiCoCallback()).fit(GAN(), reals())
