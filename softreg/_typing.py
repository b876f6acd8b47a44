"""Types that public signatures share."""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]

if TYPE_CHECKING:
    from scipy.sparse import sparray, spmatrix  # SciPy 1.10 does not name the first

    MatrixLike: TypeAlias = ArrayLike | sparray | spmatrix
else:
    MatrixLike = ArrayLike
