"""Ready-made networks: each bunit model stands beside the dense one it is compared with."""

from .builder import bunit_net
from .checkpoints import authors_state_dict, load_weights
from .cnn import bunit_cnn, cnn
from .efficientnet import bunit_efficientnet_b0, efficientnet_b0
from .lenet import bunit_lenet, lenet
from .mlp import bunit_mlp, mlp
from .mobilenet import bunit_mobilenet_v2, mobilenet_v2
from .registry import create_model, dense_counterpart, list_models, register_model
from .resnet import (
    bunit_resnet10,
    bunit_resnet18,
    bunit_resnet20,
    bunit_resnet20_256,
    bunit_resnet32,
    bunit_resnet34,
    bunit_resnet50,
    bunit_resnet56,
    bunit_resnet101,
    bunit_resnet110,
    resnet10,
    resnet18,
    resnet20,
    resnet20_256,
    resnet32,
    resnet34,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
)
from .shufflenet import bunit_shufflenet_v2, shufflenet_v2
from .vgg import bunit_vgg16, bunit_vgg16_bn, bunit_vgg19, vgg16, vgg16_bn, vgg19

__all__ = [
    "authors_state_dict",
    "bunit_cnn",
    "bunit_efficientnet_b0",
    "bunit_lenet",
    "bunit_mlp",
    "bunit_mobilenet_v2",
    "bunit_net",
    "bunit_resnet10",
    "bunit_resnet18",
    "bunit_resnet20",
    "bunit_resnet20_256",
    "bunit_resnet32",
    "bunit_resnet34",
    "bunit_resnet50",
    "bunit_resnet56",
    "bunit_resnet101",
    "bunit_resnet110",
    "bunit_shufflenet_v2",
    "bunit_vgg16",
    "bunit_vgg16_bn",
    "bunit_vgg19",
    "cnn",
    "create_model",
    "dense_counterpart",
    "efficientnet_b0",
    "lenet",
    "list_models",
    "load_weights",
    "mlp",
    "mobilenet_v2",
    "register_model",
    "resnet10",
    "resnet18",
    "resnet20",
    "resnet20_256",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "shufflenet_v2",
    "vgg16",
    "vgg16_bn",
    "vgg19",
]
