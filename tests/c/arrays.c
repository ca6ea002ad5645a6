/* Arrays that detect writes around them. */
#include "check.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
enum { GUARD = 0 }; /* the sanitizer's own guards are better: they also detect reads */
#else
enum { GUARD = 256 };
#endif
enum { GAP = 3 }; /* elements between the rows of a BACKWARDS array */

unsigned char *row_at(const Array *a, ptrdiff_t t, ptrdiff_t b)
{
    return (unsigned char *)a->at.data + (t * a->at.step + b * a->at.row) * (ptrdiff_t)a->size;
}

Array new_array(Array a, int around, int fill)
{
    const ptrdiff_t T = a.T, B = a.B, row = a.layout == BACKWARDS ? a.n + GAP : a.n;
    a.bytes = GUARD + a.alignment + (size_t)(T * B * row) * a.size + GUARD;
    if (posix_memalign((void **)&a.block, 4 * FRNN_ALIGN, a.bytes)) abort();
    memset(a.block, around, a.bytes);
    a.at = (frnn_array){a.block + GUARD + a.alignment, B * row, row};
    if (a.layout == BATCH_FIRST) a.at = (frnn_array){a.at.data, row, T * row};
    if (a.layout == BACKWARDS && T > 0) a.at = (frnn_array){row_at(&a, T - 1, 0), -B * row, row};
    for (ptrdiff_t t = 0; t < T; t++)
        for (ptrdiff_t b = 0; b < B; b++) memset(row_at(&a, t, b), fill, (size_t)a.n * a.size);
    return a;
}

char *collect(const Run *run, Array *a, const char *name)
{
    const size_t row = (size_t)a->n * a->size;
    if (!a->block) return NULL;
    char *dense = malloc((size_t)(a->T * a->B) * row + 1);
    for (ptrdiff_t t = 0; t < a->T; t++)
        for (ptrdiff_t b = 0; b < a->B; b++) {
            memcpy(dense + (size_t)(t * a->B + b) * row, row_at(a, t, b), row);
            memset(row_at(a, t, b), GUARD_BYTE, row);
        }
    const unsigned char *p = a->block, *end = p + a->bytes;
    if (p < end && (*p != GUARD_BYTE || memcmp(p, p + 1, a->bytes - 1))) { /* some byte has changed */
        while (p < end && *p == GUARD_BYTE) p++;
        complain(run, "wrote outside of %s, %td bytes from its start", name, p - (unsigned char *)a->at.data);
    }
    free(a->block);
    return dense;
}

double get(const void *data, size_t i, int wide)
{
    return wide ? ((const double *)data)[i] : (double)((const float *)data)[i];
}

void put(void *data, size_t i, int wide, double value)
{
    if (wide)
        ((double *)data)[i] = value;
    else
        ((float *)data)[i] = (float)value;
}
