"""Generation, sample by sample, from a stack of dilated causal convolutions (gated, residual, skip), compiled by numba.

The weights are packed once; a recording has a ring buffer for each layer of what it has read. All arrays are
contiguous, of float32 or float64; matrices are (in, out), so that the inner loops run along memory. Reordered sums
(fastmath) change a result by rounding only.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gencli.layers.distributions import FLOOR, DiscretisedLogisticMixture

# Samples for which a layer of at least this dilation reads the past in one go, so that its weights are fetched once for
# all of them: fetching weights that exceed the cache is the bottleneck.
_AHEAD = 8

_compile = njit(fastmath=True, cache=True, nogil=True, error_model="numpy")


class Kernel:
    """The packed weights of a network.

    Args:
        table: (L, C), the embedding of each level; for levels too many for a table (2, C): slope and offset, applied
            to a level as a number in [-1, 1).
        dilations: powers of two, one for each of D layers.
        hop: samples for which a frame of biases applies, if there are several.
        levels: their number; 256 have P = 256 logits, more a mixture of P / 3 logistic distributions.
        gates: (D, 2 C, 2 C), from the inputs `dilation` samples ago and now to both halves of the gate.
        skips, residuals: (D, C, S) and (D, C, C), from the output of a gate.
        skip_bias, residual_biases: (S,) and (D, C).
        head, head_bias, output, output_bias: (S, S), (S,), (S, P), (P,).
    """

    def __init__(self, *, table: Tensor, dilations: list[int], hop: int, levels: int, **weights: Tensor):
        weights["mixed"] = torch.cat([weights["skips"], weights["residuals"]], dim=2)
        names = ("gates", "mixed", "skip_bias", "residual_biases", "head", "head_bias", "output", "output_bias")
        self._weights = tuple(_packed(weights[name]) for name in names)
        self._table, self._levels, self._hop = _packed(table), levels, hop
        self._dilations = np.array(dilations)
        self._offsets = np.concatenate([[0], np.cumsum(dilations)])

    def recording(self, levels: Tensor, u: Tensor, biases: Tensor, known: int,
                  temperature: float) -> Callable[[int, int], None]:
        """Generate a recording: the function takes the positions (begin, end) to fill in, which follow each other.

        Args:
            levels: (T,) int64, filled in; the first `known` are given.
            u: (T,) float64 in (0, 1), the quantile of each level in its distribution.
            biases: (frames, D, 2 C), of the gates.
        """
        width = self._table.shape[1]
        rings = np.zeros((self._offsets[-1], width), self._table.dtype)
        ahead = np.zeros((len(self._dilations), _AHEAD, 2 * width), self._table.dtype)
        own = levels.numpy(), u.double().numpy(), _packed(biases)

        def run(begin: int, end: int) -> None:
            _generate(begin, end, known, temperature, self._levels, self._hop, rings, ahead, self._dilations,
                      self._offsets, self._table, *own, *self._weights)

        return run


def _packed(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()


@_compile
def _generate(begin, end, known, temperature, count, hop, rings, ahead, dilations, offsets, table, levels, u, biases,
              gates, mixed, skip_bias, residual_biases, head, head_bias, output, output_bias):
    width, sums = table.shape[1], len(skip_bias)
    h, z = np.empty(2 * width, table.dtype), np.empty(width, table.dtype)
    carried = np.empty(sums + width, table.dtype)  # the sum of the skip connections, then what the next layer reads
    total, x = carried[:sums], carried[sums:]
    hidden, parameters, chance = np.empty_like(head_bias), np.empty_like(output_bias), np.empty(len(output_bias))
    for t in range(begin, end):
        total[:] = skip_bias
        if t == 0:
            x[:] = 0
        elif count == len(table):
            x[:] = table[levels[t - 1]]
        else:
            value = table.dtype.type((2 * levels[t - 1] - count) / count)
            for i in range(width):
                x[i] = table[0, i] * value + table[1, i]
        frame = min(t // hop, len(biases) - 1)
        for layer in range(len(dilations)):
            dilation, step = dilations[layer], t % _AHEAD
            slot = offsets[layer] + t % dilation
            if dilation < _AHEAD:
                h[:] = 0
                _add_product(rings[slot], gates[layer, :width], h)
            else:
                if step == 0:
                    ahead[layer] = 0
                    _add_products(rings[slot : slot + _AHEAD], gates[layer, :width], ahead[layer])
                h[:] = ahead[layer, step]
            rings[slot] = x
            h += biases[frame, layer]
            _add_product(x, gates[layer, width:], h)
            _gate(h, z)
            x += residual_biases[layer]
            _add_product(z, mixed[layer], carried)
        if t >= known:
            hidden[:] = head_bias
            _add_product(np.maximum(total, 0), head, hidden)
            parameters[:] = output_bias
            _add_product(np.maximum(hidden, 0), output, parameters)
            if count == len(parameters):
                levels[t] = _categorical(parameters, u[t], temperature, chance)
            else:
                levels[t] = _mixture(parameters, u[t], temperature, count, chance)


@_compile
def _add_product(x, weight, out):
    """out += x @ weight, four rows at a time."""
    rows, columns = weight.shape
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(columns):
            out[j] += a * weight[i, j] + b * weight[i + 1, j] + c * weight[i + 2, j] + d * weight[i + 3, j]
    for i in range(whole, rows):
        for j in range(columns):
            out[j] += x[i] * weight[i, j]


@_compile
def _add_products(x, weight, out):
    """The same for several x."""
    rows, columns = weight.shape
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        for k in range(len(x)):
            a, b, c, d = x[k, i], x[k, i + 1], x[k, i + 2], x[k, i + 3]
            for j in range(columns):
                out[k, j] += a * weight[i, j] + b * weight[i + 1, j] + c * weight[i + 2, j] + d * weight[i + 3, j]
    for i in range(whole, rows):
        for k in range(len(x)):
            for j in range(columns):
                out[k, j] += x[k, i] * weight[i, j]


@_compile
def _gate(h, z):
    """tanh of the first half of h times the logistic function of the second, which is (1 + tanh(b / 2)) / 2."""
    width = len(z)
    if h.itemsize == 8:
        for i in range(width):
            z[i] = math.tanh(h[i]) / (1 + math.exp(-h[width + i]))
    else:
        half = h.dtype.type(0.5)
        for i in range(width):
            z[i] = _tanh(h[i]) * (half + half * _tanh(half * h[width + i]))


@_compile
def _tanh(x):
    """tanh in float32 as a rational function, which vectorises; exact to 4 units in the last place (as in Eigen)."""
    f = np.float32
    x = min(max(x, f(-7.90531110763549805)), f(7.90531110763549805))
    y = x * x
    p = f(-2.76076847742355e-16) * y + f(2.00018790482477e-13)
    p = p * y + f(-8.60467152213735e-11)
    p = p * y + f(5.12229709037114e-08)
    p = p * y + f(1.48572235717979e-05)
    p = p * y + f(6.37261928875436e-04)
    p = (p * y + f(4.89352455891786e-03)) * x
    q = f(1.19825839466702e-06) * y + f(1.18534705686654e-04)
    q = q * y + f(2.26843463243900e-03)
    q = q * y + f(4.89352518554385e-03)
    return p / q


@_compile
def _categorical(logits, u, temperature, chance):
    """As `gencli.layers.distributions.Categorical.from_uniform`."""
    count = len(logits)
    largest = logits.max()
    total = 0.0
    for i in range(count):
        chance[i] = math.exp((logits[i] - largest) / temperature)
        total += chance[i]
    scale, cumulative = (1 - count * FLOOR) / total, 0.0
    for i in range(count):
        cumulative += chance[i] * scale + FLOOR
        if cumulative > u:
            return i
    return count - 1


@_compile
def _mixture(parameters, u, temperature, count, weight):
    """As `gencli.layers.distributions.DiscretisedLogisticMixture.from_uniform`."""
    components = len(parameters) // 3
    largest = parameters[:components].max()
    total = 0.0
    for i in range(components):
        weight[i] = math.exp((parameters[i] - largest) / temperature)
        weight[components + i] = 1 / (temperature * math.exp(max(parameters[2 * components + i], _NARROWEST)))
        total += weight[i]
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        edge, cumulative = (2 * middle + 1 - count) / count, 0.0
        for i in range(components):
            cumulative += weight[i] / (1 + math.exp((parameters[components + i] - edge) * weight[components + i]))
        if cumulative / total * (1 - count * FLOOR) + (middle + 1) * FLOOR <= u:
            low = middle + 1
        else:
            high = middle
    return low


_NARROWEST = DiscretisedLogisticMixture.NARROWEST
