"""What operations do to the place of the batch: one rule for each kind of operation.

A rule takes an equation and the layouts of its operands, none of them mixed, and returns those of
its results. Whatever it does not know for certain is refused with `Unproven`; an operation without
a rule is allowed as long as no operand has rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from export.row_layouts import (
    UNIFORM,
    VARYING,
    Layout,
    Unproven,
    by_axis,
    has_row,
    joined,
    normal,
    varying,
)

Rule = Callable[[Any, list[Layout]], list[Layout]]

_ELEMENTWISE = (
    *(
        "abs",
        "neg",
        "sign",
        "floor",
        "ceil",
        "round",
        "is_finite",
        "not",
        "square",
        "sqrt",
        "rsqrt",
    ),
    *("cbrt", "exp", "exp2", "expm1", "log", "log1p", "logistic", "sin", "cos", "tan", "sinh"),
    *("cosh", "tanh", "asin", "acos", "atan", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv"),
    *("lgamma", "digamma", "polygamma", "zeta", "igamma", "igammac", "regularized_incomplete_beta"),
    *("bessel_i0e", "bessel_i1e", "real", "imag", "conj", "complex", "population_count", "clz"),
    *("add", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "atan2", "nextafter"),
    *("and", "or", "xor", "shift_left", "shift_right_logical", "shift_right_arithmetic", "add_any"),
    *("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to", "select_n", "clamp"),
    *("convert_element_type", "bitcast_convert_type", "reduce_precision", "copy", "name"),
    *("log2", "one_minus_square", "polynomial", "mulhi", "stop_gradient", "sharding_constraint"),
)
_AS_IT_LIES = ("optimization_barrier", "device_put", "squeeze")
_REDUCTIONS = (
    *("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or"),
    *("reduce_xor", "argmax", "argmin"),
)
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_WINDOWS = ("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min")
_SCATTERS = ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")


def follow(equation: Any, given: list[Layout]) -> list[Layout]:
    """Return the layouts of an equation's results, of one that has no others inside.

    Raises:
      Unproven: rows meet, or may do so.
    """
    rule = _RULES.get(equation.primitive.name)
    if rule is None or any(0 in _shape(v) for v in (*equation.invars, *equation.outvars)):
        if any(map(has_row, given)):
            raise Unproven("nothing is known of its rows" if rule is None else "an array is empty")
        return [varying(_shape(v)) for v in equation.outvars]
    try:
        return rule(equation, given)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Of a JAX that describes it otherwise.
        raise Unproven("it is not described as this exporter knows it") from error


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _axes(equation: Any, given: list[Layout], which: int = 0) -> list[Layout]:
    """Return the digits of each axis of one operand."""
    return by_axis(given[which], _shape(equation.invars[which]))


def _flat(axes: Sequence[Layout]) -> Layout:
    return normal(digit for axis in axes for digit in axis)


def _without_rows(axis: Layout, size: int, doing: str) -> Layout:
    """Return the digits of an axis along which values were moved or put together."""
    if has_row(axis):
        raise Unproven(doing)
    return varying([size])


def _elementwise(equation: Any, given: list[Layout]) -> list[Layout]:
    shape = _shape(equation.outvars[0])
    arrays = [
        _stretched(layout, _shape(variable), shape)
        for variable, layout in zip(equation.invars, given, strict=True)
        if _shape(variable) or not shape  # a number goes with any array
    ]
    found = joined(arrays)
    return [found for _ in equation.outvars]


def _stretched(layout: Layout, before: tuple[int, ...], shape: tuple[int, ...]) -> Layout:
    """Return the layout of an operand whose axes of size 1 go with any size."""
    if before == shape:
        return layout
    if len(before) != len(shape):
        raise Unproven("its operands differ in shape")
    axes = zip(by_axis(layout, before), before, shape, strict=True)
    return _flat([axis if old == new else ((new, UNIFORM),) for axis, old, new in axes])


def _as_it_lies(_equation: Any, given: list[Layout]) -> list[Layout]:
    return given


def _reshape(equation: Any, given: list[Layout]) -> list[Layout]:
    if equation.params.get("dimensions") is not None:
        raise Unproven("its axes are reordered")
    return given[:1]


def _broadcast(equation: Any, given: list[Layout]) -> list[Layout]:
    shape = _shape(equation.outvars[0])
    found: list[Layout] = [((size, UNIFORM),) for size in shape]
    axes, before = _axes(equation, given), _shape(equation.invars[0])
    for i, axis in enumerate(equation.params["broadcast_dimensions"]):
        if before[i] == shape[axis]:
            found[axis] = axes[i]
    return [_flat(found)]


def _transpose(equation: Any, given: list[Layout]) -> list[Layout]:
    axes = _axes(equation, given)
    return [_flat([axes[i] for i in equation.params["permutation"]])]


def _iota(equation: Any, _given: list[Layout]) -> list[Layout]:
    shape, along = _shape(equation.outvars[0]), equation.params["dimension"]
    return [normal((n, VARYING if i == along else UNIFORM) for i, n in enumerate(shape))]


def _reduce(equation: Any, given: list[Layout]) -> list[Layout]:
    params = equation.params
    over = params["axes"] if "axes" in params else params["dimensions"]
    shape = next(_shape(v) for v in equation.invars)
    arrays = [g for v, g in zip(equation.invars, given, strict=True) if _shape(v) == shape]
    axes = by_axis(joined(arrays), shape)
    if any(has_row(axes[axis]) for axis in over):
        raise Unproven("it reduces over the batch")
    kept = _flat([axis for i, axis in enumerate(axes) if i not in over])
    return [kept for _ in equation.outvars]


def _along(name: str, doing: str) -> Rule:
    """Return the rule of what moves values along the axes that a parameter names."""

    def rule(equation: Any, given: list[Layout]) -> list[Layout]:
        moved = equation.params[name]
        moved = {moved} if isinstance(moved, int) else set(moved)
        axes = by_axis(joined(given), _shape(equation.invars[0]))
        found = []
        for variable in equation.outvars:
            shape = _shape(variable)
            found.append(
                _flat(
                    [
                        _without_rows(axis, shape[i], doing) if i in moved else axis
                        for i, axis in enumerate(axes)
                    ]
                )
            )
        return found

    return rule


def _concatenate(equation: Any, given: list[Layout]) -> list[Layout]:
    along, shape = equation.params["dimension"], _shape(equation.outvars[0])
    if len(given) == 1:
        return given
    found = []
    for i in range(len(given)):
        axes = _axes(equation, given, i)
        axes[along] = _without_rows(axes[along], shape[along], "it moves rows along the batch")
        found.append(_flat(axes))
    return [joined(found)]


def _stack(equation: Any, given: list[Layout]) -> list[Layout]:
    axes = by_axis(joined(given), _shape(equation.invars[0]))
    axes.insert(equation.params["axis"], varying([len(given)]))
    return [_flat(axes)]


def _unstack(equation: Any, given: list[Layout]) -> list[Layout]:
    axes = _axes(equation, given)
    _without_rows(axes.pop(equation.params["axis"]), 1, "it takes the batch apart")
    return [_flat(axes) for _ in equation.outvars]


def _tile(equation: Any, given: list[Layout]) -> list[Layout]:
    axes = zip(_axes(equation, given), equation.params["reps"], strict=True)
    return [_flat([((times, UNIFORM), *axis) for axis, times in axes])]


def _resized(equation: Any, given: list[Layout]) -> list[Layout]:
    """Follow what keeps an axis whole or takes a part of it, or puts something around it."""
    axes = _axes(equation, given)
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    padding = equation.params.get("padding_config", ((0, 0, 0),) * len(after))
    found = []
    for axis, old, new, around in zip(axes, before, after, padding, strict=True):
        if old == new and not any(around):
            found.append(axis)
        else:
            found.append(_without_rows(axis, new, "it takes some rows, or puts others beside them"))
    return [_flat(found)]


def _dynamic_update_slice(equation: Any, given: list[Layout]) -> list[Layout]:
    whole, part = _axes(equation, given), _axes(equation, given, 1)
    old, new = _shape(equation.invars[0]), _shape(equation.invars[1])
    found = []
    for i, (size, put) in enumerate(zip(old, new, strict=True)):
        if size == put:
            found.append(joined([whole[i], part[i]]))
        else:
            _without_rows(part[i], put, "it puts rows at some place of the batch")
            found.append(_without_rows(whole[i], size, "it writes at one place of the batch"))
    return [_flat(found)]


def _dot_general(equation: Any, given: list[Layout]) -> list[Layout]:
    (contracted, together) = equation.params["dimension_numbers"]
    sides = [_axes(equation, given, 0), _axes(equation, given, 1)]
    for axes, over in zip(sides, contracted, strict=True):
        if any(has_row(axes[i]) for i in over):
            raise Unproven("it sums over the batch")
    found = [joined([sides[0][i], sides[1][j]]) for i, j in zip(*together, strict=True)]
    for axes, over, batch in zip(sides, contracted, together, strict=True):
        found += [axis for i, axis in enumerate(axes) if i not in over and i not in batch]
    return [_flat(found)]


def _convolution(equation: Any, given: list[Layout]) -> list[Layout]:
    params, shape = equation.params, _shape(equation.outvars[0])
    numbers = params["dimension_numbers"]
    if has_row(given[1]) or params["batch_group_count"] != 1:
        raise Unproven("its kernel depends on rows, or it groups them")
    axes = _axes(equation, given)
    found = [varying([size]) for size in shape]
    for i, axis in enumerate(axes):
        if i == numbers.lhs_spec[0]:
            found[numbers.out_spec[0]] = axis
        else:
            _without_rows(axis, 1, "it sums over the batch")
    return [_flat(found)]


def _reduce_window(equation: Any, given: list[Layout]) -> list[Layout]:
    params, shape = equation.params, _shape(equation.outvars[0])
    count = len(equation.outvars)
    axes = by_axis(joined(given[:count]), _shape(equation.invars[0]))
    found = []
    for i, axis in enumerate(axes):
        steps = [params[k][i] for k in ("window_dimensions", "window_strides", "base_dilation")]
        if steps == [1, 1, 1] and not any(params["padding"][i]):
            found.append(axis)
        else:
            found.append(_without_rows(axis, shape[i], "its windows go over the batch"))
    return [_flat(found) for _ in range(count)]


def _fft(equation: Any, given: list[Layout]) -> list[Layout]:
    axes, shape = _axes(equation, given), _shape(equation.outvars[0])
    begin = len(shape) - len(equation.params["fft_lengths"])
    return [
        _flat(
            [
                *axes[:begin],
                *(
                    _without_rows(axes[i], shape[i], "it goes over the batch")
                    for i in range(begin, len(shape))
                ),
            ]
        )
    ]


def _gather(equation: Any, given: list[Layout]) -> list[Layout]:
    params, shape = equation.params, _shape(equation.outvars[0])
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    source, where = _axes(equation, given), _axes(equation, given, 1)
    whole = _shape(equation.invars[0])
    _without_rows(where.pop(), 1, "rows choose how far they go")
    beside = dict(
        zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    picked = [joined([w, source[beside[i]]]) if i in beside else w for i, w in enumerate(where)]
    windows = []
    for i, axis in enumerate(source):
        if i in numbers.operand_batching_dims:
            continue
        if sizes[i] == whole[i] and i not in numbers.start_index_map:
            kept = axis
        else:
            kept = _without_rows(axis, sizes[i], "it takes rows by their place in the batch")
        if i not in numbers.collapsed_slice_dims:
            windows.append(kept)
    return [
        _flat(
            [
                windows.pop(0) if i in numbers.offset_dims else picked.pop(0)
                for i in range(len(shape))
            ]
        )
    ]


def _scatter(equation: Any, given: list[Layout]) -> list[Layout]:
    numbers = equation.params["dimension_numbers"]
    target, where, put = (_axes(equation, given, i) for i in range(3))
    whole, sizes = _shape(equation.invars[0]), _shape(equation.invars[2])
    _without_rows(where.pop(), 1, "rows choose how far they go")
    placed = [i for i in range(len(put)) if i not in numbers.update_window_dims]
    beside = dict(
        zip(numbers.scatter_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    found: dict[int, Layout] = {}
    for i, (at, index) in enumerate(zip(placed, where, strict=True)):
        both = joined([index, put[at]])
        if i in beside:
            found[beside[i]] = joined([both, target[beside[i]]])
        else:
            _without_rows(both, 1, "rows are written to one place")
    windows = list(numbers.update_window_dims)
    for i, axis in enumerate(target):
        if i in numbers.operand_batching_dims:
            continue
        window = None if i in numbers.inserted_window_dims else windows.pop(0)
        if (
            window is not None
            and sizes[window] == whole[i]
            and i not in numbers.scatter_dims_to_operand_dims
        ):
            found[i] = joined([axis, put[window]])
        else:
            if window is not None:
                _without_rows(put[window], 1, "it puts rows at some place of the batch")
            found[i] = _without_rows(axis, whole[i], "it writes at one place of the batch")
    return [_flat([found[i] for i in range(len(whole))])]


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_AS_IT_LIES, _as_it_lies),
    **dict.fromkeys((*_REDUCTIONS, "reduce"), _reduce),
    **dict.fromkeys(_CUMULATIVE, _along("axis", "it sums up along the batch")),
    **dict.fromkeys(_WINDOWS, _reduce_window),
    **dict.fromkeys(_SCATTERS, _scatter),
    "reshape": _reshape,
    **dict.fromkeys(("slice", "dynamic_slice", "pad"), _resized),
    "sort": _along("dimension", "it sorts the batch"),
    "top_k": _along("axis", "it compares the rows of the batch"),
    "rev": _along("dimensions", "it reverses the batch"),
    "split": _along("axis", "it splits the batch"),
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "iota": _iota,
    "concatenate": _concatenate,
    "dynamic_update_slice": _dynamic_update_slice,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "fft": _fft,
    "gather": _gather,
    "stack": _stack,
    "tile": _tile,
    "unstack": _unstack,
}
