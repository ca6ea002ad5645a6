# Part of _fastrnn.pyx: layers that take one step at a time.


cdef extern from "<stdatomic.h>" nogil:
    ctypedef struct atomic_flag:
        pass
    enum memory_order:
        memory_order_acquire
        memory_order_release
    bint atomic_flag_test_and_set_explicit(atomic_flag *, memory_order)
    void atomic_flag_clear_explicit(atomic_flag *, memory_order)


cdef class Stepper:
    """Stages that take one step of the same rows at a time, set up once: this backend's `call.Stepper`."""

    cdef Stages stages
    cdef char *prepared
    cdef char *between  # a copy of x first
    cdef void **own
    cdef void **used    # by the current step
    cdef Py_ssize_t B
    cdef atomic_flag busy  # initially clear: 0
    cdef object flat
    cdef tuple shapes, state_shapes

    def __cinit__(self, Stages stages, states, Py_ssize_t B, flat):
        """states: (L, B, width) for each state of each stack of L layers, which every step updates.

        `flat(state)` makes a state of a caller's a sequence of such arrays, and `stages.checks` has `stepped_state` and
        `stepped_reset`, which make them and the mask of a reset fit.
        """
        cdef const frnn_table *core = stages.core
        cdef Stage *stage
        cdef Py_ssize_t i, k
        self.stages, self.B, self.flat = stages, B, flat
        self.shapes = ((stages.N,), (B, stages.N))
        self.state_shapes = tuple([state.shape for state in states])
        self.prepared = <char *> calloc(stages.n, core.prepared_bytes)
        self.between = <char *> calloc(stages.between(B) + 1, 1)
        self.own = <void **> calloc(2 * stages.states + 1, sizeof(void *))
        if self.prepared == NULL or self.between == NULL or self.own == NULL:
            raise MemoryError("no room for a stream")
        self.used = self.own + stages.states
        stages.connect(stages.stages, B, self.between)
        for i in range(stages.n):
            stage = &stages.stages[i]
            stage.dense.n = B
            if stage.call == NULL:
                continue
            if stage.call.B != B or stage.call.T != 1:
                raise ValueError(f"expected calls of one step of {B} rows")
            for k in range(stage.states):
                self.own[stage.first + k] = stages.keep(
                    states[stage.first + k], stage.layers * B * width(stage.call, k), True)
            stage.prepared = self.prepared + i * core.prepared_bytes
            core.prepare(stage.call, stage.prepared)

    def __dealloc__(self):
        free(self.prepared)
        free(self.between)
        free(self.own)

    def step(self, x, out=None, state=None, reset=None):
        """See `fastrnn.layers.Stream`."""
        if atomic_flag_test_and_set_explicit(&self.busy, memory_order_acquire):
            raise RuntimeError("step: another thread is in this stream; give each thread its own")
        try:
            return self.stepped(x, out, state, reset)
        finally:
            atomic_flag_clear_explicit(&self.busy, memory_order_release)

    cdef stepped(self, x, out, state, reset):
        cdef Stages stages = self.stages
        cdef Py_buffer x_view, y_view
        cdef int ndim
        if stages.rows != NULL:
            ndim = stages.look_up(x, self.B, self.between) + 1
        else:
            stages.view(&x_view, "x", x, self.B, stages.I, 0)
            ndim = x_view.ndim
        try:
            if out is None:
                out = stages.empty(self.shapes[ndim - 1], stages.dtype)
            stages.view(&y_view, "out", out, self.B, stages.N, PyBUF_WRITABLE)
            try:
                self.run(NULL if stages.rows != NULL else &x_view, &y_view, state, reset)
            finally:
                PyBuffer_Release(&y_view)
        finally:
            if stages.rows == NULL:
                PyBuffer_Release(&x_view)
        return out

    cdef int run(self, Py_buffer *x, Py_buffer *y, state, reset) except -1:
        """x is NULL if it has been copied."""
        cdef Stages stages = self.stages
        cdef Stage *stage
        cdef Py_ssize_t bytes = stages.I * stages.itemsize, i, k
        cdef Pins pins
        cdef list held = None
        cdef const char *afresh = NULL
        memcpy(self.used, self.own, stages.states * sizeof(void *))
        if state is not None:
            arrays = stages.checks.stepped_state(self.flat(state), self.state_shapes, stages.dtype)
            held = []
            for i, array in enumerate(arrays):
                pins = Pins()
                self.used[i] = pins.flat(array, array.size, stages.itemsize, True)
                held.append(pins)
        if reset is not None:
            pins = Pins()
            afresh = <const char *> pins.flat(stages.checks.stepped_reset("reset", reset, self.B), self.B, 1)
        cdef Span read, kept, written = span(y)
        read.low = read.high = NULL
        if x != NULL:
            read = span(x)
        cdef bint overlap = meet(read, written)
        for i in range(stages.n):
            stage = &stages.stages[i]
            for k in range(stage.states):
                kept.low = <char *> self.used[stage.first + k] + stage.layer * self.B * stage.bytes[k]
                kept.high = kept.low + self.B * stage.bytes[k]
                stage.call.init[k] = stage.call.final[k] = kept.low
                overlap |= meet(read, kept)
                if meet(written, kept):
                    raise ValueError("out: shares memory with the state; give it an array of its own")
        if x == NULL or overlap:  # outputs are written while x is still read
            if x != NULL:
                copy_rows(self.between, x, self.B, bytes)
            take(&stages.stages[0], self.between, stages.I)
        else:
            take(&stages.stages[0], x.buf, row_of(x))
        give(&stages.stages[stages.n - 1], y.buf, row_of(y))
        with nogil:
            if afresh != NULL:
                self.zero(afresh)
            stages.run(stages.stages)
        return 0

    cdef void zero(self, const char *afresh) noexcept nogil:
        cdef Stage *stage
        cdef Py_ssize_t bytes, i, k, row
        for i in range(self.stages.n):
            stage = &self.stages.stages[i]
            for k in range(stage.states):
                bytes = stage.bytes[k]
                for row in range(self.B):
                    if afresh[row]:
                        memset(<char *> stage.call.final[k] + row * bytes, 0, bytes)
