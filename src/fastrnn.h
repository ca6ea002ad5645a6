/* The contract of the C core: one call, and one table of functions per (dtype, instruction set).
 *
 * The caller passes checked arguments and a work area; the core never validates, never allocates and never
 * fails. Sizes: T steps, B sequences, I inputs, H hidden units, G gates (stacked in PyTorch's order). Strides count
 * elements. Every matrix is row-major; the last axis of every array is contiguous. A null pointer is an absent
 * argument. Gradients of parameters and activations are overwritten, never accumulated.
 */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Limits of a cell; fastrnn/cells/program.py has the same. */
enum {
    FRNN_MAX_STATES = 4,
    FRNN_MAX_GATES = 8,
    FRNN_MAX_PHASES = 8,
    FRNN_MAX_PHASE_MEANS = 4,
    FRNN_MAX_INPUTS = 8
};

struct ForwardTile;
struct BackwardTile;

/* A cell of one dtype and instruction set: cell.h explains it. */
typedef struct {
    const char *name;
    const char *digest; /* of its equations, as in fastrnn.cells.Cell */
    int gates, states, parameters, inputs;
    int phases, phase_gates[FRNN_MAX_PHASES]; /* products of each phase; the first, and one of means, have none */
    int operand[FRNN_MAX_PHASES];             /* the kept field that the products multiply; -1: the first state */
    int phase_means[FRNN_MAX_PHASES];         /* of a phase without products: means over the hidden units */
    int added[FRNN_MAX_GATES]; /* for each gate the product whose b_rec may be added to its b, or -1 */
    int scans;                 /* no unit depends on another; backward adds `dout` to the first state's carry itself */
    int split;                 /* the gradients of W x + b and of U h + b_rec differ */
    int carries_h;             /* part of the first state's gradient bypasses the products to the previous step */
    int kept, pending;         /* fields that forward keeps, and that one backward phase leaves to another */
    int kept_same;             /* kept values that are the same for all units: one vector each, after the fields */
    void (*forward[FRNN_MAX_PHASES])(const struct ForwardTile *);
    void (*backward[FRNN_MAX_PHASES])(const struct BackwardTile *);
} frnn_cell;

/* How the packed matrices are stored. Formats other than FRNN_REAL are for float and inference: the matrices hold only
 * values that the format can represent. INT8 requires a cell of `unfused`, without heads and means: then all bits are
 * the same on every instruction set. BFLOAT16_PAIRS is BFLOAT16 multiplied by the CPU's own instruction. */
enum frnn_format { FRNN_REAL, FRNN_BFLOAT16, FRNN_INT8, FRNN_BFLOAT16_PAIRS };

/* A (T, B, ·) array: element (t, b, i) is at data[t*step + b*row + i]. In a ragged call it has no padding, only
 * the rows of step 0, of step 1, ..., each step's in the order of the sequences; step is row. */
typedef struct {
    void *data;
    ptrdiff_t step, row;
} frnn_array;

/* Stops a long call early; its outputs are then undefined. Zero-initialise everything except `should_stop`. */
typedef struct {
    int (*should_stop)(void); /* called ten times a second, on the caller's thread in its floating-point mode */
    atomic_int ended;         /* for the caller to read afterwards */
    double flop;              /* private: work since the clock was last read */
    int64_t next;             /* private: ns, when to call `should_stop` again */
} frnn_stop;

typedef struct {
    const frnn_cell *cell; /* of the table's dtype and instruction set */
    int reverse;
    int training;
    int threads;          /* an upper bound, at least 1 */
    int format;           /* of frnn_format */
    int reads_previous;   /* in a batch of calls: x is the y of the previous call, with the same steps and lengths */
    ptrdiff_t checkpoint; /* keep the state of every k-th step; 0 keeps every step's gates and states */
    ptrdiff_t T, B, I, H;
    ptrdiff_t P; /* units that the first state is projected to, or 0. If not 0 its arrays, U and dU are P wide, not H */
    ptrdiff_t D; /* units of a head, or 0. If not 0 U and dU are D wide: a unit is multiplied only with its own head */

    frnn_array x;               /* (T, B, I) */
    const void *W, *U;          /* (gates*H, I), (products*H, H), P or D wide if not 0 */
    const void *b, *b_rec;      /* (gates*H,), (products*H,) */
    const void *p;              /* (parameters*H,) */
    const void *R;              /* (P, H) */
    const void *packed;         /* the six above as pack() wrote them: forward then does not read the originals */
    const void *init[FRNN_MAX_STATES]; /* (B, H) */
    const int64_t *lengths;     /* (B,) */
    int ragged;                 /* the (T, B, ·) arrays hold no padding; lengths never rise */
    frnn_array resets;          /* (T, B, 1) bytes */
    frnn_array e[FRNN_MAX_INPUTS]; /* (T, B, H), or (T, B, 1) where narrow */
    int narrow[FRNN_MAX_INPUTS];

    frnn_array out[FRNN_MAX_STATES]; /* (T, B, H) states of every step, y first; absent in backward */
    void *final[FRNN_MAX_STATES];  /* (B, H) */

    frnn_array dout[FRNN_MAX_STATES];    /* (T, B, H) inputs of backward */
    const void *dfinal[FRNN_MAX_STATES]; /* (B, H) */
    frnn_array dx;                       /* (T, B, I) */
    void *dW, *dU, *db, *db_rec, *dp, *dR;
    void *dinit[FRNN_MAX_STATES];    /* (B, H) */
    frnn_array de[FRNN_MAX_INPUTS]; /* (T, B, H) */

    void *saved; /* written by a training forward, read by backward; aligned to FRNN_ALIGN */
    void *work;  /* scratch of one call; aligned to FRNN_ALIGN */
    frnn_stop *stop;
} frnn_call;

