// Stands in for libcublasLt: computes what the layouts say, in column-major, and takes a time that depends on the algorithm.
// Three algorithms are proposed: 1 adds parts in place, 2 takes 2 ms, 3 takes 1 ms and does not do 100 columns.

#include "stub.h"

#ifndef VERSION
#define VERSION 120805
#endif

enum { INVALID = 7, NOT_SUPPORTED = 15, F32 = 0, BF16 = 14 };

typedef struct { uint64_t data[8]; } algorithm;
typedef struct { int type; uint64_t rows, columns; int64_t ld; } layout;
typedef struct { int compute, scale, transpose_a; } operation_desc;
typedef struct { uint64_t workspace_bytes; uint32_t schemes, alignment[4]; } preference;
typedef struct { algorithm algo; size_t workspace; unsigned state; float waves; int reserved[4]; } heuristic;

size_t cublasLtGetVersion(void) { return VERSION; }
const char *cublasLtGetStatusName(unsigned status) { return status == 3 ? "CUBLAS_STATUS_ALLOC_FAILED" : "CUBLAS_STATUS"; }
unsigned cublasLtCreate(void **handle) { CALL(cublasLtCreate); *handle = malloc(1); note("+handle"); return 0; }
unsigned cublasLtDestroy(void *handle) { free(handle); note("-handle"); return 0; }
unsigned cublasLtMatmulDescCreate(operation_desc **d, int compute, int scale) {
    CALL(cublasLtMatmulDescCreate);
    *d = calloc(1, sizeof **d);
    **d = (operation_desc){compute, scale, 0};
    note("+operation");
    return 0;
}
unsigned cublasLtMatmulDescDestroy(operation_desc *d) { free(d); note("-operation"); return 0; }
unsigned cublasLtMatmulDescSetAttribute(operation_desc *d, int attribute, const void *value, size_t size) {
    if (attribute != 3 || size != 4)
        return INVALID;
    memcpy(&d->transpose_a, value, 4);
    return 0;
}
unsigned cublasLtMatrixLayoutCreate(layout **l, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    CALL(cublasLtMatrixLayoutCreate);
    *l = malloc(sizeof **l);
    **l = (layout){type, rows, columns, ld};
    note("+layout");
    return 0;
}
unsigned cublasLtMatrixLayoutDestroy(layout *l) { free(l); note("-layout"); return 0; }
unsigned cublasLtMatmulPreferenceCreate(preference **p) {
    CALL(cublasLtMatmulPreferenceCreate);
    *p = calloc(1, sizeof **p);
    note("+preference");
    return 0;
}
unsigned cublasLtMatmulPreferenceDestroy(preference *p) { free(p); note("-preference"); return 0; }
unsigned cublasLtMatmulPreferenceSetAttribute(preference *p, int attribute, const void *value, size_t size) {
    if (attribute == 1 && size == 8)
        memcpy(&p->workspace_bytes, value, 8);
    else if (attribute == 3 && size == 4)
        memcpy(&p->schemes, value, 4);
    else if (attribute >= 5 && attribute <= 8 && size == 4)
        memcpy(&p->alignment[attribute - 5], value, 4);
    else
        return INVALID;
    return 0;
}

static int fits(const operation_desc *o, const layout *a, const layout *b, const layout *c, const layout *d) {
    return o->compute == 68 && o->scale == F32 && o->transpose_a == 1 && a->type == BF16 && b->type == BF16 && c == d &&
           a->rows == b->rows && a->columns == d->rows && b->columns == d->columns && a->ld == (int64_t)a->rows &&
           b->ld == (int64_t)b->rows && d->ld == (int64_t)d->rows;
}

unsigned cublasLtMatmulAlgoGetHeuristic(void *handle, operation_desc *o, layout *a, layout *b, layout *c, layout *d,
                                        preference *p, int asked, heuristic *results, int *count) {
    CALL(cublasLtMatmulAlgoGetHeuristic);
    (void)handle;
    if (!fits(o, a, b, c, d) || p->schemes != 2 || p->workspace_bytes != 32u << 20 || p->alignment[3] != 16)
        return INVALID;
    *count = 0;
    for (uint64_t id = 1; id <= 3 && *count < asked; id++)
        if (id != 3 || d->columns != 100)
            results[(*count)++] = (heuristic){{{id}}, 1024, 0, 1, {0}};
    note("propose %zu", (size_t)d->columns);
    return 0;
}
unsigned cublasLtMatmulAlgoConfigGetAttribute(const algorithm *a, int attribute, void *value, size_t size, size_t *written) {
    if (attribute != 3 || size != 4)
        return INVALID;
    uint32_t scheme = a->data[0] == 1 ? 1 : a->data[0] == 2 ? 2 : 0;
    memcpy(value, &scheme, 4);
    *written = 4;
    return 0;
}

typedef struct { const uint16_t *a, *b; void *d; uint64_t m, n, k; int type; float beta; } work;
static void run(void *data) {
    work *w = data;
    for (uint64_t j = 0; j < w->n; j++)
        for (uint64_t i = 0; i < w->m; i++) {
            float sum = 0;
            for (uint64_t l = 0; l < w->k; l++)
                sum += widen(w->a[i * w->k + l]) * widen(w->b[j * w->k + l]);
            uint64_t at = j * w->m + i;
            if (w->type == F32) {
                float *d = w->d;
                d[at] = sum + (w->beta != 0 ? w->beta * d[at] : 0);
            } else {
                uint16_t *d = w->d;
                d[at] = narrow(sum + (w->beta != 0 ? w->beta * widen(d[at]) : 0));
            }
        }
}

unsigned cublasLtMatmul(void *handle, operation_desc *o, const float *alpha, const void *a, layout *la, const void *b,
                        layout *lb, const float *beta, const void *c, layout *lc, void *d, layout *ld, const algorithm *algo,
                        void *workspace, size_t workspace_bytes, stream *s) {
    CALL(cublasLtMatmul);
    (void)handle;
    if (!fits(o, la, lb, lc, ld) || c != d || *alpha != 1 || !workspace || workspace_bytes != 32u << 20)
        return INVALID;
    if (algo->data[0] == 3 && ld->columns == 100)
        return NOT_SUPPORTED;
    work *w = malloc(sizeof *w);
    *w = (work){a, b, d, ld->rows, ld->columns, la->rows, ld->type, *beta};
    s->clock_ms += algo->data[0] == 2 ? 2 : 1;
    note("%s %zux%zux%zu by %d", s->capture ? "record" : "multiply", (size_t)w->n, (size_t)w->k, (size_t)w->m,
         (int)algo->data[0]);
    enqueue(s, run, w);
    return 0;
}
