# Part of _fastrnn.pyx: layers that take one step at a time.


cdef extern from "<stdatomic.h>" nogil:
    ctypedef struct atomic_flag:
        pass
    enum memory_order:
        memory_order_acquire
        memory_order_release
    bint atomic_flag_test_and_set_explicit(atomic_flag *, memory_order)
    void atomic_flag_clear_explicit(atomic_flag *, memory_order)


cdef struct Span:
    char *low
    char *high


cdef class Stepper:
    """A stack of layers that takes one step at a time, laid out once: the `call.Stepper` of this backend."""

    cdef Calls stack
    cdef char *prepared
    cdef char *x_copy
    cdef void *own[FRNN_MAX_STATES]
    cdef Py_ssize_t L, B, I, itemsize
    cdef Py_ssize_t widths[FRNN_MAX_STATES]
    cdef int states
    cdef atomic_flag busy  # clear as it is made: 0
    cdef object check, check_state, empty, dtype, ndarray
    cdef tuple shapes, state_shapes
    cdef char format

    def __cinit__(self, int isa, jobs, scratch, check, check_state, empty):
        """jobs: layer upon layer, one step each; x is the y below, the last y is None; init and final of layer l are
        part l of one array (L, B, H) for each state.

        `check(name, array, shape, dtype, writable)` makes an array fit or raises the error that says why it does
        not, `check_state(state, shapes, dtype)` does so for a state of the caller's; `empty(shape, dtype)`
        makes those that are handed out.
        """
        call = jobs[0][1]
        self.stack = Calls(isa, jobs, scratch)
        cdef const frnn_table *core = self.stack.core
        cdef frnn_call *calls = self.stack.calls
        cdef Py_ssize_t i
        self.B, self.I, self.L = calls.B, calls.I, self.stack.n
        self.states = len(call.init)
        self.check, self.check_state, self.empty, self.dtype = check, check_state, empty, call.x.dtype
        for i in range(self.states):
            self.widths[i] = width(calls, i)
        self.shapes = ((self.widths[0],), (self.B, self.widths[0]))
        self.state_shapes = tuple([(self.L, self.B, self.widths[i]) for i in range(self.states)])
        self.ndarray = type(call.x)
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
        if atomic_flag_test_and_set_explicit(&self.busy, memory_order_acquire):
            raise RuntimeError("step: another thread is in this stream; give each thread its own")
        try:
            self.view(&x_view, "x", x, self.I, 0)
            try:
                if out is None:
                    out = self.empty(self.shapes[x_view.ndim - 1], self.dtype)
                self.view(&y_view, "out", out, self.widths[0], PyBUF_WRITABLE)
                try:
                    self.run(&x_view, &y_view, state)
                finally:
                    PyBuffer_Release(&y_view)
            finally:
                PyBuffer_Release(&x_view)
        finally:
            atomic_flag_clear_explicit(&self.busy, memory_order_release)
        return out

    cdef int view(self, Py_buffer *view, str name, array, Py_ssize_t features, int flags) except -1:
        """The buffer of (B, features), or of (features,) if B is 1, in contiguous rows."""
        cdef bint got = False
        if type(array) is self.ndarray:  # of a subclass, a masked array say, `check` knows more
            try:
                PyObject_GetBuffer(array, view, PyBUF_STRIDES | PyBUF_FORMAT)
                got = True
            except (ValueError, BufferError):
                pass  # `check` has the words
        if got:
            if ((not flags or not view.readonly) and view.ndim <= 2
                    and readable(view, self.format, self.itemsize, features)
                    and (view.shape[0] == self.B if view.ndim == 2 else self.B == 1)
                    and (not flags or view.ndim == 1 or self.B == 1
                         or abs(view.strides[0]) >= features * self.itemsize)):
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
            for i, array in enumerate(self.check_state(state, self.state_shapes, self.dtype)):
                states[i] = pins.flat(array, self.L * self.B * self.widths[i], self.itemsize, True)
        calls[0].x.data, calls[0].x.row = x.buf, x_row // self.itemsize
        calls[self.L - 1].out[0].data = y.buf
        calls[self.L - 1].out[0].row = y.strides[0] // self.itemsize if y.ndim == 2 else 0
        cdef Span read = span(x), written = span(y), kept
        cdef bint overlap = meet(read, written)
        for i in range(self.states):
            kept.low = <char *> states[i]
            kept.high = kept.low + self.L * self.B * self.widths[i] * self.itemsize
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
                        <char *> states[k] + i * self.B * self.widths[k] * self.itemsize
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
