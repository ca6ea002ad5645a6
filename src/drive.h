/* The two drivers, and what backward borrows from forward. */
#ifndef FRNN_DRIVE_H
#define FRNN_DRIVE_H

#include "plan.h"

/* Fill this thread's share of the forward panels. */
void X(pack_forward)(const Plan *p, int id);

/* Steps [from, to) of the segment that begins at `start`, this thread's part; outputs that are null are not written. */
void X(run_steps)(const Plan *p, int id, ptrdiff_t start, ptrdiff_t from, ptrdiff_t to);

/* Entries of the table. */
size_t X(forward_bytes)(const frnn_call *call);
size_t X(backward_bytes)(const frnn_call *call);
void X(forward)(const frnn_call *call);
void X(backward)(const frnn_call *call);

#endif
