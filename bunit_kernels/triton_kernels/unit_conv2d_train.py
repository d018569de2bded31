def _todo(*args):
    raise NotImplementedError


OPERATORS = {
    "stacked_unit_conv2d_train": _todo,
    "stacked_unit_conv2d_train_backward": _todo,
}
