# Part of _fastrnn.pyx: layers that process each row independently.


cdef dict functions = {
    "identity": FRNN_IDENTITY, "sigmoid": FRNN_SIGMOID, "tanh": FRNN_TANH, "relu": FRNN_RELU, "softmax": FRNN_SOFTMAX,
    "normalize": FRNN_NORMALIZE,
}


cdef int describe_dense(frnn_dense *d, Pins pins, const frnn_table *core, call) except -1:
    """Fill all but y and the work area from a `fastrnn.call.DenseCall`."""
    memset(d, 0, sizeof(frnn_dense))
    cdef Py_ssize_t size = call.x.itemsize
    d.I, d.n = call.x.shape[1], call.x.shape[0]
    d.N = d.I if call.W is None else call.W.shape[0]
    if d.N < 1 or d.I < 1 or max(d.n, d.N) * (1.0 + d.I) > 2.0 ** 48:
        raise ValueError(f"sizes {d.n, d.I, d.N}: expected no more than memory holds")
    d.function, d.threads = functions[call.function], min(<int> call.threads, cpus)
    d.W = pins.optional(call.W, d.N * d.I, size)
    d.b = pins.optional(call.b, d.N, size)
    d.epsilon = call.epsilon
    d.scale, d.shift = pins.optional(call.scale, d.N, size), pins.optional(call.shift, d.N, size)
    if call.packed is not None:
        d.packed = aligned(pins, call.packed, core.dense_packed_bytes(d))
    cdef frnn_array x
    cdef frnn_call step  # x is one step of n sequences
    step.T, step.B, step.ragged = 1, d.n, False
    pins.sequence(&x, call.x[None], &step, d.I, size)
    d.x, d.x_row = x.data, x.row
    return 0


def dense_packed_bytes(int isa, call):
    """The number of bytes that `pack_dense` fills."""
    cdef frnn_dense d
    cdef const frnn_table *core = table(isa, call.x.itemsize)
    describe_dense(&d, Pins(), core, call)
    return core.dense_packed_bytes(&d) + FRNN_ALIGN


def pack_dense(int isa, call, packed):
    """Pack W and b for `dense` and for steps; only the width of x matters."""
    cdef frnn_dense d
    cdef Pins pins = Pins()
    cdef const frnn_table *core = table(isa, call.x.itemsize)
    describe_dense(&d, pins, core, call)
    if d.W == NULL:
        raise ValueError("there is nothing to pack without W")
    cdef void *start = aligned(pins, packed, core.dense_packed_bytes(&d))
    with nogil:
        core.pack_dense(&d, start)


def dense(int isa, call, y, scratch):
    """Return y (n, N), C-contiguous, of a `fastrnn.call.DenseCall`; `scratch` is as for `Calls`."""
    cdef frnn_dense d
    cdef Pins pins = Pins()
    cdef const frnn_table *core = table(isa, call.x.itemsize)
    describe_dense(&d, pins, core, call)
    d.y, d.y_row = pins.flat(y, d.n * d.N, call.x.itemsize, True), d.N
    cdef size_t bytes = core.dense_bytes(&d)
    room = scratch.take(bytes + FRNN_ALIGN)
    d.work = aligned(pins, room, bytes)
    with nogil:
        core.dense(&d)
    scratch.give(room)
