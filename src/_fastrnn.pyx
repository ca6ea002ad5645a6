# cython: language_level=3, freethreading_compatible=True, binding=False
"""The binding of the C core: it keeps memory safe and releases the GIL; the user-facing checks are in Python.

The module is top-level, beside the package and not in it, so that `import fastrnn` finds it from a checkout too.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset


compiler = FRNN_COMPILER.decode()
headers = frnn_headers.decode()
int8_headers = frnn_int8_headers.decode()

cdef int cpus = 1


def set_cpus(int n):
    """How many CPUs this process may use at once, which bounds the threads of a call."""
    global cpus
    if n < 1:
        raise ValueError(f"cpus: expected at least 1, got {n}")
    cpus = n


def isas():
    """Instruction sets of this build that this machine supports: names -> indices, slowest first."""
    return {frnn_isas[i].name.decode(): i for i in range(frnn_isa_count) if frnn_isas[i].supported()}


def set_backoff(int when):
    """Set whether threads that other work keeps from the CPUs leave a call, and the next ones for a while, to a single
    thread: 1 where that pays, the default; 0 never; 2 at every barrier, for tests."""
    frnn_team_set_backoff(when)


cdef const frnn_table *table(int isa, Py_ssize_t itemsize) except NULL:
    if not 0 <= isa < frnn_isa_count or not frnn_isas[isa].supported():
        raise ValueError(f"instruction set {isa} does not run here")
    if itemsize not in (4, 8):
        raise TypeError(f"itemsize {itemsize}: expected 4 or 8")
    return frnn_isas[isa].f32 if itemsize == 4 else frnn_isas[isa].f64


def cells():
    """Digests of the cells that are compiled in -> (index, gates, states)."""
    cdef const frnn_table *core = frnn_isas[0].f32
    return {core.cell[i].digest.decode(): (i, core.cell[i].gates, core.cell[i].states) for i in range(core.cells)}


def vector(int isa):
    """An instruction set's bytes in a vector, and whether its multiply-adds round once."""
    table(isa, 4)
    return frnn_isas[isa].vector[0], bool(frnn_isas[isa].vector[1])


cdef class Compiled:
    """A cell that was compiled at run time, for one dtype and instruction set."""

    cdef frnn_cell cell
    cdef int isa
    cdef bint unfused
    cdef Py_ssize_t itemsize
    cdef object code, forever
    cdef readonly int64_t key

    def __cinit__(self, int isa, Py_ssize_t itemsize, bint unfused, dict shape, forward, backward, code):
        """shape: frnn_cell's numbers by name; the addresses of its functions, one a phase; `code` owns them, and has
        a `key`; unfused: whether it has no fused multiply-adds."""
        cdef int q, g
        table(isa, itemsize)
        self.isa, self.itemsize, self.unfused, self.code, self.key = isa, itemsize, unfused, code, code.key
        cdef frnn_cell *cell = &self.cell
        cell.name, cell.digest = b"compiled", b""
        cell.gates, cell.states, cell.parameters = shape["gates"], shape["states"], shape["parameters"]
        cell.inputs, cell.phases, cell.split = shape["inputs"], shape["phases"], shape["split"]
        cell.carries_h, cell.kept, cell.pending = shape["carries_h"], shape["kept"], shape["pending"]
        cell.kept_same, cell.scans = shape["kept_same"], shape["scans"]
        if not (1 <= cell.gates <= FRNN_MAX_GATES and 1 <= cell.states <= FRNN_MAX_STATES
                and 1 <= cell.phases <= FRNN_MAX_PHASES and cell.inputs <= FRNN_MAX_INPUTS):
            raise ValueError(f"no room for a cell of {shape}")
        for q in range(cell.phases):
            cell.phase_gates[q], cell.operand[q] = shape["phase_gates"][q], shape["operand"][q]
            cell.phase_means[q] = shape["phase_means"][q]
            cell.forward[q] = <void (*)(const ForwardTile *) noexcept nogil> <uintptr_t> forward[q]
            cell.backward[q] = <void (*)(const BackwardTile *) noexcept nogil> <uintptr_t> backward[q]
        for g in range(cell.gates):
            cell.added[g] = shape["added"][g]

    def known_to_xla(self):
        """Register the cell for XLA programs by its key, for the life of the process."""
        self.forever = self
        if not frnn_xla_add_cell(self.key, &self.cell):
            raise MemoryError("too many cells for one process's XLA programs")


