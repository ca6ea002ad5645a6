# Part of _fastrnn.pyx: stacked layers that take one step of any number of rows.


cdef struct Stage:
    frnn_call *call        # a recurrent layer's; or NULL:
    frnn_dense dense
    char *prepared         # of the call, or NULL
    Py_ssize_t N           # features that it gives
    Py_ssize_t layer, layers  # of the stack that it is part of
    int states, first      # those of the call, and the place of the first one among all
    Py_ssize_t bytes[FRNN_MAX_STATES]  # of a row of each


cdef struct Span:
    char *low
    char *high


cdef class Stages:
    """The stages that one step runs in turn."""

    cdef const frnn_table *core
    cdef Stage *stages
    cdef int n, states
    cdef Py_ssize_t I, N, itemsize, numbers
    cdef const char *rows  # those of the first layer's table, (numbers, I), or NULL
    cdef list held
    cdef object checks, empty, dtype, ndarray
    cdef char format, number  # of floats, and of the numbers of rows

    def __cinit__(self, int isa, parts, rows, scratch, checks, empty):
        """parts: at least one, from below: a list of `Calls`'s jobs for each stack of layers, a `call.DenseCall` for
        what works on each row by itself; of their x only the width matters. With `rows` x is numbers of those.

        `checks` has `stepped`, which makes an array fit or raises the error that says why it does not;
        `stepped_numbers`, which does so for numbers of rows; and `NUMBER`, their dtype. `empty(shape, dtype)` makes
        what is handed out.
        """
        cdef Py_ssize_t layers = sum([len(part) if isinstance(part, list) else 1 for part in parts])
        cdef Py_ssize_t i, k
        cdef Calls calls
        cdef Pins pins
        cdef Stage *stage
        x = parts[0][0][1].x if isinstance(parts[0], list) else parts[0].x
        self.checks, self.empty, self.dtype, self.ndarray = checks, empty, x.dtype, type(x)
        self.itemsize, self.format = self.dtype.itemsize, ord(self.dtype.char)
        self.I, self.held = x.shape[x.ndim - 1], []
        self.core = table(isa, self.itemsize)
        self.stages = <Stage *> calloc(layers, sizeof(Stage))
        if self.stages == NULL:
            raise MemoryError("no room for a stream")
        for part in parts:
            if not isinstance(part, list):
                stage = &self.stages[self.n]
                pins = Pins()
                self.held.append(pins)
                describe_dense(&stage.dense, pins, self.core, part)
                if part.x.itemsize != self.itemsize or (stage.dense.W != NULL and stage.dense.packed == NULL):
                    raise ValueError("expected layers of one dtype, their weights packed")
                self.append(stage.dense.I, stage.dense.N)
                continue
            calls = Calls(isa, part, scratch)
            if calls.core != self.core:
                raise TypeError("layers of one dtype go together")
            self.held.append(calls)
            for i in range(calls.n):
                stage = &self.stages[self.n]
                stage.call, stage.layer, stage.layers = &calls.calls[i], i, calls.n
                stage.states, stage.first = stage.call.cell.states, self.states
                for k in range(stage.states):
                    stage.bytes[k] = width(stage.call, k) * self.itemsize
                self.append(stage.call.I, width(stage.call, 0))
            self.states += stage.states
        self.N = self.stages[self.n - 1].N
        if rows is not None:
            self.numbers, self.number = rows.shape[0], ord(checks.NUMBER.char)
            self.rows = <const char *> self.keep(rows, self.numbers * self.I, False)

    cdef void *keep(self, array, Py_ssize_t elements, bint writable) except NULL:
        """The address of an array's memory, which this object keeps alive."""
        cdef Pins pins = Pins()
        cdef void *start = pins.flat(array, elements, self.itemsize, writable)
        self.held.append(pins)
        return start

    cdef int append(self, Py_ssize_t reads, Py_ssize_t N) except -1:
        if reads != (self.stages[self.n - 1].N if self.n else self.I):
            raise ValueError(f"stage {self.n}: {reads} features do not fit what is below")
        self.stages[self.n].N = N
        self.n += 1
        return 0

    def __dealloc__(self):
        free(self.stages)

    cdef size_t between(self, Py_ssize_t n) noexcept:
        """The number of bytes of n rows between stages, and of a copy of x."""
        cdef size_t total = padded(n * self.I * self.itemsize)
        for i in range(self.n - 1):
            total += padded(n * self.stages[i].N * self.itemsize)
        return total

    cdef void connect(self, Stage *stages, Py_ssize_t n, char *between) noexcept:
        """Make each stage read the output of the one before it, in memory after the copy of x."""
        between += padded(n * self.I * self.itemsize)
        for i in range(self.n - 1):
            give(&stages[i], between, stages[i].N)
            take(&stages[i + 1], between, stages[i].N)
            between += padded(n * stages[i].N * self.itemsize)

    cdef void run(self, Stage *stages) noexcept nogil:
        cdef Stage *stage
        for i in range(self.n):
            stage = &stages[i]
            if stage.call == NULL:
                self.core.dense(&stage.dense)
            elif stage.prepared != NULL:
                self.core.forward_prepared(stage.prepared)
            else:
                self.core.forward(stage.call, 1)

    cdef int look_up(self, array, Py_ssize_t n, char *to) except -1:
        """Copy n rows of the table by their numbers; return the number of dimensions of these."""
        cdef Py_buffer view
        cdef bint good = type(array) is self.ndarray
        if good:  # `stepped_numbers` would allocate
            try:
                PyObject_GetBuffer(array, &view, PyBUF_STRIDES | PyBUF_FORMAT)
            except (ValueError, BufferError):
                good = False
        if good:
            good = (view.ndim == 1 and view.shape[0] == n and view.format[0] == self.number and view.format[1] == 0
                    and <uintptr_t> view.buf % sizeof(Py_ssize_t) == 0)
            if good:
                good = self.copy_numbered(&view, n, to)
            PyBuffer_Release(&view)
        if good:
            return 1
        numbers = self.checks.stepped_numbers("x", array, n, self.numbers)
        PyObject_GetBuffer(numbers, &view, PyBUF_STRIDES)
        self.copy_numbered(&view, n, to)
        PyBuffer_Release(&view)
        return view.ndim

    cdef bint copy_numbered(self, const Py_buffer *view, Py_ssize_t n, char *to) noexcept:
        """Copy rows as long as their numbers are valid; return whether all are."""
        cdef Py_ssize_t bytes = self.I * self.itemsize, i, row
        for i in range(n):
            row = (<Py_ssize_t *> (<char *> view.buf + (i * view.strides[0] if view.ndim else 0)))[0]
            if not 0 <= row < self.numbers:
                return False
            memcpy(to + i * bytes, self.rows + row * bytes, bytes)
        return True

    cdef int view(self, Py_buffer *view, str name, array, Py_ssize_t n, Py_ssize_t features, int flags) except -1:
        """The buffer of (n, features), or of (features,) if n is 1, in contiguous rows."""
        cdef bint got = False
        if type(array) is self.ndarray:  # `stepped` handles subclasses such as masked arrays
            try:
                PyObject_GetBuffer(array, view, PyBUF_STRIDES | PyBUF_FORMAT)
                got = True
            except (ValueError, BufferError):
                pass  # `stepped` raises the error
        if got:
            if ((not flags or not view.readonly) and view.ndim <= 2
                    and readable(view, self.format, self.itemsize, features)
                    and (view.shape[0] == n if view.ndim == 2 else n == 1)
                    and (not flags or view.ndim == 1 or n == 1
                         or abs(view.strides[0]) >= features * self.itemsize)):
                return 0
            PyBuffer_Release(view)
        array = self.checks.stepped(name, array, (n, features), self.dtype, flags != 0)
        PyObject_GetBuffer(array, view, PyBUF_STRIDES | PyBUF_FORMAT | flags)
        return 0


cdef void take(Stage *stage, void *x, Py_ssize_t row) noexcept:
    if stage.call != NULL:
        stage.call.x.data, stage.call.x.row = x, row
    else:
        stage.dense.x, stage.dense.x_row = x, row


cdef void give(Stage *stage, void *y, Py_ssize_t row) noexcept:
    if stage.call != NULL:
        stage.call.out[0].data, stage.call.out[0].row = y, row
    else:
        stage.dense.y, stage.dense.y_row = y, row


cdef Py_ssize_t row_of(const Py_buffer *view) noexcept:
    """The row stride in elements."""
    return view.strides[0] // view.itemsize if view.ndim == 2 else 0


cdef void copy_rows(char *to, const Py_buffer *view, Py_ssize_t n, Py_ssize_t bytes) noexcept:
    cdef Py_ssize_t i
    for i in range(n):
        memcpy(to + i * bytes, <char *> view.buf + i * row_of(view) * view.itemsize, bytes)


cdef Span span(Py_buffer *view) noexcept:
    """The range of bytes of a view of rows."""
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
