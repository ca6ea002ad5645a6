/* Reads the file whose format make_vectors.py describes. */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    const size_t bytes = (size_t)ftell(file);
    char *data = malloc(bytes);
    rewind(file);
    const size_t got = fread(data, 1, bytes, file);
    fclose(file);
    return got == bytes ? data : NULL;
}

/* Copy `bytes` from *data to `to`, and step past them. */
static void take(void *to, const char **data, size_t bytes)
{
    memcpy(to, *data, bytes);
    *data += bytes;
}

Problem *read_problems(const char *path, int64_t *count)
{
    enum { LINE = 256 };
    char line[LINE] = "", first[LINE];
    const char *data = read_file(path); /* stays: the tensors point into it */
    for (int k = 0; k < COUNT; k++) strcat(strcat(line, k ? " " : ""), tensor_names[k]);
    if (!data) return NULL;
    take(first, &data, LINE);
    if (memcmp(first, line, LINE)) return NULL;
    take(count, &data, sizeof *count);
    Problem *problems = calloc((size_t)*count, sizeof *problems);
    for (int64_t i = 0; i < *count; i++) {
        Problem *p = &problems[i];
        p->number = i;
        take(p->cell, &data, offsetof(Problem, tensor) - offsetof(Problem, cell));
        for (Tensor *tensor = p->tensor; tensor < p->tensor + COUNT; tensor++) {
            take(tensor, &data, offsetof(Tensor, values));
            tensor->values = (const double *)data;
            if (tensor->size > 0) data += (size_t)tensor->size * sizeof(double);
        }
    }
    return problems;
}
