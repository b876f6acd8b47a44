"""Update rules and learning-rate schedules: state in, step out.

An optimiser changes W in place given a gradient and a rate, and returns the rate that each coordinate saw (a number,
or an array like W). Two are equal if their settings are; their state does not count. A schedule maps the progress of
a fit to a factor.
"""

from dataclasses import dataclass, field

import numpy as np

from softreg import _core

EPSILON = 1e-8  # added to the root of the squares: a gradient of zero moves nothing, and divides nothing by zero


@dataclass
class SGD:
    """v <- momentum v + g;  W <- W - rate v, or with Nesterov's look-ahead W - rate (g + momentum v).

    Sutskever et al. (2013), in the form without a shifted iterate that torch.optim.SGD also uses.
    """

    momentum: float = 0.0
    nesterov: bool = False
    velocity: np.ndarray | None = field(default=None, init=False, compare=False)
    reach = None

    @property
    def lag(self):
        """How many steps' worth a gradient moves W in all: the proximal step for l1 has to move it as far."""
        return 1 / (1 - self.momentum)

    def step(self, W, gradient, rate):
        if self.velocity is None:
            self.velocity = np.zeros_like(W)
        elif self.velocity.strides != W.strides or self.velocity.dtype != W.dtype:  # a stream changed its form
            before, self.velocity = self.velocity, np.empty_like(W)
            self.velocity[...] = before
        rates = np.empty(W.shape[1], W.dtype)
        rates[:] = rate
        _core.momentum_step(W, self.velocity, gradient, rates, self.momentum, self.nesterov)
        return rate


@dataclass
class AdaGrad:
    """v <- v + g^2;  W <- W - rate g / (sqrt(v) + epsilon).     Duchi et al. (2011)"""

    squares: np.ndarray | None = field(default=None, init=False, compare=False)
    lag, reach = 1, 5.0

    def step(self, W, gradient, rate):
        self.squares = gradient**2 if self.squares is None else self.squares + gradient**2
        seen = rate / (np.sqrt(self.squares) + EPSILON)
        W -= seen * gradient
        return seen


@dataclass
class RMSProp:
    """v <- decay v + (1 - decay) g^2;  W <- W - rate g / (sqrt(v) + epsilon).     Tieleman and Hinton (2012)"""

    decay: float = 0.9
    squares: np.ndarray | None = field(default=None, init=False, compare=False)
    lag, reach = 1, 1.0

    def step(self, W, gradient, rate):
        self.squares = running_mean(self.squares, gradient**2, self.decay)
        seen = rate / (np.sqrt(self.squares) + EPSILON)
        W -= seen * gradient
        return seen


@dataclass
class Adam:
    """W <- W - rate m' / (sqrt(v') + epsilon).     Kingma and Ba (2015), algorithm 1

    m <- beta_1 m + (1 - beta_1) g and v <- beta_2 v + (1 - beta_2) g^2 start at zero, which m' = m / (1 - beta_1^t)
    and v' = v / (1 - beta_2^t) make up for.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    mean: np.ndarray | None = field(default=None, init=False, compare=False)
    squares: np.ndarray | None = field(default=None, init=False, compare=False)
    steps: int = field(default=0, init=False, compare=False)
    lag, reach = 1, 2.0

    def step(self, W, gradient, rate):
        self.steps += 1
        self.mean = running_mean(self.mean, gradient, self.beta_1)
        self.squares = running_mean(self.squares, gradient**2, self.beta_2)
        seen = rate / (np.sqrt(self.squares / (1 - self.beta_2**self.steps)) + EPSILON)
        W -= seen * (self.mean / (1 - self.beta_1**self.steps))
        return seen


def running_mean(mean, new, decay):
    return (1 - decay) * new if mean is None else decay * mean + (1 - decay) * new


def schedule(name, progress, power=0.5):
    """The factor on eta0 after `progress` epochs of a fit planned for `total`, progress = (epochs done, total).

    constant    1
    adaptive    1, of a rate that the solver lowers by itself
    linear      1 - t / T
    cosine      (1 + cos(pi t / T)) / 2                (Loshchilov and Hutter 2017)
    invscaling  (1 + t)^-power                         (Robbins and Monro 1951)
    """
    done, total = progress
    if name in ("constant", "adaptive"):
        return 1.0
    if name == "linear":
        return max(0.0, 1.0 - done / total)
    if name == "cosine":
        return 0.5 * (1.0 + np.cos(np.pi * min(1.0, done / total)))
    if name == "invscaling":
        return (1.0 + done) ** -power
    raise ValueError(f"unknown schedule {name!r}")


def soft_threshold(W, threshold):
    """The proximal operator of threshold ||W||_1, in place: exact zeros below the threshold."""
    magnitude = np.abs(W)
    magnitude -= threshold
    np.maximum(magnitude, 0, out=magnitude)
    np.copysign(magnitude, W, out=W)
    W[magnitude == 0] = 0  # not -0.0
