"""
Cross-validation on a Dask cluster
==================================

The estimator of one machine is cross-validated on the workers of a cluster, by joblib's backend.
"""

import joblib
import numpy as np
from distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from softreg import SoftmaxRegression, SoftmaxRegressionCV


def main():
    X, y = load_digits(return_X_y=True)
    alphas = np.logspace(-5, -1, 5)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        with joblib.parallel_backend("dask"):
            model = SoftmaxRegressionCV(alphas=alphas, cv=3, n_jobs=-1).fit(X, y)
            search = GridSearchCV(SoftmaxRegression(n_jobs=1), {"alpha": alphas}, cv=3, n_jobs=-1).fit(X, y)
    print(f"SoftmaxRegressionCV: alpha {model.alpha_:.0e}, mean accuracy {model.scores_.mean(axis=0).max():.1%}")
    print(f"GridSearchCV:        alpha {search.best_params_['alpha']:.0e}, mean accuracy {search.best_score_:.1%}")


if __name__ == "__main__":  # worker processes import this file
    main()
