# Part of _fastrnn.pyx: a stack of layers for inputs of one shape.


cdef class Prepared:
    """A stack of layers for inputs of one shape, set up once: this backend's `call.Prepared`."""

    cdef Calls stack
    cdef Py_ssize_t L, T, B, I, itemsize, x_ndim
    cdef Py_ssize_t widths[FRNN_MAX_STATES]
    cdef size_t between
    cdef int states
    cdef bint batch_first, every_step
    cdef object scratch, empty, dtype, ndarray
    cdef tuple y_shape, state_shapes
    cdef char format

    def __cinit__(self, int isa, jobs, scratch, empty, x_shape, bint batch_first, bint every_step):
        """jobs: layer upon layer, their x, y, init and final of the right shapes and never used.

        `scratch` is that of `Calls`, `empty(shape, dtype)` makes what is handed out, `x_shape` is that of the caller's
        x: (T, I), or (B, T, I) if `batch_first`, or (T, B, I).
        """
        call = jobs[0][1]
        self.stack = Calls(isa, jobs, scratch)
        cdef const frnn_call *calls = self.stack.calls
        self.T, self.B, self.I, self.L = calls.T, calls.B, calls.I, self.stack.n
        self.states, self.dtype, self.ndarray = len(call.init), call.x.dtype, type(call.x)
        self.itemsize, self.format = self.dtype.itemsize, ord(self.dtype.char)
        self.scratch, self.empty, self.every_step = scratch, empty, every_step
        self.x_ndim, self.batch_first = len(x_shape), batch_first
        cdef Py_ssize_t k
        for k in range(self.states):
            self.widths[k] = width(calls, k)
        self.y_shape = (*x_shape[:-1], self.widths[0])
        batch = (self.B,) if self.x_ndim == 3 else ()
        self.state_shapes = tuple([(self.L, *batch, self.widths[k]) for k in range(self.states)])
        self.between = padded(self.T * self.B * self.widths[0] * self.itemsize)
        scratch.give(self.stack.room)
        self.stack.room = None

    def __call__(self, x, state=None):
        """Return y and a tuple of final states, or None if x or the initial states do not have the expected form."""
        cdef Py_buffer x_view
        cdef Pins pins = Pins()
        cdef void *init[FRNN_MAX_STATES]
        cdef void *final[FRNN_MAX_STATES]
        cdef Py_ssize_t rows = self.L * self.B, k
        if type(x) is not self.ndarray or not self.fits(x, &x_view):
            return None
        try:
            for k in range(self.states):
                init[k] = NULL
                if state is not None:
                    if type(state[k]) is not self.ndarray or not self.is_state(state[k], self.state_shapes[k]):
                        return None
                    init[k] = pins.flat(state[k], rows * self.widths[k], self.itemsize)
            y = self.empty(self.y_shape, self.dtype) if self.every_step else None
            last = tuple([self.empty(shape, self.dtype) for shape in self.state_shapes])
            for k in range(self.states):
                final[k] = pins.flat(last[k], rows * self.widths[k], self.itemsize, True)
            self.run(pins, &x_view,
                     NULL if y is None else pins.flat(y, self.T * self.B * self.widths[0], self.itemsize, True),
                     init, final)
        finally:
            PyBuffer_Release(&x_view)
        return (last[0][self.L - 1].copy() if y is None else y), last

    cdef bint fits(self, x, Py_buffer *view) except *:
        """Whether the kernels can read x in place; only then is the view held."""
        try:
            PyObject_GetBuffer(x, view, PyBUF_STRIDES | PyBUF_FORMAT)
        except (ValueError, BufferError):
            return False  # a dtype without a buffer: the general path raises the error
        cdef int steps = 1 if self.batch_first else 0
        cdef bint good = view.ndim == self.x_ndim and readable(view, self.format, self.itemsize, self.I)
        good = good and view.shape[steps] == self.T and (view.ndim == 2 or view.shape[1 - steps] == self.B)
        if not good:
            PyBuffer_Release(view)
        return good

    cdef bint is_state(self, array, tuple shape) except *:
        flags = array.flags
        return array.shape == shape and array.dtype == self.dtype and flags.c_contiguous and flags.aligned

    cdef int run(self, Pins pins, Py_buffer *x, void *y, void **init, void **final) except -1:
        """Run on its own copy of the calls, work areas and inner outputs, because other threads may run it, too."""
        cdef size_t described = padded(self.L * sizeof(frnn_call)), bytes = described + (self.L - 1) * self.between
        room = self.scratch.take(bytes + self.stack.total + FRNN_ALIGN)
        cdef char *start = <char *> aligned(pins, room, bytes + self.stack.total)
        cdef frnn_call *calls = <frnn_call *> start
        cdef const frnn_table *core = self.stack.core
        cdef const frnn_call *first = self.stack.calls
        cdef Py_ssize_t P = self.widths[0]
        cdef frnn_stop stop
        cdef int steps = 1 if self.batch_first else 0
        cdef frnn_array out
        cdef Py_ssize_t i, k
        memset(&stop, 0, sizeof(frnn_stop))
        stop.should_stop = signalled
        memcpy(calls, first, self.L * sizeof(frnn_call))
        for i in range(self.L):
            calls[i].stop = &stop
            calls[i].work = start + bytes + (<char *> first[i].work - <char *> first[0].work)
            out.data = start + described + i * self.between
            out.step, out.row = self.B * P, P
            if i == self.L - 1:
                out.data = y
                if self.batch_first:
                    out.step, out.row = P, self.T * P
            calls[i].out[0] = out
            if i:
                calls[i].x = calls[i - 1].out[0]
            for k in range(self.states):
                if init[k] != NULL:
                    calls[i].init[k] = <char *> init[k] + i * self.B * self.widths[k] * self.itemsize
                calls[i].final[k] = <char *> final[k] + i * self.B * self.widths[k] * self.itemsize
        calls[0].x.data, calls[0].x.step = x.buf, x.strides[steps] // self.itemsize
        calls[0].x.row = x.strides[1 - steps] // self.itemsize if x.ndim == 3 else 0
        with nogil:
            core.forward(calls, self.L)
        if stop.ended:
            return -1  # the handler has set the error
        self.scratch.give(room)
        return 0