/* Functions of a row, the elementwise ones first. */
enum frnn_function { FRNN_IDENTITY, FRNN_SIGMOID, FRNN_TANH, FRNN_RELU, FRNN_SOFTMAX, FRNN_NORMALIZE };

/* Each row independently: y = f(W x + b), or f(x) without W, where N is I. */
typedef struct {
    int function; /* of frnn_function */
    int threads;  /* an upper bound, at least 1 */
    ptrdiff_t n, I, N;
    const void *W, *b;  /* (N, I), (N,) */
    const void *packed; /* both, as pack_dense() wrote them; if given, W and b are not read */
    double epsilon;     /* of FRNN_NORMALIZE: f(a) = (a - mean) / sqrt(variance + epsilon) * scale + shift */
    const void *scale, *shift; /* (N,), or null for ones and zeros */
    const void *x;      /* (n, I), rows x_row elements apart */
    void *y;            /* (n, N), in the same way; without W it may be x */
    ptrdiff_t x_row, y_row;
    void *work; /* scratch if W is not packed; aligned to FRNN_ALIGN */
} frnn_dense;

enum { FRNN_ALIGN = 64 };

typedef struct {
    int cells;
    const frnn_cell *const *cell; /* the built-in cells */
    const frnn_cell *const *unfused; /* the same for inference without fused multiply-adds; null for double */
    size_t (*packed_bytes)(const frnn_call *);   /* of I, H, the cell and its parameters alone */
    void (*pack)(const frnn_call *, void *packed); /* aligned to FRNN_ALIGN */
    size_t (*saved_bytes)(const frnn_call *);
    size_t (*forward_bytes)(const frnn_call *);  /* work area of forward */
    size_t (*backward_bytes)(const frnn_call *); /* work area of backward */

    /* n calls, each with its own work area and after those whose results it reads; in parallel if that is faster. */
    void (*forward)(const frnn_call *, int n);
    void (*backward)(const frnn_call *, int n);

    /* A forward that is set up once and run many times. The call must outlive it; between runs only the contents of its
     * arrays and the addresses of x, out, init and final may change. */
    size_t prepared_bytes;
    void (*prepare)(const frnn_call *, void *prepared);
    void (*forward_prepared)(void *prepared);

    size_t (*dense_packed_bytes)(const frnn_dense *); /* of I and N alone */
    void (*pack_dense)(const frnn_dense *, void *packed); /* aligned to FRNN_ALIGN */
    size_t (*dense_bytes)(const frnn_dense *);        /* of its work area */
    void (*dense)(const frnn_dense *);

    double (*peak_flops)(size_t rounds); /* peak arithmetic and reading, for the benchmarks: roofline.h */
    double (*read_bandwidth)(size_t n, const void *x, size_t times);
} frnn_table;

typedef struct {
    const char *name;        /* psABI level or "neon" */
    int (*supported)(void);  /* by this CPU and operating system */
    const frnn_table *f32, *f64;
    const int *vector; /* the kernels' bytes in a vector, and whether FMA rounds once, for cells compiled elsewhere */
    int bfloat16;      /* of frnn_format: that of bfloat16 weights */
} frnn_isa;

/* Ordered from the most portable to the fastest. */
extern const frnn_isa frnn_isas[];
extern const int frnn_isa_count;

#if defined(__clang__)
#define FRNN_COMPILER "Clang " __clang_version__
#elif defined(__GNUC__)
#define FRNN_COMPILER "GCC " __VERSION__
#endif

#endif
