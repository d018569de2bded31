def _todo(*args):
    raise NotImplementedError


OPERATORS = {
    "stacked_unit_linear": _todo,
    "stacked_unit_linear_backward": _todo,
}