cdef const frnn_cell *found_cell(int isa, Py_ssize_t itemsize, bint unfused, which) except NULL:
    """Return a built-in cell by its index, or one that was compiled for this dtype and instruction set; for int8
    weights one without fused multiply-adds."""
    cdef const frnn_table *core = table(isa, itemsize)
    cdef Compiled compiled
    if isinstance(which, Compiled):
        compiled = which
        if compiled.isa != isa or compiled.itemsize != itemsize or compiled.unfused != unfused:
            raise ValueError("the cell was compiled for another dtype, instruction set or weight_dtype")
        return &compiled.cell
    if not 0 <= which < core.cells:
        raise ValueError(f"no cell {which}")
    return core.unfused[<int> which] if unfused else core.cell[<int> which]


cdef int products_of(const frnn_cell *cell) noexcept:
    cdef int q, n = 0
    for q in range(cell.phases):
        n += cell.phase_gates[q]
    return n


cdef bint projects(const frnn_cell *cell) noexcept:
    """Whether the first state may be projected: only the product with U in the first phase reads it."""
    return cell.phase_gates[0] > 0 and products_of(cell) == cell.phase_gates[0] and not cell.carries_h


cdef Py_ssize_t width(const frnn_call *c, Py_ssize_t state) noexcept nogil:
    """Units of a state outside the cell, after a projection."""
    return c.P if state == 0 and c.P else c.H


cdef Py_ssize_t columns(const frnn_call *c) noexcept:
    """Of U and dU."""
    return c.D if c.D else width(c, 0)


cdef enum:
    MAX_PINS = 64


