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
    if (got == bytes) return data;
    free(data);
    return NULL;
}

/* Copy `bytes` from *data to `to`, and step past them. */
static void take(void *to, const char **data, size_t bytes)
{
    memcpy(to, *data, bytes);
    *data += bytes;
}

static void read_problem(Problem *p, const char **data)
{
    take(p->cell, data, offsetof(Problem, tensor) - offsetof(Problem, cell));
    for (Tensor *tensor = p->tensor; tensor < p->tensor + COUNT; tensor++) {
        take(tensor, data, offsetof(Tensor, values));
        tensor->values = (const double *)*data;
        if (tensor->size > 0) *data += (size_t)tensor->size * sizeof(double);
    }
}

Vectors read_vectors(const char *path)
{
    enum { LINE = 256 };
    char expected[LINE] = "", line[LINE];
    Vectors v = {.file = read_file(path)};
    const char *data = v.file;
    for (int k = 0; k < COUNT; k++) strcat(strcat(expected, k ? " " : ""), tensor_names[k]);
    if (!data) return v;
    take(line, &data, LINE);
    if (memcmp(line, expected, LINE)) return v;
    take(&v.count, &data, sizeof v.count);
    v.problems = calloc((size_t)v.count, sizeof *v.problems);
    for (int64_t i = 0; i < v.count; i++) {
        v.problems[i].number = i;
        read_problem(&v.problems[i], &data);
    }
    return v;
}

void free_vectors(Vectors *vectors)
{
    free(vectors->problems);
    free(vectors->file);
}
