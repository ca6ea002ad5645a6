#include "xla.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastrnn.h"

enum { CELL, ISA, REVERSE, TRAINING, THREADS, GIVEN }; /* the attribute's elements, as fastrnn/jax.py has them */

/* Cells that were compiled at run time, by numbers derived from their code: a cached program from another process finds
 * the cell that it was made for, or none. */
enum { MOST_CELLS = 4096 };
static struct {
    int64_t key;
    const frnn_cell *cell;
} added[MOST_CELLS];
static atomic_int cells_added;

int frnn_xla_add_cell(int64_t key, const frnn_cell *cell)
{
    const int n = cells_added; /* the caller holds a lock */
    for (int i = 0; i < n; i++)
        if (added[i].key == key) return 1;
    if (n == MOST_CELLS) return 0;
    added[n].key = key;
    added[n].cell = cell;
    cells_added = n + 1;
    return 1;
}

static const frnn_cell *find_cell(const frnn_table *core, int64_t key)
{
    if (key < core->cells) return core->cell[key];
    for (int i = cells_added; i-- > 0;)
        if (added[i].key == key) return added[i].cell;
    return 0;
}

static XlaError *failed(const XlaFrame *frame, int code, const char *message)
{
    XlaErrorArguments arguments = {sizeof arguments, 0, message, code};
    return frame->api->create_error(&arguments);
}

/* Handles everything except a call. */
static int answers_query(XlaFrame *frame)
{
    if (frame->extensions && frame->extensions->type == XLA_METADATA) {
        XlaVersion *version = &((XlaMetadataExtension *)frame->extensions)->metadata->version;
        version->major = 0;
        version->minor = 1;
        return 1;
    }
    return frame->stage != XLA_EXECUTE;
}

/* Read buffers in order; absent ones are null and take no slot. */
typedef struct {
    const XlaBuffers *buffers;
    int64_t next;
} Reader;

static XlaBuffer *take(Reader *reader, int64_t given) { return given ? reader->buffers->all[reader->next++] : 0; }

static void *data(Reader *reader, int64_t given)
{
    const XlaBuffer *buffer = take(reader, given);
    return buffer ? buffer->data : 0;
}

static frnn_array sequence(Reader *reader, int64_t given, ptrdiff_t B, ptrdiff_t n)
{
    return (frnn_array){data(reader, given), B * n, n};
}

/* The last work area is kept for the next call, because fresh pages cost as much as the work on them. */
typedef struct {
    size_t bytes;
} Room;

static _Atomic(Room *) kept;

static Room *take_room(size_t bytes)
{
    Room *room = atomic_exchange(&kept, 0);
    if (room && room->bytes >= bytes) return room;
    free(room);
    room = malloc(sizeof *room + bytes);
    if (room) room->bytes = bytes;
    return room;
}

static void give_room(Room *room) { free(atomic_exchange(&kept, room)); }

