# Part of _fastrnn.pyx: many sequences, any subset of which takes a step together.


cdef class Sessions:
    """Stages that take a step of any subset of many sequences: this backend's `call.Sessions`."""

    cdef Stages stages
    cdef char **stores
    cdef size_t *work  # bytes that a step of so many sequences works in, or 0 where there was none yet
    cdef Py_ssize_t capacity
    cdef object scratch

    def __cinit__(self, Stages stages, stores, Py_ssize_t capacity, scratch):
        """stores: (capacity, L, 1, width) for each state of each stack of L layers. `scratch` is that of `Calls`."""
        cdef Stage *stage
        cdef Py_ssize_t i, k
        self.stages, self.capacity, self.scratch = stages, capacity, scratch
        self.stores = <char **> calloc(stages.states + 1, sizeof(char *))
        self.work = <size_t *> calloc(capacity + 1, sizeof(size_t))
        if self.stores == NULL or self.work == NULL:
            raise MemoryError("no room for a pool")
        for i in range(stages.n):
            stage = &stages.stages[i]
            for k in range(stage.states):
                self.stores[stage.first + k] = <char *> stages.keep(
                    stores[stage.first + k], capacity * stage.layers * width(stage.call, k), True)

    def __dealloc__(self):
        free(self.stores)
        free(self.work)

    def step(self, list slots, x, out=None):
        """Return y (n, N) of a step of n sequences, x (n, I), at distinct places that no other call uses."""
        cdef Stages stages = self.stages
        cdef Py_ssize_t n = len(slots), i, slot
        cdef Py_buffer x_view, y_view
        cdef Pins pins = Pins()
        cdef Room room
        if n > self.capacity:
            raise ValueError(f"{n} sequences of {self.capacity}")
        room = Room(stages, n, self.scratch, pins, self.work[n])
        self.work[n] = room.work
        for i in range(n):
            slot = slots[i]
            if not 0 <= slot < self.capacity:
                raise ValueError(f"no place {slot}")
            room.slots[i] = slot
        cdef int ndim = 2
        if stages.rows != NULL:
            ndim = stages.look_up(x, n, room.between) + 1
        else:
            stages.view(&x_view, "x", x, n, stages.I, 0)
            ndim = x_view.ndim
        try:
            if out is None:
                out = stages.empty((n, stages.N)[2 - ndim:], stages.dtype)
            stages.view(&y_view, "out", out, n, stages.N, PyBUF_WRITABLE)
            try:
                self.run(n, room, NULL if stages.rows != NULL else &x_view, &y_view)
            finally:
                PyBuffer_Release(&y_view)
        finally:
            if stages.rows == NULL:
                PyBuffer_Release(&x_view)
        self.scratch.give(room.memory)
        return out

    cdef int run(self, Py_ssize_t n, Room room, Py_buffer *x, Py_buffer *y) except -1:
        """x is NULL if it has been copied."""
        cdef Stages stages = self.stages
        if x != NULL and meet(span(x), span(y)):  # outputs are written while x is still read
            copy_rows(room.between, x, n, stages.I * stages.itemsize)
            x = NULL
        if x == NULL:
            take(&room.stages[0], room.between, stages.I)
        else:
            take(&room.stages[0], x.buf, row_of(x))
        give(&room.stages[stages.n - 1], y.buf, row_of(y))
        with nogil:
            if n > 0:
                self.move(room, n, True)
                stages.run(room.stages)
                self.move(room, n, False)
        return 0

    cdef void move(self, Room room, Py_ssize_t n, bint here) noexcept nogil:
        """Gather the sequences' states, or scatter them again; the state of a single sequence is used in place."""
        cdef Stage *stage
        cdef char *to = room.states
        cdef char *store
        cdef char *alone
        cdef Py_ssize_t bytes, i, k, row
        for i in range(self.stages.n):
            stage = &room.stages[i]
            for k in range(stage.states):
                bytes = stage.bytes[k]
                store = self.stores[stage.first + k] + stage.layer * bytes
                alone = store + room.slots[0] * stage.layers * bytes
                stage.call.init[k] = stage.call.final[k] = alone if n == 1 else to
                for row in range(n if n > 1 else 0):
                    if here:
                        memcpy(to + row * bytes, store + room.slots[row] * stage.layers * bytes, bytes)
                    else:
                        memcpy(store + room.slots[row] * stage.layers * bytes, to + row * bytes, bytes)
                to += padded(n * bytes)


cdef class Room:
    """The private data of one step of n sequences: other threads may run other steps."""

    cdef Stage *stages
    cdef frnn_call *calls
    cdef Py_ssize_t *slots
    cdef char *between
    cdef char *states
    cdef size_t work
    cdef object memory

    def __cinit__(self, Stages stages, Py_ssize_t n, scratch, Pins pins, size_t work):
        """work: what is known of the bytes that the stages work in, or 0."""
        cdef bint known = work > 0
        cdef size_t described = padded(stages.n * sizeof(Stage)), calls = padded(stages.n * sizeof(frnn_call))
        cdef size_t places = padded(n * sizeof(Py_ssize_t)), between = stages.between(n), states = 0
        cdef Stage *stage
        cdef Py_ssize_t i, k
        self.stages = <Stage *> calloc(1, described + calls)
        if self.stages == NULL:
            raise MemoryError("no room for a step")
        self.calls = <frnn_call *> (<char *> self.stages + described)
        memcpy(self.stages, stages.stages, stages.n * sizeof(Stage))
        for i in range(stages.n):
            stage = &self.stages[i]
            stage.dense.n = n
            if stage.call != NULL:
                self.calls[i] = stage.call[0]
                stage.call = &self.calls[i]
                stage.call.B = n
                if not known:
                    work = max(work, stages.core.forward_bytes(stage.call))
            for k in range(stage.states):
                states += padded(n * stage.bytes[k])
        self.work = work
        self.memory = scratch.take(places + between + states + work + FRNN_ALIGN)
        cdef char *start = <char *> aligned(pins, self.memory, places + between + states + work)
        self.slots = <Py_ssize_t *> start
        self.between = start + places
        self.states = self.between + between
        for i in range(stages.n):
            if self.stages[i].call != NULL:
                self.stages[i].call.work = self.states + states
        stages.connect(self.stages, n, self.between)

    def __dealloc__(self):
        free(self.stages)
