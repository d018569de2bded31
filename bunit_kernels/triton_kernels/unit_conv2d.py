def _todo(*args):
    raise NotImplementedError


OPERATORS = {
    "stacked_unit_conv2d": _todo,
}
