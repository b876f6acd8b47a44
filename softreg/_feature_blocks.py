"""Arrays like W that are computed a block of features at a time: float64 copies of W would be large where d is."""

BLOCK_NUMBERS = 2**18  # numbers of a block: 2 MB


def feature_blocks(objective, intercepts=True):
    """Yield slices of the columns of W, in order; that of the intercepts, which is apart, only if `intercepts`."""
    size = max(BLOCK_NUMBERS // objective.n_classes, 1)
    for start in range(0, objective.n_features, size):
        yield slice(start, min(start + size, objective.n_features))
    if intercepts and objective.fit_intercept:
        yield slice(objective.n_features, objective.n_features + 1)


class FeatureBlocks:
    """An array like W, of which `A[:, block]` is computed when it is asked for, and kept until the next block is.

    Parameters
    ----------
    compute : function (block) -> array (K, m), for a slice of m columns
    """

    def __init__(self, compute):
        self.compute, self.block, self.values = compute, None, None

    def __getitem__(self, index):
        _, block = index
        if block != self.block:
            self.block, self.values = block, self.compute(block)
        return self.values
