/* Layers that process each row independently; fastrnn.h describes the calls. */
#ifndef FRNN_DENSE_H
#define FRNN_DENSE_H

#include "fastrnn.h"
#include "vec.h"

size_t X(dense_packed_size)(const frnn_dense *);
void X(pack_dense)(const frnn_dense *, void *packed);
size_t X(dense_size)(const frnn_dense *);
void X(dense)(const frnn_dense *);

#endif
