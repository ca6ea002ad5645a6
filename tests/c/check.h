/* Shared by the files of this test: problems, ways to compute them, guarded arrays, and error reports. */
#ifndef CHECK_H
#define CHECK_H

#include "fastrnn.h"

/* In the order of the file: inputs, cotangents, outputs of forward, gradients. */
#define TENSORS(T)                                                                                                     \
    T(x) T(W) T(U) T(b) T(b_rec) T(p) T(h0) T(c0) T(lengths) T(resets) T(dy) T(dh_n) T(dc_n) T(dc)                     \
    T(y) T(h_n) T(c_n) T(c) T(dx) T(dW) T(dU) T(db) T(db_rec) T(dp) T(dh0) T(dc0)
#define NUMBER(name) N_##name,
enum { TENSORS(NUMBER) COUNT, OUTPUTS = N_y, GRADIENTS = N_dx };
extern const char *const tensor_names[];

typedef struct {
    int64_t size; /* -1: absent */
    double tolerance[2];
    const double *values;
} Tensor;

typedef struct {
    int64_t number; /* in the file */
    char cell[16];
    int64_t T, B, I, H, reverse, layout, checkpoint, work;
    Tensor tensor[COUNT];
} Problem;

typedef struct {
    Problem *problems;
    int64_t count;
    char *file; /* which their tensors point into */
} Vectors;

enum { TIME_MAJOR, BATCH_FIRST, BACKWARDS };

/* The threads that its work is enough for: one; several if stacked; or several by itself. */
enum { ALONE, STACKED, SHARED };

/* One way to compute a problem. */
typedef struct {
    int threads, checkpointed;
    int denied; /* the team is in use, so the call must run alone although it is laid out for several threads */
    int fill;   /* every byte of outputs and work areas at the start; 0xff makes NaNs */
    int left;   /* the other threads leave the rest to the first one, as early as possible */
} Way;

typedef struct {
    int passed, failed, complaints; /* complaints: of the current test */
    double worst;                   /* error relative to the allowed error */
    char worst_name[64];
} Report;

/* One run: a problem on a table, computed in one way. */
typedef struct {
    const char *isa;
    const frnn_table *table;
    int wide; /* 0 float32, 1 float64 */
    const Problem *problem;
    Way way;
    Report *report;
} Run;

/* Report a fault of the run, and count it. */
void complain(const Run *run, const char *format, ...);
void end_test(Report *report);

/* ---- arrays.c: arrays between guard bytes ---- */

enum { GUARD_BYTE = 0xa5 };

typedef struct {
    ptrdiff_t T, B, n; /* elements */
    size_t size;       /* bytes of an element */
    size_t alignment;  /* and of no more than that */
    int64_t layout;
    frnn_array at;
    unsigned char *block;
    size_t bytes; /* of the block */
} Array;

/* Allocate a block for an array whose first five fields are given: its elements are filled with the byte `fill`, and
 * surrounded by the byte `around`. */
Array new_array(Array like, int around, int fill);
unsigned char *row_at(const Array *a, ptrdiff_t t, ptrdiff_t b);

/* Check all bytes around the array, return its elements without gaps, and free it. Null for no array. */
char *collect(const Run *run, Array *a, const char *name);

/* Element i of floats, or of doubles if `wide`. */
double get(const void *data, size_t i, int wide);
void put(void *data, size_t i, int wide, double value);

/* ---- calls.c: a problem's arrays, and calls of it in run->way ---- */

typedef struct {
    char *dense[COUNT]; /* outputs, time-major without gaps; null when absent */
} Result;

typedef void (*Entry)(const frnn_call *, int);

Array work_area(const Run *run, size_t bytes);

/* Room for one tensor of a problem; no block when it is absent. */
Array tensor_array(const Run *run, int k, int around, int fill);
void make_inputs(const Run *run, Array *in);
void free_inputs(Array *in);

/* The call; outputs, `saved` and `work` are left to fill in. */
frnn_call describe(const Run *run, const Array *in);
void execute(const Run *run, Entry entry, const frnn_call *calls, int n);

/* How many jobs of several threads the core has run for calls of this thread. */
extern _Thread_local int team_jobs;

/* Forward into `result`; a training one leaves `call->saved`, which backward reads. */
void forward(const Run *run, frnn_call *call, Result *result);
void backward(const Run *run, frnn_call *call, Array *saved, Result *result);
void free_result(Result *result);

/* ---- problem.c: one problem in every way; if `contended`, only in those that want three threads ---- */

void test_problem(Run run, int contended);

/* ---- stacks.c: problems as layers of one call ---- */

void test_stacks(Run run, const Vectors *vectors);

/* ---- callers.c: several callers at once ---- */

void test_callers(Run run, const Vectors *vectors);

/* ---- places.c: where the team's threads may run ---- */

void test_places(Report *report);

/* ---- vectors.c: the problems in a file; none when it is not one of this version's make_vectors.py ---- */

Vectors read_vectors(const char *path);
void free_vectors(Vectors *vectors);

/* ---- activations.c: sigmoid and tanh of the run's table, two tests ---- */

void test_activations(const Run *run);

/* ---- dense.c: operations on single rows, a test for each size and function; or those with several threads ---- */

void test_dense(const Run *run, int threads_alone);

/* ---- int8.c: products by their definition, and bits of LSTMs, a test for each size and way ---- */

void test_int8(const Run *run);

#endif
