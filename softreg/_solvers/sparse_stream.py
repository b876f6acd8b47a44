"""One pass over sparse rows: what a stream of CSR batches keeps, and how several epochs forget.

`_sparse_stream_reference.csr_stream` has the steps. Their cost is in proportion to the nonzeros of a batch, whatever
the number of features is. Rows are learnt one by one, so it does not matter how a stream is cut into batches.
"""

import numpy as np

from softreg._sparse_stream import csr_stream
from softreg._sparse_stream_reference import coefficients_of

# Chosen once, on newsgroups, word counts and one-hot categories; nothing depends on alpha or on the data.
RATE = 3.0  # of steps; from 2 to 4 the accuracy differs by less than .005
BAND = 10.0  # features whose sizes differ by less than this keep the scale that they were given
LIMIT = 10.0  # of the change of a row's own logits; much larger is worse where features have mixed scales
DAMPING = 0.1  # of several epochs, where it halves the distance to the optimum; in one pass it learns too slowly
FORMAT = 1  # of the state


class SparseStream:
    """The optimiser of a stream of CSR rows, FTRL-Proximal with AdaGrad's strengths.

    Its memory is W^T in the dtype of the rows, and two float64 numbers a feature.

    Parameters
    ----------
    n_features, n_classes : int
    fit_intercept : bool
    dtype : float32 or float64

    Attributes
    ----------
    theta, features, totals : ndarray
        What `csr_stream` keeps.
    damping : float
        Its parameter; 0 in a stream.
    """

    def __init__(self, n_features, n_classes, fit_intercept=True, dtype=np.float64):
        self.n_features = n_features
        self.theta = np.zeros((n_features + bool(fit_intercept), n_classes), dtype)
        self.features = np.zeros((len(self.theta), 2))
        self.totals = np.zeros(5)
        self.damping = 0.0

    def learn(self, X, codes, targets, sample_weight, *, l2, l1=0.0, label_smoothing=0.0, rows=None):
        """Learn the rows of a CSR batch in turn; each is predicted before it is learnt.

        Parameters
        ----------
        X : CSR matrix (n, d), float32 or float64, sorted indices
        codes : intp array (n,) or None
        targets : array (n, K) or None
        sample_weight : array (n,) or None
            Both in the dtype of X, as in `csr_loss_gradient`.
        l2, l1 : float
            Penalties of these rows.
        rows : intp array or None
            Which rows, in that order.

        Returns
        -------
        loss, correct : float
            The cross-entropy and the number of correct predictions, summed over the rows with their weights.

        Raises
        ------
        FloatingPointError
            Where the logits of a row overflow. What was learnt before that row is kept, and finite.
        """
        if not X.has_canonical_format:  # an entry that comes twice would make two steps
            X = X.copy()
            X.sum_duplicates()
        if self.theta.dtype != X.dtype:
            self.theta = self.theta.astype(X.dtype)
        score = np.zeros(2)
        learnt = csr_stream(
            X.data, X.indices, X.indptr, rows, codes, targets, sample_weight, label_smoothing, l2, l1, RATE, BAND,
            LIMIT, self.damping, self.n_features, self.theta, self.features, self.totals, score,
        )  # fmt: skip
        if learnt < (X.shape[0] if rows is None else len(rows)):
            raise FloatingPointError(
                f"the features of X are too large or too small for {X.dtype}: the logits of row "
                f"{learnt if rows is None else rows[learnt]} overflow; scale the features"
            )
        return float(score[0]), float(score[1])

    def begin_epoch(self, epoch, n_epochs=None):
        """Prepare for epoch 0, 1, ... of a fit: damp the steps, and forget a part of the past; O(d K).

        Gradients of early epochs were made at coefficients that are long gone. All sums are scaled by one factor, which
        keeps the coefficients and lengthens the steps to come. The share that is kept grows; where the number of epochs
        is known, all is kept over the last two.
        """
        self.damping = 0.0 if n_epochs == 1 else DAMPING
        if epoch == 0 or n_epochs in (1, 2):
            return
        share = epoch**2 / (epoch**2 + 4)
        if n_epochs is not None:
            share = min(1.0, max(share, (epoch / (n_epochs - 2)) ** 2))
        self.theta *= self.theta.dtype.type(share)
        self.features[:, 0] *= share
        self.totals[:2] *= share

    def coefficients(self, features=None):
        """Return the coefficients (K, p) as of now, the intercepts in the last column.

        All of them cost O(d K): compute them when they are asked for, not in each call. Those of some `features`, an
        index array, cost K numbers each.
        """
        j = slice(None) if features is None else features
        penalised = (np.arange(len(self.theta)) < self.n_features)[j]
        l2, l1 = (penalised * total for total in self.totals[:2])
        return coefficients_of(self.theta[j], self.features[j, 0], l2, l1).T.astype(self.theta.dtype, copy=False)

    def start_from(self, W, fitted_rows):
        """Begin at coefficients W (K, p) that were fitted to so many rows, and forget what the rows so far have taught.

        These rows tell the strengths, which grow like the root of their number. Features that have not come get the
        mean strength of the others.
        """
        strength = self.features[:, 0]
        strength *= np.sqrt(max(fitted_rows / max(self.totals[4], 1.0), 1.0))
        strength[strength == 0] = strength[strength > 0].mean() if strength.any() else 1.0
        self.totals[:2] = 0
        self.adopt(W)

    def adopt(self, W):
        """Go on from coefficients W (K, p), with the strengths that the rows so far have given; O(d K)."""
        penalised = (np.arange(len(self.theta)) < self.n_features)[:, None]
        l2, l1 = penalised * self.totals[0], penalised * self.totals[1]
        self.theta[...] = W.T * (self.features[:, :1] + l2) + np.sign(W.T) * l1

    def get_state(self):
        """Return a copy of what is kept, as a dict of arrays and numbers."""
        state = {"format": FORMAT, "n_features": self.n_features, "damping": self.damping}
        return state | {name: getattr(self, name).copy() for name in ("theta", "features", "totals")}

    def set_state(self, state):
        """Go on from what `get_state` returned, bit for bit."""
        if state["format"] != FORMAT:
            raise ValueError(f"the stream's state has format {state['format']}; this version reads {FORMAT}")
        self.n_features, self.damping = int(state["n_features"]), float(state["damping"])
        for name in ("theta", "features", "totals"):
            setattr(self, name, np.array(state[name], order="C"))

    __getstate__ = get_state
    __setstate__ = set_state
