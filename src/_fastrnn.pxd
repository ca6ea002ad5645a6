"""Declarations of fastrnn.h, xla.h and the headers.h of fastrnn/cells/generate.py, and those of team.h for tests."""

from libc.stdint cimport int64_t


cdef extern from "team.h" nogil:
    void frnn_team_set_backoff(int)


cdef extern from "headers.h":
    const char *frnn_headers
    const char *frnn_int8_headers


cdef extern from "fastrnn.h" nogil:
    enum:
        FRNN_ALIGN
        FRNN_MAX_STATES
        FRNN_MAX_GATES
        FRNN_MAX_PHASES
        FRNN_MAX_INPUTS

    struct ForwardTile
    struct BackwardTile

    ctypedef struct frnn_cell:
        const char *name
        const char *digest
        int gates
        int states
        int parameters
        int inputs
        int phases
        int phase_gates[FRNN_MAX_PHASES]
        int operand[FRNN_MAX_PHASES]
        int phase_means[FRNN_MAX_PHASES]
        int added[FRNN_MAX_GATES]
        int split
        int carries_h
        int kept
        int kept_same
        int scans
        int pending
        void (*forward[FRNN_MAX_PHASES])(const ForwardTile *) noexcept nogil
        void (*backward[FRNN_MAX_PHASES])(const BackwardTile *) noexcept nogil

    ctypedef struct frnn_array:
        void *data
        ptrdiff_t step
        ptrdiff_t row

    ctypedef struct frnn_stop:
        int (*should_stop)() noexcept nogil
        int ended

    enum frnn_format:
        FRNN_REAL
        FRNN_BFLOAT16
        FRNN_INT8

    ctypedef struct frnn_call:
        const frnn_cell *cell
        int reverse
        int training
        int threads
        int format
        int reads_previous
        ptrdiff_t checkpoint
        ptrdiff_t P
        ptrdiff_t D
        ptrdiff_t T
        ptrdiff_t B
        ptrdiff_t I
        ptrdiff_t H
        frnn_array x
        const void *W
        const void *U
        const void *b
        const void *b_rec
        const void *p
        const void *R
        const void *packed
        const void *init[FRNN_MAX_STATES]
        const int64_t *lengths
        int ragged
        frnn_array resets
        frnn_array e[FRNN_MAX_INPUTS]
        int narrow[FRNN_MAX_INPUTS]
        frnn_array out[FRNN_MAX_STATES]
        void *final[FRNN_MAX_STATES]
        frnn_array dout[FRNN_MAX_STATES]
        const void *dfinal[FRNN_MAX_STATES]
        frnn_array dx
        void *dW
        void *dU
        void *db
        void *db_rec
        void *dp
        void *dR
        void *dinit[FRNN_MAX_STATES]
        frnn_array de[FRNN_MAX_INPUTS]
        void *saved
        void *work
        frnn_stop *stop

    enum frnn_function:
        FRNN_IDENTITY
        FRNN_SIGMOID
        FRNN_TANH
        FRNN_RELU
        FRNN_SOFTMAX
        FRNN_NORMALIZE

    ctypedef struct frnn_dense:
        int function
        int threads
        ptrdiff_t n
        ptrdiff_t I
        ptrdiff_t N
        const void *W
        const void *b
        const void *packed
        double epsilon
        const void *scale
        const void *shift
        const void *x
        void *y
        ptrdiff_t x_row
        ptrdiff_t y_row
        void *work

    ctypedef struct frnn_table:
        int cells
        const frnn_cell *const *cell
        const frnn_cell *const *unfused
        size_t (*packed_bytes)(const frnn_call *) noexcept nogil
        void (*pack)(const frnn_call *, void *) noexcept nogil
        size_t (*saved_bytes)(const frnn_call *) noexcept nogil
        size_t (*forward_bytes)(const frnn_call *) noexcept nogil
        size_t (*backward_bytes)(const frnn_call *) noexcept nogil
        void (*forward)(const frnn_call *, int) noexcept nogil
        void (*backward)(const frnn_call *, int) noexcept nogil
        size_t prepared_bytes
        void (*prepare)(const frnn_call *, void *) noexcept nogil
        void (*forward_prepared)(void *) noexcept nogil
        size_t (*dense_packed_bytes)(const frnn_dense *) noexcept nogil
        void (*pack_dense)(const frnn_dense *, void *) noexcept nogil
        size_t (*dense_bytes)(const frnn_dense *) noexcept nogil
        void (*dense)(const frnn_dense *) noexcept nogil
        double (*peak_flops)(size_t) noexcept nogil
        double (*read_bandwidth)(size_t, const void *, size_t) noexcept nogil

    ctypedef struct frnn_isa:
        const char *name
        int (*supported)() noexcept nogil
        const frnn_table *f32
        const frnn_table *f64
        const int *vector
        int bfloat16

    const frnn_isa frnn_isas[]
    const int frnn_isa_count
    const char *FRNN_COMPILER


cdef extern from "xla.h" nogil:
    ctypedef struct XlaFrame
    ctypedef struct XlaError
    XlaError *frnn_xla_forward(XlaFrame *)
    XlaError *frnn_xla_backward(XlaFrame *)
    int frnn_xla_add_cell(int64_t, const frnn_cell *)
