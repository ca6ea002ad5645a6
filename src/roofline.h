/* The machine's roofline, for `python -m fastrnn bench`. */
#ifndef FRNN_ROOFLINE_H
#define FRNN_ROOFLINE_H

#include "vec.h"

/* Run that many rounds of independent multiply-adds in registers; returns the floating-point operations done. */
double X(peak_flops)(size_t rounds);

/* Read x[0..n) in order, that many times over; returns the sum, so that the compiler cannot omit loads. */
double X(read_bandwidth)(size_t n, const void *x, size_t times);

#endif
