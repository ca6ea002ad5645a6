# cython: language_level=3, freethreading_compatible=True, binding=False
"""The binding of the C core: it keeps memory safe and releases the GIL; everything for people stands above it.

The module is top-level, beside the package and not in it, so that `import fastrnn` finds it from a checkout too.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset


compiler = FRNN_COMPILER.decode()


def isas():
    """Names of the instruction sets that this build holds and this machine runs -> their indices, slowest first."""
    return {frnn_isas[i].name.decode(): i for i in range(frnn_isa_count) if frnn_isas[i].supported()}


cdef const frnn_table *table(int isa, Py_ssize_t itemsize) except NULL:
    if not 0 <= isa < frnn_isa_count or not frnn_isas[isa].supported():
        raise ValueError(f"instruction set {isa} does not run here")
    if itemsize not in (4, 8):
        raise TypeError(f"itemsize {itemsize}: expected 4 or 8")
    return frnn_isas[isa].f32 if itemsize == 4 else frnn_isas[isa].f64


def cells():
    """Names of the cells -> (index, gates, states)."""
    cdef const frnn_table *core = frnn_isas[0].f32
    cdef frnn_cell_info info
    found = {}
    for i in range(core.cells):
        info = core.cell_info(i)
        found[info.name.decode()] = (i, info.gates, info.states)
    return found


cdef enum:
    MAX_PINS = 32


cdef class Pins:
    """Buffers held for one call. Each `pin` checks that the buffer has the extent that C will use."""

    cdef Py_buffer views[MAX_PINS]
    cdef int count
    cdef Py_ssize_t itemsize

    def __dealloc__(self):
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])

    cdef Py_buffer *hold(self, array, int flags) except NULL:
        if self.count == MAX_PINS:
            raise RuntimeError("more buffers than a call can hold")
        PyObject_GetBuffer(array, &self.views[self.count], flags)
        self.count += 1
        return &self.views[self.count - 1]

    cdef void *flat(self, array, Py_ssize_t elements, Py_ssize_t itemsize, bint writable=False) except? NULL:
        """A C-contiguous array of that many elements; None is NULL."""
        if array is None:
            return NULL
        cdef Py_buffer *view = self.hold(array, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
        if view.len != elements * itemsize or view.itemsize != itemsize or <uintptr_t> view.buf % itemsize:
            raise ValueError(f"expected {elements} aligned elements of {itemsize} bytes")
        return view.buf

    cdef int sequence(self, frnn_array *to, array, Py_ssize_t T, Py_ssize_t B, Py_ssize_t n, Py_ssize_t itemsize,
                      bint writable=False) except -1:
        """A (T, B, n) array, its last axis contiguous; None is NULL."""
        to.data = NULL
        if array is None:
            return 0
        cdef Py_buffer *view = self.hold(array, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
        if view.ndim != 3 or view.shape[0] != T or view.shape[1] != B or view.shape[2] != n:
            raise ValueError(f"expected shape {(T, B, n)}")
        if view.itemsize != itemsize or (n > 1 and view.strides[2] != itemsize):
            raise ValueError(f"expected a contiguous last axis of {itemsize}-byte elements")
        if view.strides[0] % itemsize or view.strides[1] % itemsize or <uintptr_t> view.buf % itemsize:
            raise ValueError("expected aligned elements")
        to.data = view.buf
        to.step = view.strides[0] // itemsize
        to.row = view.strides[1] // itemsize
        return 0


cdef size_t padded(size_t bytes) noexcept:
    return (bytes + FRNN_ALIGN - 1) // FRNN_ALIGN * FRNN_ALIGN


cdef void *aligned(Pins pins, array, size_t bytes) except? NULL:
    """The first aligned address in a byte array that is at least FRNN_ALIGN longer than needed."""
    cdef uintptr_t start = <uintptr_t> pins.flat(array, len(array), 1, True)
    if len(array) < bytes + FRNN_ALIGN:
        raise ValueError(f"expected at least {bytes + FRNN_ALIGN} bytes")
    return <void *> padded(start)


cdef int describe(frnn_call *c, Pins pins, int cell, call) except -1:
    """Fill what forward and backward have in common from a `fastrnn.call.Call`."""
    memset(c, 0, sizeof(frnn_call))
    cdef const frnn_table *core = frnn_isas[0].f32
    if not 0 <= cell < core.cells:
        raise ValueError(f"no cell {cell}")
    cdef frnn_cell_info info = core.cell_info(cell)
    cdef Py_ssize_t size = call.x.itemsize, G = info.gates
    c.cell = cell
    c.T, c.B, c.I, c.H = call.sizes
    c.reverse = call.reverse
    c.training = call.training
    c.threads = call.threads
    c.checkpoint = call.checkpoint or 0
    c.follows = call.follows
    pins.itemsize = size
    pins.sequence(&c.x, call.x, c.T, c.B, c.I, size)
    c.W = pins.flat(call.W, G * c.H * c.I, size)
    c.U = pins.flat(call.U, G * c.H * c.H, size)
    c.b = pins.flat(call.b, G * c.H, size)
    c.b_rec = pins.flat(call.b_rec, G * c.H, size)
    c.p = pins.flat(call.p, 3 * c.H, size)
    if (c.p == NULL) == (info.name == b"lstm_peephole"):
        raise ValueError("p goes with a peephole cell, and with no other")
    for k in range(info.states):
        c.init[k] = pins.flat(call.init[k], c.B * c.H, size)
    c.lengths = <const int64_t *> pins.flat(call.lengths, c.B, 8)
    for b in range(c.B if c.lengths != NULL else 0):
        if not 0 <= c.lengths[b] <= c.T:
            raise ValueError(f"length {c.lengths[b]} is not in 0..{c.T}")
    if call.resets is not None:
        pins.sequence(&c.resets, call.resets[:, :, None], c.T, c.B, 1, 1)
    return info.states


def saved_bytes(int isa, int cell, call):
    """Bytes that a training forward of this call leaves for backward."""
    cdef frnn_call c
    cdef Pins pins = Pins()
    describe(&c, pins, cell, call)
    return table(isa, pins.itemsize).saved_bytes(&c) + FRNN_ALIGN


def packed_bytes(int isa, int cell, call):
    """Bytes that `pack` fills."""
    cdef frnn_call c
    cdef Pins pins = Pins()
    describe(&c, pins, cell, call)
    return table(isa, pins.itemsize).packed_bytes(&c) + FRNN_ALIGN


def pack(int isa, int cell, call, packed):
    """The parameters of `call` as its forward wants them; of x only the shape matters."""
    cdef frnn_call c
    cdef Pins pins = Pins()
    describe(&c, pins, cell, call)
    cdef const frnn_table *core = table(isa, pins.itemsize)
    cdef void *start = aligned(pins, packed, core.packed_bytes(&c))
    with nogil:
        core.pack(&c, start)


cdef size_t describe_forward(frnn_call *c, Pins pins, const frnn_table *core, job) except? 0:
    """Fill a call from (cell, call, y, final, c_all, saved); the bytes of its work area."""
    cell, call, y, final, c_all, saved = job
    cdef int states = describe(c, pins, cell, call)
    if call.packed is not None:
        c.packed = aligned(pins, call.packed, core.packed_bytes(c))
    pins.sequence(&c.y, y, c.T, c.B, c.H, pins.itemsize, True)
    pins.sequence(&c.c, c_all, c.T, c.B, c.H, pins.itemsize, True)
    for k in range(states):
        c.final[k] = pins.flat(final[k], c.B * c.H, pins.itemsize, True)
    if c.training:
        c.saved = aligned(pins, saved, core.saved_bytes(c))
    return core.forward_bytes(c)


cdef class Calls:
    """Forward calls described one by one, with what keeps their memory in place."""

    cdef const frnn_table *core
    cdef frnn_call *calls
    cdef int n
    cdef list held

    def __cinit__(self, int isa, jobs, scratch):
        """jobs: (cell, call, y, final, c_all, saved), all of one dtype; `scratch(n)` gives n bytes or more."""
        cdef Pins pins
        cdef size_t total = 0
        cdef char *start
        self.core = table(isa, jobs[0][1].x.itemsize)
        self.n = len(jobs)
        self.held = []
        self.calls = <frnn_call *> calloc(self.n, sizeof(frnn_call))
        if self.calls == NULL:
            raise MemoryError("no room to describe the calls")
        offsets = []
        for i in range(self.n):
            pins = Pins()
            self.held.append(pins)
            offsets.append(total)
            total += padded(describe_forward(&self.calls[i], pins, self.core, jobs[i]))
        pins = Pins()
        self.held.append(pins)
        start = <char *> aligned(pins, scratch(total + FRNN_ALIGN), total)
        for i in range(self.n):
            self.calls[i].work = start + <size_t> offsets[i]

    def __dealloc__(self):
        free(self.calls)


def forward(int isa, jobs, scratch):
    """Run jobs as `Calls` has them, each after those that it reads; saved is None unless training."""
    cdef Calls calls = Calls(isa, jobs, scratch)
    with nogil:
        calls.core.forward_all(calls.calls, calls.n)


def backward(int isa, int cell, call, scratch, saved, dy, dfinal, dc, grads):
    """Run the backward of `call` into grads, a `fastrnn.call.Gradients`."""
    cdef frnn_call c
    cdef Pins pins = Pins()
    cdef int states = describe(&c, pins, cell, call)
    cdef const frnn_table *core = table(isa, pins.itemsize)
    cdef Py_ssize_t size = pins.itemsize, rows = len(call.U)
    if not c.training:
        raise ValueError("backward needs a training call")
    c.saved = aligned(pins, saved, core.saved_bytes(&c))
    pins.sequence(&c.dy, dy, c.T, c.B, c.H, size)
    pins.sequence(&c.dc, dc, c.T, c.B, c.H, size)
    pins.sequence(&c.dx, grads.dx, c.T, c.B, c.I, size, True)
    c.dW = pins.flat(grads.dW, rows * c.I, size, True)
    c.dU = pins.flat(grads.dU, rows * c.H, size, True)
    c.db = pins.flat(grads.db, rows, size, True)
    c.db_rec = pins.flat(grads.db_rec, rows, size, True)
    c.dp = pins.flat(grads.dp, 3 * c.H, size, True)
    for k in range(states):
        c.dfinal[k] = pins.flat(dfinal[k], c.B * c.H, size)
        c.dinit[k] = pins.flat(grads.dinit[k], c.B * c.H, size, True)
    cdef size_t bytes = core.backward_bytes(&c)
    c.work = aligned(pins, scratch(bytes + FRNN_ALIGN), bytes)
    with nogil:
        core.backward(&c)


def activation(int isa, str name, x, y):
    """y = sigmoid(x) or tanh(x), elementwise, as the kernels compute it."""
    cdef Pins pins = Pins()
    cdef const frnn_table *core = table(isa, x.itemsize)
    cdef void *source = pins.flat(x, x.size, x.itemsize)
    cdef void *target = pins.flat(y, x.size, x.itemsize, True)
    if name == "sigmoid":
        core.sigmoid(x.size, source, target)
    elif name == "tanh":
        core.tanh(x.size, source, target)
    else:
        raise ValueError(f"no activation {name!r}")


cdef struct Span:
    char *low
    char *high


cdef class Stepper:
    """A stack of layers that takes one step at a time, laid out once: the `call.Stepper` of this backend."""

    cdef Calls stack
    cdef char *prepared
    cdef char *x_copy
    cdef void *own[FRNN_MAX_STATES]
    cdef Py_ssize_t B, I, H, L, itemsize
    cdef int states
    cdef bint busy
    cdef object check, empty, dtype
    cdef tuple shapes
    cdef char format

    def __cinit__(self, int isa, jobs, scratch, check, empty):
        """jobs: layer upon layer, one step each; x is the y below, the last y is None; init and final of layer l are
        part l of one array (L, B, H) for each state.

        `check(name, array, features, call, writable)` makes an array fit or raises the error that says why it does
        not; `empty(shape, dtype)` makes those that are handed out.
        """
        call = jobs[0][1]
        self.stack = Calls(isa, jobs, scratch)
        cdef const frnn_table *core = self.stack.core
        cdef frnn_call *calls = self.stack.calls
        cdef Py_ssize_t i
        self.L, self.B, self.I, self.H = self.stack.n, calls.B, calls.I, calls.H
        self.states = len(call.init)
        self.check, self.empty, self.dtype = check, empty, call.x.dtype
        self.shapes = ((self.H,), (self.B, self.H))
        self.itemsize, self.format = self.dtype.itemsize, ord(self.dtype.char)
        self.x_copy = <char *> calloc(self.B * self.I + 1, self.itemsize)
        self.prepared = <char *> calloc(self.L, core.prepared_bytes)
        if self.prepared == NULL or self.x_copy == NULL:
            raise MemoryError("no room for a stream")
        for i in range(self.L):
            core.prepare(&calls[i], self.prepared + i * core.prepared_bytes)
        for i in range(self.states):
            self.own[i] = calls[0].final[i]

    def __dealloc__(self):
        free(self.prepared)
        free(self.x_copy)

    def step(self, x, out=None, state=None):
        """See `fastrnn.layers.Stream`."""
        cdef Py_buffer x_view, y_view
        if self.busy:
            raise RuntimeError("step: another thread is in this stream; give each thread its own")
        self.busy = True
        try:
            self.view(&x_view, "x", x, self.I, 0)
            try:
                if out is None:
                    out = self.empty(self.shapes[x_view.ndim - 1], self.dtype)
                self.view(&y_view, "out", out, self.H, PyBUF_WRITABLE)
                try:
                    self.run(&x_view, &y_view, state)
                finally:
                    PyBuffer_Release(&y_view)
            finally:
                PyBuffer_Release(&x_view)
        finally:
            self.busy = False
        return out

    cdef int view(self, Py_buffer *view, str name, array, Py_ssize_t features, int flags) except -1:
        """The buffer of (B, features), or of (features,) if B is 1, in contiguous rows."""
        cdef bint got = False
        if PyObject_CheckBuffer(array):
            try:
                PyObject_GetBuffer(array, view, PyBUF_STRIDES | PyBUF_FORMAT)
                got = True
            except (ValueError, BufferError):
                pass  # `check` has the words
        if got:
            if ((not flags or not view.readonly) and view.format != NULL and view.format[0] == self.format and view.format[1] == 0
                    and 1 <= view.ndim <= 2 and view.shape[view.ndim - 1] == features
                    and (view.shape[0] == self.B if view.ndim == 2 else self.B == 1)
                    and (view.strides[view.ndim - 1] == self.itemsize or features == 1)
                    and view.strides[0] % self.itemsize == 0 and <uintptr_t> view.buf % self.itemsize == 0):
                return 0
            PyBuffer_Release(view)
        array = self.check(name, array, (self.B, features), self.dtype, flags != 0)
        PyObject_GetBuffer(array, view, PyBUF_STRIDES | PyBUF_FORMAT | flags)
        return 0

    cdef int run(self, Py_buffer *x, Py_buffer *y, state) except -1:
        cdef frnn_call *calls = self.stack.calls
        cdef const frnn_table *core = self.stack.core
        cdef Py_ssize_t i, x_row = x.strides[0] if x.ndim == 2 else 0
        cdef Py_ssize_t bytes = self.I * self.itemsize
        cdef void *states[FRNN_MAX_STATES]
        cdef Pins pins = None
        for i in range(self.states):
            states[i] = self.own[i]
        if state is not None:
            pins = Pins()
            if not hasattr(state, "__len__"):
                raise TypeError(f"state: expected {self.states} array(s), got {type(state).__name__}")
            if len(state) != self.states:
                raise ValueError(f"state: expected {self.states} array(s), got {len(state)}")
            for i in range(self.states):
                array = self.check("state", state[i], (self.L, self.B, self.H), self.dtype, True)
                states[i] = pins.flat(array, self.L * self.B * self.H, self.itemsize, True)
        calls[0].x.data, calls[0].x.row = x.buf, x_row // self.itemsize
        calls[self.L - 1].y.data = y.buf
        calls[self.L - 1].y.row = y.strides[0] // self.itemsize if y.ndim == 2 else 0
        cdef Span read = span(x), written = span(y), kept
        cdef bint overlap = meet(read, written)
        for i in range(self.states):
            kept.low = <char *> states[i]
            kept.high = kept.low + self.L * self.B * self.H * self.itemsize
            if meet(written, kept):
                raise ValueError("out: shares memory with the state; give it an array of its own")
            overlap |= meet(read, kept)
        if overlap:  # outputs are written while x is still read
            for i in range(self.B):
                memcpy(self.x_copy + i * bytes, <char *> x.buf + i * x_row, bytes)
            calls[0].x.data, calls[0].x.row = self.x_copy, self.I
        with nogil:
            for i in range(self.L):
                for k in range(self.states):
                    calls[i].init[k] = calls[i].final[k] = (
                        <char *> states[k] + i * self.B * self.H * self.itemsize
                    )
                core.forward_prepared(self.prepared + i * core.prepared_bytes)
        return 0


cdef Span span(Py_buffer *view) noexcept:
    """From the first byte of a view of rows to the one after its last."""
    cdef Span found
    found.low = <char *> view.buf
    found.high = found.low + view.shape[view.ndim - 1] * view.itemsize
    if view.ndim == 2 and view.strides[0] < 0:
        found.low += (view.shape[0] - 1) * view.strides[0]
    elif view.ndim == 2:
        found.high += (view.shape[0] - 1) * view.strides[0]
    return found


cdef bint meet(Span a, Span b) noexcept:
    return a.low < b.high and b.low < a.high
