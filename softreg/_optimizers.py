"""Update rules and learning-rate schedules: state in, step out.

An optimiser changes W in place given a gradient and a rate. Two are equal if their settings are; their state does not
count. A schedule maps the progress of a fit to a factor.
"""

from dataclasses import dataclass, field

import numpy as np

from softreg import _core


@dataclass
class SGD:
    """v <- momentum v + g;  W <- W - rate v, or with Nesterov's look-ahead W - rate (g + momentum v).

    Sutskever et al. (2013), in the form without a shifted iterate that torch.optim.SGD also uses.
    """

    momentum: float = 0.0
    nesterov: bool = False
    velocity: np.ndarray | None = field(default=None, init=False, compare=False)

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
