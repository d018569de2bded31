"""Ready-made networks: each bunit model stands beside the dense one it is compared with."""

from .cnn import bunit_cnn, cnn
from .mlp import bunit_mlp, mlp
from .registry import create_model, dense_counterpart, list_models, register_model

__all__ = [
    "bunit_cnn",
    "bunit_mlp",
    "cnn",
    "create_model",
    "dense_counterpart",
    "list_models",
    "mlp",
    "register_model",
]
