/* The drivers: forward.c, backward.c, and gradients.c for what backward puts off. */
#ifndef FRNN_DRIVE_H
#define FRNN_DRIVE_H

#include "plan.h"

/* Steps [from, to), this thread's part; outputs that are null are not written. */
void X(run_steps)(const Plan *p, int id, ptrdiff_t from, ptrdiff_t to);

/* The steps [low, high] whose gate gradients stand in the chunk's buffers, the highest first. */
typedef struct {
    ptrdiff_t low, high;
} Chunk;

INLINE ptrdiff_t chunk_row(const Plan *p, Chunk c, ptrdiff_t s) 
{
    return p->before[c.high + 1] - p->before[s + 1];
}

/* Add a whole chunk to the parameters' gradients, and write its dx. */
void X(finish_chunk)(const Plan *p, int id, Chunk chunk);

/* Hand the biases' and parameters' gradients to the caller. */
void X(write_sums)(const Plan *p);

/* What each thread of a call does; arg is the Plan. */
void X(forward_job)(void *arg, int id);
void X(backward_job)(void *arg, int id);

/* Calls in an order in which each comes after what it reads. */
void X(forward)(const frnn_call *calls, int n);
void X(backward)(const frnn_call *calls, int n);

#endif
