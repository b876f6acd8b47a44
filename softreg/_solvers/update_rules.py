"""Update rules of minibatch training: the state of an optimiser, and how it changes W given a gradient and a rate."""

from dataclasses import dataclass, field

import numpy as np

from softreg import _core


@dataclass
class Momentum:
    """v <- momentum v + g;  W <- W - rate v, or with Nesterov's look-ahead W - rate (g + momentum v).

    Sutskever et al. (2013), in the form without a shifted iterate that torch.optim.SGD also uses. Two are equal if
    their settings are; their velocities do not count.
    """

    momentum: float = 0.0
    nesterov: bool = False
    velocity: np.ndarray | None = field(default=None, init=False, compare=False)

    @property
    def gain(self):
        """How many steps' worth a gradient moves W in all: the proximal step for l1 has to move it as far."""
        return 1 / (1 - self.momentum)

    def step(self, W, gradient, rate):
        """Change W (K, p) and the velocity in place; rate is a number, or one for each column."""
        if self.velocity is None:
            self.velocity = np.zeros_like(W)
        elif self.velocity.strides != W.strides or self.velocity.dtype != W.dtype:  # a stream changed its form
            before, self.velocity = self.velocity, np.empty_like(W)
            self.velocity[...] = before
        rates = np.empty(W.shape[1], W.dtype)
        rates[:] = rate
        _core.momentum_step(W, self.velocity, gradient, rates, self.momentum, self.nesterov)


@dataclass
class Mean:
    """The mean of all iterates (Polyak and Juditsky 1992)."""

    W: np.ndarray
    steps: int = 0

    def add(self, W):
        """Take one more iterate into the mean."""
        self.steps += 1
        self.W += (W - self.W) / self.steps


def soft_threshold(W, threshold):
    """Apply the proximal operator of threshold ||W||_1 in place: exact zeros below the threshold."""
    magnitude = np.abs(W)
    magnitude -= threshold
    np.maximum(magnitude, 0, out=magnitude)
    np.copysign(magnitude, W, out=W)
    W[magnitude == 0] = 0  # not -0.0
