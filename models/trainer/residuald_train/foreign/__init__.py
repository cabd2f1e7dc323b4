"""Bundles of models that were not trained here: any ONNX graph, and estimators of scikit-learn and PyOD.

`bundle` is the whole from top to bottom. `model` reads and checks the foreign graph, `columns` says how features become
its input, `tables` and `images` build the scorer graph around it with `graph`, `direction` finds out which way a score
points, `schedule` is that of a denoiser, `proof` tests the result, and `records` reads the normal records. `estimators`
converts fitted objects to ONNX.
"""

from .bundle import wrap
from .columns import Column
from .estimators import from_onnx, from_pyod, from_sklearn

__all__ = ["Column", "from_onnx", "from_pyod", "from_sklearn", "wrap"]
