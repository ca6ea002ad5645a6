/* The kernels as handlers for XLA, and so for JAX: its programs call the C core without Python and without copies.
 *
 * XLA's foreign function interface is a C ABI: within major version 0, fields are only appended. This header declares
 * only the fields that are read or written.
 */
#ifndef FRNN_XLA_H
#define FRNN_XLA_H

#include <stddef.h>
#include <stdint.h>

#include "fastrnn.h"

typedef struct XlaError XlaError;

enum XlaExtensionType { XLA_METADATA = 1 };     /* asks what version of the interface a handler is for */
enum XlaStage { XLA_EXECUTE = 3 };              /* the only stage with data */
enum XlaType { XLA_S64 = 5, XLA_F64 = 12 };     /* of a buffer's elements */
enum XlaCode { XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8 };

typedef struct {
    size_t size;
    int type;
    void *next;
} XlaExtension;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    int major, minor;
} XlaVersion;

typedef struct {
    size_t size;
    XlaVersion version;
} XlaMetadata;

typedef struct {
    XlaExtension base;
    XlaMetadata *metadata;
} XlaMetadataExtension;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    const char *message;
    int code;
} XlaErrorArguments;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    XlaVersion version;
    void *internal;
    XlaError *(*create_error)(XlaErrorArguments *);
} XlaApi;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    int type;
    void *data;
    int64_t rank, *shape;
} XlaBuffer;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    int64_t count;
    int *types;
    XlaBuffer **all;
} XlaBuffers;

typedef struct {
    int type;
    size_t count;
    const int64_t *data;
} XlaArray;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    int64_t count;
    int *types;
    void **names;
    XlaArray **all;
} XlaAttributes;

typedef struct {
    size_t size;
    XlaExtension *extensions;
    const XlaApi *api;
    void *context;
    int stage;
    XlaBuffers arguments, results;
    XlaAttributes attributes;
} XlaFrame;

/* Register a cell under a number that is not a built-in cell's index; return 0 if there are too many. One caller at a
 * time. */
int frnn_xla_add_cell(int64_t key, const frnn_cell *cell);

/* Handlers with one attribute, an array of int64: what `enum` in xla.c names. Arguments are x, W and, of U, b, b_rec,
 * p, the initial states, lengths and resets, those whose bits are set in `given`, then the extra inputs (T, B, H);
 * results are y and the final states, and with `training` what backward needs. */
XlaError *frnn_xla_forward(XlaFrame *frame);
/* Additional arguments are the bytes that forward saved, dy, and the gradient of each final state; results are dx, dW
 * and the gradients of U, b, b_rec, p and the initial states, where given, and of the extra inputs. */
XlaError *frnn_xla_backward(XlaFrame *frame);

#endif