cdef class Pins:
    """Buffers held for one call. Each `pin` checks that a buffer is as large as C expects."""

    cdef Py_buffer views[MAX_PINS]
    cdef int count
    cdef Py_ssize_t itemsize
    cdef Py_ssize_t rows  # of a ragged call's sequences, all steps together
    cdef object held  # the cell, which its call points to

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
        """A C-contiguous array of that many elements."""
        cdef Py_buffer *view = self.hold(array, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
        if view.len != elements * itemsize or view.itemsize != itemsize or <uintptr_t> view.buf % itemsize:
            raise ValueError(f"expected {elements} aligned elements of {itemsize} bytes")
        return view.buf

    cdef void *optional(self, array, Py_ssize_t elements, Py_ssize_t itemsize, bint writable=False) except? NULL:
        """The same; None is NULL."""
        return NULL if array is None else self.flat(array, elements, itemsize, writable)

    cdef int sequence(self, frnn_array *to, array, const frnn_call *c, Py_ssize_t n, Py_ssize_t itemsize,
                      bint writable=False) except -1:
        """A (T, B, n) array of a call, (rows, n) if it is ragged; its last axis contiguous; None is NULL."""
        to.data = NULL
        if array is None:
            return 0
        cdef Py_buffer *view = self.hold(array, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
        cdef Py_ssize_t last = 1 if c.ragged else 2
        cdef bint fits = view.ndim == last + 1 and view.shape[last] == n
        if fits and c.ragged:
            fits = view.shape[0] == self.rows
        elif fits:
            fits = view.shape[0] == c.T and view.shape[1] == c.B
        if not fits:
            raise ValueError(f"expected shape ({self.rows if c.ragged else f'{c.T}, {c.B}'}, {n})")
        if view.itemsize != itemsize or (n > 1 and view.strides[last] != itemsize):
            raise ValueError(f"expected a contiguous last axis of {itemsize}-byte elements")
        if view.strides[0] % itemsize or view.strides[last - 1] % itemsize or <uintptr_t> view.buf % itemsize:
            raise ValueError("expected aligned elements")
        to.data = view.buf
        to.step = view.strides[0] // itemsize
        to.row = view.strides[last - 1] // itemsize
        return 0


cdef bint readable(const Py_buffer *view, char format, Py_ssize_t itemsize, Py_ssize_t features) noexcept:
    """Whether the kernels can read a view in place: of that format, in contiguous, aligned rows of so many features."""
    cdef Py_ssize_t last = view.ndim - 1, axis
    if view.ndim < 1 or view.format == NULL or view.format[0] != format or view.format[1] != 0:
        return False
    if view.shape[last] != features or <uintptr_t> view.buf % itemsize:
        return False
    for axis in range(last):
        if view.strides[axis] % itemsize:
            return False
    return view.strides[last] == itemsize or features == 1


cdef enum:
    SAMPLES = 16  # as in fastrnn/unchanged.py


cdef uint64_t fingerprint(const Py_buffer *view) noexcept:
    cdef Py_ssize_t n = view.len // view.itemsize, i, place, axis
    cdef Py_ssize_t step = (n + SAMPLES - 1) // SAMPLES
    cdef bint whole = True  # no gaps: places need no division
    for axis in range(view.ndim - 1):
        whole &= view.strides[axis] == view.shape[axis + 1] * view.strides[axis + 1]
    cdef uint64_t hashed = n, word
    cdef const char *at
    for i in range(SAMPLES):
        place = i * step
        if place >= n:
            break
        at = <const char *> view.buf
        for axis in range(view.ndim - 1, 0, -1):
            if whole:
                break
            at += place % view.shape[axis] * view.strides[axis]
            place //= view.shape[axis]
        at += place * view.strides[view.ndim - 1 if whole else 0]
        word = 0
        memcpy(&word, at, view.itemsize)
        hashed = (hashed ^ word) * <uint64_t> 0x9e3779b97f4a7c15
        hashed ^= hashed >> 32
    return hashed


def fingerprints(tuple arrays):
    """Return for each array a hash of sampled elements of at most 8 bytes; None for None."""
    cdef Py_buffer view
    found = []
    for array in arrays:
        if array is None:
            found.append(None)
            continue
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
        try:
            if view.ndim < 1 or view.itemsize > 8:
                raise ValueError("expected axes, and elements of 8 bytes at most")
            found.append(fingerprint(&view))
        finally:
            PyBuffer_Release(&view)
    return found


cdef size_t padded(size_t bytes) noexcept nogil:
    return (bytes + FRNN_ALIGN - 1) // FRNN_ALIGN * FRNN_ALIGN


cdef void *aligned(Pins pins, array, size_t bytes) except? NULL:
    """The first aligned address in a byte array that is at least FRNN_ALIGN longer than needed."""
    cdef uintptr_t start = <uintptr_t> pins.flat(array, len(array), 1, True)
    if len(array) < bytes + FRNN_ALIGN:
        raise ValueError(f"expected at least {bytes + FRNN_ALIGN} bytes")
    return <void *> padded(start)


FORMATS = {None: FRNN_REAL, "bfloat16": FRNN_BFLOAT16, "int8": FRNN_INT8}


cdef int describe(frnn_call *c, Pins pins, int isa, which, call) except -1:
    """Fill the fields common to forward and backward from a `fastrnn.call.Call`."""
    memset(c, 0, sizeof(frnn_call))
    cdef Py_ssize_t size = call.x.itemsize, k
    c.format = FORMATS[call.weight_dtype]
    if c.format == FRNN_BFLOAT16:
        c.format = frnn_isas[isa].bfloat16
    if c.format != FRNN_REAL and (size != 4 or call.training):
        raise ValueError(f"{call.weight_dtype} weights go with float32, for inference")
    cdef const frnn_cell *cell = found_cell(isa, size, c.format == FRNN_INT8, which)
    cdef Py_ssize_t G = cell.gates, products = products_of(cell)
    pins.held = which
    c.cell = cell
    c.T, c.B, c.I, c.H = call.sizes
    if c.H < 1 or max((c.T + 1.0) * c.B, c.H) * (c.I + c.H) > 2.0 ** 48:  # otherwise sums of bytes may overflow
        raise ValueError(f"sizes {call.sizes}: expected H of at least 1, and no more than memory holds")
    c.P = 0 if call.R is None else call.R.shape[0]
    if call.R is not None and not (0 < c.P <= c.H and projects(cell)):
        raise ValueError(f"no projection to {c.P} units")
    if call.R is None and call.U is not None and call.U.shape[1] != c.H:
        c.D = call.U.shape[1]
        if c.D < 1 or c.H % c.D:
            raise ValueError(f"no heads of {c.D} of {c.H} units")
    c.reverse = call.reverse
    c.training = call.training
    c.threads = min(<int> call.threads, cpus)  # more would share CPUs
    c.checkpoint = call.checkpoint or 0
    if c.checkpoint < 0:
        raise ValueError(f"no checkpoint every {c.checkpoint} steps")
    c.reads_previous = call.reads_previous
    if c.format == FRNN_INT8 and c.D:
        raise ValueError("int8 weights go without heads")
    pins.itemsize = size
    if call.packed is None or c.training:
        c.W = pins.flat(call.W, G * c.H * c.I, size)
        if (call.U is None) != (products == 0) or (call.p is None) != (cell.parameters == 0):
            raise ValueError("U goes with products, and p with parameters")
        c.U = pins.optional(call.U, products * c.H * columns(c), size)
        c.R = pins.optional(call.R, c.P * c.H, size)
        c.b = pins.optional(call.b, G * c.H, size)
        c.b_rec = pins.optional(call.b_rec, products * c.H, size)
        c.p = pins.optional(call.p, cell.parameters * c.H, size)
    for k in range(cell.states):
        c.init[k] = pins.optional(call.init[k], c.B * width(c, k), size)
    c.lengths = <const int64_t *> pins.optional(call.lengths, c.B, 8)
    for b in range(c.B if c.lengths != NULL else 0):
        if not 0 <= c.lengths[b] <= c.T:
            raise ValueError(f"length {c.lengths[b]} is not in 0..{c.T}")
    c.ragged = call.x.ndim == 2
    if c.ragged and c.lengths == NULL:
        raise ValueError("ragged arrays go with lengths")
    for b in range(c.B if c.ragged else 0):
        pins.rows += c.lengths[b]
        if b > 0 and c.lengths[b] > c.lengths[b - 1]:
            raise ValueError(f"length {c.lengths[b]} rises, and arrays are ragged")
    pins.sequence(&c.x, call.x, c, c.I, size)
    if call.resets is not None:
        pins.sequence(&c.resets, call.resets[..., None], c, 1, 1)
    return 0


cdef int describe_inputs(frnn_call *c, Pins pins, call) except -1:
    """Fill in the extra inputs, which only calls to be run have."""
    cdef Py_ssize_t k
    if len(call.e) != c.cell.inputs:
        raise ValueError(f"expected {c.cell.inputs} extra inputs")
    for k in range(c.cell.inputs):
        c.narrow[k] = call.e[k].shape[-1] != c.H
        pins.sequence(&c.e[k], call.e[k], c, 1 if c.narrow[k] else c.H, pins.itemsize)
    return 0


def saved_bytes(int isa, cell, call):
    """The number of bytes that a training forward of this call saves for backward."""
    cdef frnn_call c
    cdef Pins pins = Pins()
    describe(&c, pins, isa, cell, call)
    return table(isa, pins.itemsize).saved_bytes(&c) + FRNN_ALIGN


def packed_bytes(int isa, cell, call):
    """The number of bytes that `pack` fills."""
    cdef frnn_call c
    cdef Pins pins = Pins()
    describe(&c, pins, isa, cell, call)
    return table(isa, pins.itemsize).packed_bytes(&c) + FRNN_ALIGN


def pack(int isa, cell, call, packed):
    """Pack the parameters of `call` for its forward; only the shape of x matters."""
    cdef frnn_call c
    cdef Pins pins = Pins()
    describe(&c, pins, isa, cell, call)
    cdef const frnn_table *core = table(isa, pins.itemsize)
    cdef void *start = aligned(pins, packed, core.packed_bytes(&c))
    with nogil:
        core.pack(&c, start)


cdef size_t describe_forward(frnn_call *c, Pins pins, int isa, const frnn_table *core, job) except? 0:
    """Fill a call from (cell, call, outputs, final, saved); return the size of its work area."""
    cell, call, outputs, final, saved = job
    cdef Py_ssize_t k
    describe(c, pins, isa, cell, call)
    describe_inputs(c, pins, call)
    if call.packed is not None:
        c.packed = aligned(pins, call.packed, core.packed_bytes(c))
    for k in range(len(outputs)):
        pins.sequence(&c.out[k], outputs[k], c, width(c, k), pins.itemsize, True)
    for k in range(c.cell.states):
        c.final[k] = pins.optional(final[k], c.B * width(c, k), pins.itemsize, True)
    if c.training:
        c.saved = aligned(pins, saved, core.saved_bytes(c))
    return core.forward_bytes(c)


cdef size_t describe_backward(frnn_call *c, Pins pins, int isa, const frnn_table *core, job) except? 0:
    """Fill a call from (cell, call, saved, douts, dfinal, grads), the last a `fastrnn.call.Gradients`; likewise."""
    cell, call, saved, douts, dfinal, grads = job
    describe(c, pins, isa, cell, call)
    describe_inputs(c, pins, call)
    cdef Py_ssize_t size = pins.itemsize, rows = c.cell.gates * c.H, rec = products_of(c.cell) * c.H, k
    if not c.training:
        raise ValueError("backward needs a training call")
    if grads.dx is None:
        raise TypeError("dx has to be there")
    c.saved = aligned(pins, saved, core.saved_bytes(c))
    for k in range(len(douts)):
        pins.sequence(&c.dout[k], douts[k], c, width(c, k), size)
    pins.sequence(&c.dx, grads.dx, c, c.I, size, True)
    c.dW = pins.flat(grads.dW, rows * c.I, size, True)
    c.dU = pins.optional(grads.dU, rec * columns(c), size, True)
    c.dR = pins.optional(grads.dR, c.P * c.H, size, True)
    c.db = pins.optional(grads.db, rows, size, True)
    c.db_rec = pins.optional(grads.db_rec, rec, size, True)
    c.dp = pins.optional(grads.dp, c.cell.parameters * c.H, size, True)
    if (grads.dU is None) != (rec == 0) or (grads.dR is None) != (c.P == 0) or len(grads.de) != c.cell.inputs:
        raise TypeError("dU, dR and de have to be there where U, R and e are")
    for k in range(c.cell.inputs):
        pins.sequence(&c.de[k], grads.de[k], c, c.H, size, True)
    for k in range(c.cell.states):
        c.dfinal[k] = pins.optional(dfinal[k], c.B * width(c, k), size)
        c.dinit[k] = pins.optional(grads.dinit[k], c.B * width(c, k), size, True)
    return core.backward_bytes(c)


cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept  # noexcept, so that its error outlives `signalled`


cdef int signalled() noexcept with gil:
    """Let Python handle pending signals; return whether a handler raised, whose error is then set for this thread."""
    return PyErr_CheckSignals()


cdef class Calls:
    """The C descriptions of calls, with the objects that keep their memory alive."""

    cdef const frnn_table *core
    cdef frnn_call *calls
    cdef frnn_stop stop
    cdef int n
    cdef size_t total  # bytes of the work areas
    cdef list held
    cdef object room, scratch

    def __cinit__(self, int isa, jobs, scratch, bint backward=False):
        """jobs as `describe_forward` or `describe_backward` has them, all of one dtype.

        `scratch.take(n)` gives n bytes, which `scratch.give` takes back.
        """
        cdef Pins pins
        cdef char *start
        cdef Py_ssize_t itemsize = jobs[0][1].x.itemsize
        self.core = table(isa, itemsize)
        self.n = len(jobs)
        self.held = []
        self.calls = <frnn_call *> calloc(self.n, sizeof(frnn_call))
        if self.calls == NULL:
            raise MemoryError("no room to describe the calls")
        offsets = []
        for i in range(self.n):
            if jobs[i][1].x.itemsize != itemsize:
                raise TypeError("jobs of one dtype go together")
            pins = Pins()
            self.held.append(pins)
            offsets.append(self.total)
            self.total += padded(describe_backward(&self.calls[i], pins, isa, self.core, jobs[i]) if backward else
                                 describe_forward(&self.calls[i], pins, isa, self.core, jobs[i]))
        pins = Pins()
        self.held.append(pins)
        self.scratch, self.room = scratch, scratch.take(self.total + FRNN_ALIGN)
        start = <char *> aligned(pins, self.room, self.total)
        for i in range(self.n):
            self.calls[i].work = start + <size_t> offsets[i]

    cdef int run(self, void (*way)(const frnn_call *, int) noexcept nogil) except -1:
        """Run all calls; a signal whose handler raises, such as Ctrl-C's, stops them early."""
        self.stop.should_stop = signalled
        for i in range(self.n):
            self.calls[i].stop = &self.stop
        with nogil:
            way(self.calls, self.n)
        if self.stop.ended:
            return -1  # the handler has set the error
        self.scratch.give(self.room)
        return 0

    def __dealloc__(self):
        free(self.calls)


def forward(int isa, jobs, scratch):
    """Run jobs as for `Calls`, each after those whose results it reads; saved is None unless training."""
    cdef Calls calls = Calls(isa, jobs, scratch)
    calls.run(calls.core.forward)


def backward(int isa, jobs, scratch):
    """Run the backward of training forwards, given as for `describe_backward`."""
    cdef Calls calls = Calls(isa, jobs, scratch, True)
    calls.run(calls.core.backward)


def xla_handlers():
    """Capsules of what xla.h declares, by name."""
    return {"forward": PyCapsule_New(<void *> frnn_xla_forward, NULL, NULL),
            "backward": PyCapsule_New(<void *> frnn_xla_backward, NULL, NULL)}


def peak_flops(int isa, size_t rounds):
    """Run rounds of independent float32 multiply-adds in registers; return the number of floating-point operations."""
    cdef const frnn_table *core = table(isa, 4)
    cdef double done
    with nogil:
        done = core.peak_flops(rounds)
    return done


def read_bandwidth(int isa, x, size_t times):
    """Read a contiguous float array that many times over; return the sum of what was read."""
    cdef Pins pins = Pins()
    cdef const frnn_table *core = table(isa, x.itemsize)
    cdef size_t n = x.size
    cdef void *source = pins.flat(x, n, x.itemsize)
    cdef double total
    with nogil:
        total = core.read_bandwidth(n, source, times)
    return total


include "dense.pxi"
include "stages.pxi"
include "stepper.pxi"
include "sessions.pxi"
include "prepared.pxi"
