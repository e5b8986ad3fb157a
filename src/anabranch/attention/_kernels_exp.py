"""The exponential as arithmetic, so that loops over it become vector instructions (a call of the C library's does not)."""

import math
import typing
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

_LN_2 = {  # its upper digits, which times any exponent here are exact, and the rest
    types.float32: (np.float32(355 / 512), np.float32(math.log(2) - 355 / 512)),
    types.float64: (float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")),
}
# type -> (unsigned twin, bits of the fraction, bias, degree of the series, least and greatest argument)
_FORM: dict[Any, tuple[Any, int, int, int, float, float]] = {
    types.float32: (np.int32, 23, 127, 7, -87.3, 88.3),
    types.float64: (np.int64, 52, 1023, 13, -708.0, 709.0),
}


def _exp(x: Any) -> Any:
    return np.exp(x)


@overload(_exp)
@typing.no_type_check
def _exp_by_series(x):
    """exp(k ln 2 + r) = 2^k times Taylor's series in r, \\|r\\| <= ln 2 / 2: the first term left out is below the precision."""
    if x not in _FORM:
        return None
    number = np.float32 if x == types.float32 else np.float64
    integer, fraction, bias, degree, least, greatest = _FORM[x]
    high, low = _LN_2[x]
    fraction, bias, least, greatest = integer(fraction), integer(bias), number(least), number(greatest)
    per_ln_2, half, one = number(1 / math.log(2)), number(0.5), number(1)
    c = tuple(number(1 / math.factorial(i)) for i in range(14))

    if degree == 7:

        def series(r):
            return ((((((c[7] * r + c[6]) * r + c[5]) * r + c[4]) * r + c[3]) * r + c[2]) * r + one) * r + one
    else:

        def series(r):
            top = (((((c[13] * r + c[12]) * r + c[11]) * r + c[10]) * r + c[9]) * r + c[8]) * r + c[7]
            return ((((((top * r + c[6]) * r + c[5]) * r + c[4]) * r + c[3]) * r + c[2]) * r + one) * r + one

    series = njit(fastmath={"contract"})(series)

    def formula(x):
        inside = min(max(x, least), greatest)
        k = np.floor(inside * per_ln_2 + half)
        r = (inside - k * high) - k * low
        return series(r) * integer((integer(k) + bias) << fraction).view(number)

    return formula


# Not "reassoc": it would put the two parts of ln 2 together again.
@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@typing.no_type_check
def exp(x):
    """``exp(x)`` of a float32 or float64 to 2 units in the last place, within the normal numbers: 0 and infinity do not occur."""
    return _exp(x)
