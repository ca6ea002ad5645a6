"""User-defined cells for tests: together they have every feature that the built-in cells lack."""

from __future__ import annotations

from typing import Any

import fastrnn
from fastrnn.cells import (
    abs,
    clip,
    cos,
    exp,
    hard_sigmoid,
    hard_sigmoid_keras2,
    log,
    log1p,
    maximum,
    mean,
    minimum,
    relu,
    sigmoid,
    sin,
    softplus,
    sqrt,
    tanh,
    where,
)


@fastrnn.cell(gates="fn", states="h")
def minimal_gated_unit(x: Any, U: Any, s: Any) -> Any:
    """Two products, the second of a result of the first."""
    f = sigmoid(x.f + U.f @ s.h)
    return (1 - f) * s.h + f * tanh(x.n + U.n @ (f * s.h))


@fastrnn.cell(gates="rzn", states="h")
def gru(x: Any, U: Any, s: Any) -> Any:
    """The equations of the built-in GRU."""
    r = sigmoid(x.r + U.r @ s.h)
    z = sigmoid(x.z + U.z @ s.h)
    n = tanh(x.n + r * (U.n @ s.h))
    return (1 - z) * n + z * s.h


@fastrnn.cell(gates="fgo", states="hc", parameters=("pf", "po"))
def coupled_peephole_lstm(x: Any, U: Any, s: Any, p: Any) -> Any:
    f = sigmoid(x.f + U.f @ s.h + p.pf * s.c)
    c = f * s.c + (1 - f) * tanh(x.g + U.g @ s.h)
    return sigmoid(x.o + U.o @ s.h + p.po * c) * tanh(c), c


@fastrnn.cell(gates="ifgo", states="hc")
def clipped_relu_lstm(x: Any, U: Any, s: Any) -> Any:
    i = hard_sigmoid(x.i + U.i @ s.h)
    f = hard_sigmoid_keras2(x.f + U.f @ s.h)
    c = clip(f * s.c + i * relu(x.g + U.g @ s.h), -0.75, 0.75)
    return sigmoid(x.o + U.o @ s.h) * relu(c), c


@fastrnn.cell(gates="n", states="h", inputs=("keep",))
def zoneout(x: Any, U: Any, s: Any, e: Any) -> Any:
    return e.keep * s.h + (1 - e.keep) * tanh(x.n + U.n @ s.h)


@fastrnn.cell(gates="ifgo", states="hc", inputs=("mi", "mf", "mg", "mo"))
def recurrent_dropout(x: Any, U: Any, s: Any, e: Any) -> Any:
    """A mask for each gate: operands are functions of states and inputs."""
    i = sigmoid(x.i + U.i @ (s.h * e.mi))
    f = sigmoid(x.f + U.f @ (s.h * e.mf))
    g = tanh(x.g + U.g @ (s.h * e.mg))
    o = sigmoid(x.o + U.o @ (s.h * e.mo))
    c = f * s.c + i * g
    return o * tanh(c), c


@fastrnn.cell(gates="zh", states="h")
def min_gru(x: Any, U: Any, s: Any) -> Any:
    """No product with U."""
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * where(x.h >= 0, x.h + 0.5, sigmoid(x.h))


@fastrnn.cell(gates="n", states="h", parameters=("u",))
def ind_rnn(x: Any, U: Any, s: Any, p: Any) -> Any:
    return relu(x.n + p.u * s.h)


@fastrnn.cell(gates="n", states=("rate", "current"), parameters=("alpha",), inputs=("noise",))
def leaky_rates(x: Any, U: Any, s: Any, p: Any, e: Any) -> Any:
    """The operand is a function of a state other than the output."""
    v = (1 - p.alpha) * s.current + p.alpha * (x.n + U.n @ tanh(s.current) + e.noise)
    return tanh(v), v


@fastrnn.cell(gates="ifzo", states="hcnm")
def slstm(x: Any, U: Any, s: Any) -> Any:
    """Four states."""
    a = x.i + U.i @ s.h
    kept = s.m - softplus(-(x.f + U.f @ s.h))
    m = maximum(a, kept)
    i = exp(a - m)
    f = exp(kept - m)
    c = f * s.c + i * tanh(x.z + U.z @ s.h)
    n = f * s.n + i
    return sigmoid(x.o + U.o @ s.h) * c / maximum(n, 1), c, n, m


@fastrnn.cell(gates="abcde", states="hs")
def everything(x: Any, U: Any, s: Any) -> Any:
    """Every function, products out of order, a gate without x and one without U."""
    a = tanh(x.a + U.a @ s.h)
    d = sigmoid(U.d @ (a * s.s))
    b = sin(x.b) * cos(U.b @ s.s) + minimum(abs(a), d)
    h = tanh(U.e @ s.h) + log1p(a * a) / (2 + b) - 0.5 * log(1 + d) ** 2
    return h, -tanh(x.c) * s.s + sqrt(1 + d * d) ** -1


@fastrnn.cell(gates="auvw", states="hc", parameters=("q",), inputs=("keep", "drop"))
def in_turns(x: Any, U: Any, s: Any, p: Any, e: Any) -> Any:
    """A gate without a product, and two alternating operands, so no product's rows are contiguous."""
    first, last = tanh(x.u + U.u @ s.h), tanh(x.w + U.w @ s.h)
    mid = tanh(x.v + U.v @ s.c)
    return e.keep * s.h + (1 - e.keep) * (first * last + p.q * x.a * mid), e.drop * mid


@fastrnn.cell(gates="ng", states="hc", parameters=("w",), inputs=("keep",))
def normalised(x: Any, U: Any, s: Any, p: Any, e: Any) -> Any:
    """Means over the units of early and late values, and a product of their result."""
    v = x.n + U.n @ s.h
    d = v - mean(v)
    h = tanh(p.w * d / sqrt(mean(d * d) + 0.1))
    g = sigmoid(x.g + U.g @ (h - mean(h * e.keep)))
    c = g * s.c + (1 - g) * h * mean(s.c)
    return g * h + e.keep * mean(c * p.w), c


@fastrnn.cell(gates="fig", states="hc", inputs=("keep",))
def relay(x: Any, U: Any, s: Any, e: Any) -> Any:
    """The third product's phase reads a value that the second's phase computed from the first's."""
    f = sigmoid(x.f + U.f @ s.h)
    i = sigmoid(x.i + U.i @ (e.keep * s.h))
    c = tanh(f * s.c + i)
    return c * tanh(x.g + U.g @ (s.c * s.c)), c


ALL = (
    minimal_gated_unit,
    gru,
    coupled_peephole_lstm,
    clipped_relu_lstm,
    zoneout,
    recurrent_dropout,
    min_gru,
    ind_rnn,
    leaky_rates,
    slstm,
    everything,
    in_turns,
    normalised,
    relay,
)
