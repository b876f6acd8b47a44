"""ONNX: importing this module teaches skl2onnx to convert softreg's classifiers, alone and in pipelines.

It needs the extra ``onnx``: ``pip install "softreg[onnx]"``.

The graph computes in the dtype of its input. Declare a ``DoubleTensorType`` input where features are large numbers:
their products lose digits in float32. ONNX's ZipMap takes no doubles, so such an input needs ``{"zipmap": False}``. The
other options are those of skl2onnx's own linear classifiers: ``nocl``, ``output_class_labels`` and ``raw_scores``. Two
classes have the raw scores -z and z, where z is what ``decision_function`` returns.

Examples
--------
>>> from sklearn.datasets import load_iris
>>> from skl2onnx import to_onnx
>>> import softreg.onnx
>>> X, y = load_iris(return_X_y=True)
>>> model = softreg.SoftmaxRegression().fit(X, y)
>>> graph = to_onnx(model, X[:1], options={"zipmap": False})
>>> [output.name for output in graph.graph.output]
['label', 'probabilities']
"""

import numpy as np
from scipy.sparse import issparse

from softreg._cv import SoftmaxRegressionCV
from softreg._estimator import SoftmaxRegression

try:
    from skl2onnx import update_registered_converter
    from skl2onnx.algebra.onnx_ops import OnnxAdd, OnnxArgMax, OnnxCast, OnnxGather, OnnxMatMul, OnnxSoftmax
    from skl2onnx.common.data_types import DoubleTensorType, guess_proto_type
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
    from skl2onnx.common.utils_classifier import get_label_classes
    from skl2onnx.proto import TensorProto
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'softreg.onnx needs the package {error.name}; pip install "softreg[onnx]" brings it', name=error.name
    ) from error

__all__: list[str] = []  # the import is all there is to do

OPTIONS = {
    "zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True],
    "raw_scores": [True, False],
}  # fmt: skip


def convert(scope, operator, container):
    """Add the nodes of a fitted classifier: X W^T + b, its softmax (none for raw_scores), and the likeliest label."""
    model, opset = operator.raw_operator, {"op_version": container.target_opset}
    raw_scores = container.get_options(model, {"raw_scores": False})["raw_scores"]
    coef, intercept = model._weights()
    coef = coef.toarray() if issparse(coef) else coef
    if len(model.classes_) == 2:
        # The softmax of (-z/2, z/2) is the sigmoid of z, as in predict_proba. skl2onnx's raw scores are (-z, z).
        sides = np.array([-1.0, 1.0]) if raw_scores else np.array([-0.5, 0.5])
        coef, intercept = sides[:, None] * coef, sides * intercept
    (X,), (labels, scores) = operator.inputs, operator.outputs
    double = isinstance(X.type, DoubleTensorType)
    dtype, onnx_dtype = (np.float64, TensorProto.DOUBLE) if double else (np.float32, TensorProto.FLOAT)
    X = OnnxCast(X, to=onnx_dtype, **opset)  # for integers and booleans; floats pass
    logits = OnnxAdd(OnnxMatMul(X, coef.T.astype(dtype), **opset), intercept.astype(dtype), **opset)
    likeliest = OnnxArgMax(logits, axis=1, keepdims=0, **opset)
    classes = np.asarray(get_label_classes(scope, model))  # all integers or all strings: skl2onnx has checked that
    classes = classes.astype(str if isinstance(classes[0], str) else np.int64)
    OnnxGather(classes, likeliest, output_names=[labels.full_name], **opset).add_to(scope, container)
    P = logits if raw_scores else OnnxSoftmax(logits, axis=1, **opset)
    # skl2onnx takes scores for float32 where some columns of a pipeline are
    OnnxCast(P, to=guess_proto_type(scores.type), output_names=[scores.full_name], **opset).add_to(scope, container)


for estimator in (SoftmaxRegression, SoftmaxRegressionCV):
    update_registered_converter(
        estimator, f"Softreg{estimator.__name__}", calculate_linear_classifier_output_shapes, convert, options=OPTIONS
    )
