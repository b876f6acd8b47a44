"""The softmax classifier on Dask: rows that lie on the workers of a cluster, or on a disk.

`SoftmaxRegression` has the parameters and the attributes of `softreg.SoftmaxRegression`. `stream` learns the chunks of
a collection one after the other, each once. ``pip install "softreg[dask]"`` brings what is needed.
"""

try:
    import dask.array  # noqa: F401
    import distributed  # noqa: F401
except ImportError as error:
    needed = "dask[array,dataframe] and distributed"
    raise ImportError(f'softreg.dask needs {needed}: pip install "softreg[dask]"') from error

from softreg.dask._estimator import SoftmaxRegression
from softreg.dask._stream import stream

__all__ = ["SoftmaxRegression", "stream"]
