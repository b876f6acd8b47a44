"""Proximal Newton over rows on Dask workers: the quadratic models come here as sums, and are minimised here."""

from softreg._solvers.centred_coordinates import CentredCoordinates
from softreg._solvers.proximal_newton import ProximalNewton
from softreg._solvers.quadratic_models import Bound, HessianModel
from softreg.dask import _sums
from softreg.dask._objective import seeds

LARGEST = 5000  # coefficients of a working set: two matrices of 200 MB


def distributed_proximal_newton(objective, start, options, monitor):
    """Minimise a DistributedObjective with l1 > 0 from `start`; return the result, see `proximal_newton`."""
    return DistributedProximalNewton(objective, start.W, options).run(options.max_iter, monitor)


class DistributedProximalNewton(ProximalNewton):
    """The state of a run; samples of the rows are taken chunk by chunk."""

    def set_up_sampling(self, random_state):
        self.seeds = seeds(self.objective, random_state)

    def new_coordinates(self):
        return DistributedCoordinates(self.objective)

    def model(self, at):
        """Return the model at a point, over its working set."""
        working = self.working_set(at)
        m = len(working[0])
        if m > LARGEST:
            raise ValueError(
                f"l1 on Dask needs a working set of at most {LARGEST} coefficients on the client, and {m} may differ "
                "from zero: raise alpha or l1_ratio, or set l1_ratio=0"
            )
        return SummedModel(self.coordinates, at.linearization, working, (self.seeds, self.sample(m)))

    def sample(self, m):
        """Return the share of the rows for a Hessian over m coefficients."""
        return self.sample_size(m) / self.objective.n_rows


class DistributedCoordinates(CentredCoordinates):
    """Coordinates whose moments are sums over the chunks. No row is here."""

    def _row_shares(self):
        return None

    def means(self):
        return self.objective.sum(_sums.feature_means)[0]

    def mean_squares(self, mean):
        return self.objective.sum(_sums.feature_squares, mean=mean)[0]

    def dual_point(self, V):
        entropy, G = self.objective.sum(_sums.dual_point, V=V, mean=self.mean)
        return float(entropy), G


class SummedModel(HessianModel):
    """The model with its Hessian as a matrix, which is a sum over the chunks.

    It counts as one of a sample, even where that is all rows: proofs come from the point alone.
    """

    def sums_over_rows(self, linearization, sample):
        column, share = sample
        classes, features = self.working
        H, scatter = linearization.objective.sum(
            _sums.hessian_and_scatter, linearization.chunks, column, mean=self.coordinates.mean, classes=classes,
            features=features, share=share,
        )  # fmt: skip
        return H, Bound(classes, features, lambda: scatter, self.coordinates.n_classes)
