/* The drivers: forward.c, backward.c, and gradients.c for the gradients that backward defers. */
#ifndef FRNN_DRIVE_H
#define FRNN_DRIVE_H

#include "plan.h"

/* Run this thread's part of steps [from, to); null outputs are not written. Returns whether the threads have left the
 * rest to thread 0, which has run these steps to the end. */
int X(run_steps)(const Plan *p, int id, ptrdiff_t from, ptrdiff_t to);

/* Zero what one of the caller's arrays has for a step, in the caller's order of steps and sequences. */
INLINE void zero_step(frnn_array array, ptrdiff_t time, ptrdiff_t sequence, ptrdiff_t n)
{
    zero_row((real *)array.data + time * array.step + sequence * array.row, n);
}

/* The steps [low, high] whose gate gradients are in the chunk's buffers, in descending order. */
typedef struct {
    ptrdiff_t low, high;
} Chunk;

INLINE ptrdiff_t chunk_row(const Plan *p, Chunk c, ptrdiff_t s)
{
    return p->before[c.high + 1] - p->before[s + 1];
}

/* Add a whole chunk to the parameters' gradients, and write its dx. */
void X(finish_chunk)(const Plan *p, int id, Chunk chunk);

/* Write the gradients of biases and parameters to the caller's arrays. */
void X(write_sums)(const Plan *p);

/* The job of each thread of a call; arg is the Plan. */
void X(forward_job)(void *arg, int id);
void X(backward_job)(void *arg, int id);

/* Run calls, ordered so that each comes after those whose results it reads. */
void X(forward)(const frnn_call *calls, int n);
void X(backward)(const frnn_call *calls, int n);

#endif