/* Fill in the call except for lengths, which are kept as given, and the work area; return 0 if the cell is unknown. */
static int describe(frnn_call *call, const frnn_table **core, const XlaBuffer **lengths, const XlaFrame *frame,
                    int backward)
{
    const int64_t *set = frame->attributes.all[0]->data, given = set[GIVEN];
    const int64_t hasU = given & 1, b = given & 2, b_rec = given & 4, p = given & 8;
    Reader arguments = {&frame->arguments, 0}, results = {&frame->results, 0};
    const XlaBuffer *x = take(&arguments, 1), *W = take(&arguments, 1);
    *core = x->type == XLA_F64 ? frnn_isas[set[ISA]].f64 : frnn_isas[set[ISA]].f32;
    const frnn_cell *const cell = find_cell(*core, set[CELL]);
    if (!cell) return 0;
    const ptrdiff_t T = x->shape[0], B = x->shape[1], I = x->shape[2], H = W->shape[0] / cell->gates;
    *call = (frnn_call){
        .cell = cell, .reverse = (int)set[REVERSE], .training = (int)set[TRAINING],
        .threads = (int)set[THREADS], .T = T, .B = B, .I = I, .H = H,
        .x = {x->data, B * I, I}, .W = W->data,
    };
    const XlaBuffer *U = take(&arguments, hasU);
    if (U) call->U = U->data;
    if (U && U->shape[1] < H) call->D = U->shape[1];
    call->b = data(&arguments, b);
    call->b_rec = data(&arguments, b_rec);
    call->p = data(&arguments, p);
    for (int k = 0; k < cell->states; k++) call->init[k] = data(&arguments, given & 64 << k);
    *lengths = take(&arguments, given & 16);
    call->resets = sequence(&arguments, given & 32, B, 1);
    for (int k = 0; k < cell->inputs; k++) call->e[k] = sequence(&arguments, 1, B, H);
    if (backward) {
        call->saved = data(&arguments, 1);
        call->dout[0] = sequence(&arguments, 1, B, H);
        for (int k = 0; k < cell->states; k++) call->dfinal[k] = data(&arguments, 1);
        call->dx = sequence(&results, 1, B, I);
        call->dW = data(&results, 1);
        call->dU = data(&results, hasU);
        call->db = data(&results, b);
        call->db_rec = data(&results, b_rec);
        call->dp = data(&results, p);
        for (int k = 0; k < cell->states; k++) call->dinit[k] = data(&results, given & 64 << k);
        for (int k = 0; k < cell->inputs; k++) call->de[k] = sequence(&results, 1, B, H);
    } else {
        call->out[0] = sequence(&results, 1, B, H);
        for (int k = 0; k < cell->states; k++) call->final[k] = data(&results, 1);
        call->saved = data(&results, call->training);
    }
    return 1;
}

/* JAX integers have 32 bits by default, the core's 64. */
static XlaError *read_lengths(const XlaFrame *frame, frnn_call *call, const XlaBuffer *lengths, int64_t *to)
{
    for (ptrdiff_t b = 0; b < call->B; b++) {
        to[b] = lengths->type == XLA_S64 ? ((const int64_t *)lengths->data)[b] : ((const int32_t *)lengths->data)[b];
        if (to[b] < 0 || to[b] > call->T) {
            char message[128];
            snprintf(message, sizeof message, "lengths: expected each in 0..T = 0..%lld, got %lld for sequence %lld",
                     (long long)call->T, (long long)to[b], (long long)b);
            return failed(frame, XLA_INVALID_ARGUMENT, message);
        }
    }
    call->lengths = to;
    return 0;
}

static XlaError *run(XlaFrame *frame, int backward)
{
    if (answers_query(frame)) return 0;
    frnn_call call;
    const frnn_table *core;
    const XlaBuffer *lengths;
    if (!describe(&call, &core, &lengths, frame, backward))
        return failed(frame, XLA_INVALID_ARGUMENT, "fastrnn: the cell was compiled in another process; trace again");
    if ((uintptr_t)call.saved % FRNN_ALIGN)
        return failed(frame, XLA_INVALID_ARGUMENT, "fastrnn: expected what forward left at an address of 64 bytes");

    int64_t *whole = lengths ? malloc((size_t)(call.B + 1) * sizeof *whole) : 0;
    XlaError *error = whole ? read_lengths(frame, &call, lengths, whole) : 0;
    Room *room = 0;
    if (!error) room = take_room(FRNN_ALIGN + (backward ? core->backward_bytes(&call) : core->forward_bytes(&call)));
    if (!error && (!room || (lengths && !whole)))
        error = failed(frame, XLA_RESOURCE_EXHAUSTED, "fastrnn: no memory for a call's work area");
    if (!error) {
        call.work = (void *)(((uintptr_t)(room + 1) + FRNN_ALIGN - 1) / FRNN_ALIGN * FRNN_ALIGN);
        (backward ? core->backward : core->forward)(&call, 1);
    }
    if (room) give_room(room);
    free(whole);
    return error;
}

XlaError *frnn_xla_forward(XlaFrame *frame) { return run(frame, 0); }
XlaError *frnn_xla_backward(XlaFrame *frame) { return run(frame, 1); }
