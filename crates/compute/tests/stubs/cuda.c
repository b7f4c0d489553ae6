// Stands in for libcuda. Memory is the host's; it knows what was allocated, and refuses copies beyond it, calls without a
// current context, and what is not allowed while a stream is captured.

#include "stub.h"

typedef unsigned long long address;

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, ILLEGAL_ADDRESS = 700, CAPTURE = 900 };

#ifndef DEVICES
#define DEVICES 2
#endif
#ifndef VERSION
#define VERSION 12080
#endif
#define MEMORY_BYTES (1ull << 30)

static int context_of_device[DEVICES + 1];
static __thread void *current;
static stream *capturing;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

typedef struct block {
    address start;
    size_t bytes;
    int is_pinned;
    struct block *next;
} block;
static block *blocks;

static block *block_of(address start, size_t bytes, int is_pinned) {
    for (block *b = blocks; b; b = b->next)
        if (b->is_pinned == is_pinned && start >= b->start && start + bytes <= b->start + b->bytes)
            return b;
    return NULL;
}

static address add_block(size_t bytes, int is_pinned) {
    block *b = malloc(sizeof *b);
    void *start = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(start, 0xcd, bytes);
    *b = (block){(address)(uintptr_t)start, bytes, is_pinned, blocks};
    blocks = b;
    return b->start;
}

static int remove_block(address start, int is_pinned) {
    for (block **link = &blocks; *link; link = &(*link)->next) {
        block *b = *link;
        if (b->start == start && b->is_pinned == is_pinned) {
            *link = b->next;
            memset((void *)(uintptr_t)b->start, 0xee, b->bytes);
            free((void *)(uintptr_t)b->start);
            free(b);
            return 1;
        }
    }
    return 0;
}

#define IN_CONTEXT(function)                                                                                                   \
    CALL(function);                                                                                                            \
    if (!current) {                                                                                                            \
        note(#function " without a context");                                                                                  \
        return NO_CONTEXT;                                                                                                     \
    }

#ifndef WITHOUT_EXPORT_TABLE
// For NVRTC, which asks a driver for one.
unsigned cuGetExportTable(const void **table, const void *id) { (void)table, (void)id; return INVALID; }
#endif
unsigned cuInit(unsigned flags) { CALL(cuInit); return flags ? INVALID : OK; }
unsigned cuDriverGetVersion(int *version) { CALL(cuDriverGetVersion); *version = VERSION; return OK; }
unsigned cuDeviceGetCount(int *count) { CALL(cuDeviceGetCount); *count = DEVICES; return OK; }
unsigned cuDeviceGet(int *device, int ordinal) {
    CALL(cuDeviceGet);
    if (ordinal < 0 || ordinal >= DEVICES)
        return 101;
    *device = ordinal;
    return OK;
}
unsigned cuDeviceGetName(char *name, int length, int device) {
    CALL(cuDeviceGetName);
    snprintf(name, (size_t)length, "Stub %d", device);
    return OK;
}
unsigned cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALL(cuDeviceGetAttribute);
    // Compute capability 8.6, and 7.5 for the last.
    if (attribute == 75)
        *value = device == DEVICES - 1 ? 7 : 8;
    else if (attribute == 76)
        *value = device == DEVICES - 1 ? 5 : 6;
    else
        return INVALID;
    return OK;
}
unsigned cuDeviceTotalMem_v2(size_t *bytes, int device) {
    CALL(cuDeviceTotalMem_v2);
    (void)device;
    *bytes = MEMORY_BYTES;
    return OK;
}
unsigned cuDevicePrimaryCtxRetain(void **context, int device) {
    CALL(cuDevicePrimaryCtxRetain);
    *context = &context_of_device[device];
    note("+context");
    return OK;
}
unsigned cuDevicePrimaryCtxRelease_v2(int device) { (void)device; note("-context"); current = NULL; return OK; }
unsigned cuCtxSetCurrent(void *context) { CALL(cuCtxSetCurrent); current = context; return OK; }
unsigned cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    IN_CONTEXT(cuMemGetInfo_v2);
    *free_bytes = MEMORY_BYTES / 2;
    *total = MEMORY_BYTES;
    return OK;
}
unsigned cuMemAlloc_v2(address *start, size_t bytes) {
    IN_CONTEXT(cuMemAlloc_v2);
    if (capturing && capturing->capture_mode != 2)
        return CAPTURE;
    if (bytes > MEMORY_BYTES / 2)
        return OUT_OF_MEMORY;
    pthread_mutex_lock(&mutex);
    *start = add_block(bytes, 0);
    pthread_mutex_unlock(&mutex);
    note("+memory");
    return OK;
}
unsigned cuMemFree_v2(address start) {
    IN_CONTEXT(cuMemFree_v2);
    pthread_mutex_lock(&mutex);
    int is_known = remove_block(start, 0);
    pthread_mutex_unlock(&mutex);
    note(is_known ? "-memory" : "cuMemFree of what is not allocated");
    return is_known ? OK : INVALID;
}
unsigned cuMemHostAlloc(void **start, size_t bytes, unsigned flags) {
    IN_CONTEXT(cuMemHostAlloc);
    if (flags)
        return INVALID;
    pthread_mutex_lock(&mutex);
    *start = (void *)(uintptr_t)add_block(bytes, 1);
    pthread_mutex_unlock(&mutex);
    note("+pinned");
    return OK;
}
unsigned cuMemFreeHost(void *start) {
    IN_CONTEXT(cuMemFreeHost);
    pthread_mutex_lock(&mutex);
    int is_known = remove_block((address)(uintptr_t)start, 1);
    pthread_mutex_unlock(&mutex);
    note(is_known ? "-pinned" : "cuMemFreeHost of what is not allocated");
    return is_known ? OK : INVALID;
}
static unsigned copy(address to, address from, size_t bytes, int to_host, stream *s) {
    if (s->capture)
        return CAPTURE;
    pthread_mutex_lock(&mutex);
    int is_known = block_of(to, bytes, to_host) && block_of(from, bytes, !to_host);
    pthread_mutex_unlock(&mutex);
    if (!is_known) {
        note("a copy beyond what is allocated");
        return ILLEGAL_ADDRESS;
    }
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    note("copy %s %zu", to_host ? "to host" : "to device", bytes);
    return OK;
}
unsigned cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, stream *s) {
    IN_CONTEXT(cuMemcpyHtoDAsync_v2);
    return copy(to, (address)(uintptr_t)from, bytes, 0, s);
}
unsigned cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, stream *s) {
    IN_CONTEXT(cuMemcpyDtoHAsync_v2);
    return copy((address)(uintptr_t)to, from, bytes, 1, s);
}
unsigned cuStreamCreate(stream **s, unsigned flags) {
    IN_CONTEXT(cuStreamCreate);
    if (flags != 1)
        return INVALID;
    *s = calloc(1, sizeof **s);
    note("+stream");
    return OK;
}
unsigned cuStreamDestroy_v2(stream *s) { IN_CONTEXT(cuStreamDestroy_v2); free(s); note("-stream"); return OK; }
unsigned cuStreamSynchronize(stream *s) {
    IN_CONTEXT(cuStreamSynchronize);
    note("synchronize");
    return s->capture ? CAPTURE : OK;
}
unsigned cuStreamBeginCapture_v2(stream *s, int mode) {
    IN_CONTEXT(cuStreamBeginCapture_v2);
    if (s->capture)
        return INVALID;
    s->capture = calloc(1, sizeof *s->capture);
    s->capture_mode = mode;
    capturing = s;
    note("+graph");
    return OK;
}
unsigned cuStreamEndCapture(stream *s, graph **g) {
    if (!s->capture)
        return 903;
    *g = s->capture;
    s->capture = NULL;
    capturing = NULL;
    unsigned code = injected("cuStreamEndCapture");
    if (code) {
        note("-graph");
        *g = NULL;
    }
    return code;
}

typedef struct { double ms; int is_timed, is_recorded; } event;
unsigned cuEventCreate(event **e, unsigned flags) {
    IN_CONTEXT(cuEventCreate);
    *e = calloc(1, sizeof **e);
    (*e)->is_timed = !(flags & 2);
    note("+event");
    return OK;
}
unsigned cuEventRecord(event *e, stream *s) {
    IN_CONTEXT(cuEventRecord);
    if (s->capture)
        return CAPTURE;
    e->ms = s->clock_ms;
    e->is_recorded = 1;
    return OK;
}
unsigned cuEventSynchronize(event *e) { IN_CONTEXT(cuEventSynchronize); (void)e; return OK; }
unsigned cuEventDestroy_v2(event *e) { IN_CONTEXT(cuEventDestroy_v2); free(e); note("-event"); return OK; }
unsigned cuEventElapsedTime(float *ms, event *start, event *end) {
    IN_CONTEXT(cuEventElapsedTime);
    if (!start->is_timed || !end->is_timed || !start->is_recorded || !end->is_recorded)
        return 400;
    *ms = (float)(end->ms - start->ms);
    return OK;
}

typedef struct { char name[64]; int shared_bytes; } function;
unsigned cuModuleLoadData(void **module, const char *image) {
    IN_CONTEXT(cuModuleLoadData);
    // What the stand-in of NVRTC gives, or what NVRTC does.
    int is_elf = memcmp(image, "\x7f" "ELF", 4) == 0;
    if (!is_elf && strncmp(image, "CUBIN ", 6))
        return 200;
    *module = strdup(is_elf ? "ELF" : image);
    note("+module %s", (char *)*module);
    return OK;
}
unsigned cuModuleUnload(void *module) { IN_CONTEXT(cuModuleUnload); free(module); note("-module"); return OK; }
unsigned cuModuleGetFunction(function **f, void *module, const char *name) {
    IN_CONTEXT(cuModuleGetFunction);
    (void)module;
    *f = calloc(1, sizeof **f);
    snprintf((*f)->name, sizeof (*f)->name, "%s", name);
    (*f)->shared_bytes = 48 << 10;
    return OK;
}
unsigned cuFuncSetAttribute(function *f, int attribute, int value) {
    IN_CONTEXT(cuFuncSetAttribute);
    if (attribute != 8)
        return INVALID;
    f->shared_bytes = value;
    note("allow %s %d", f->name, value);
    return OK;
}
unsigned cuFuncGetAttribute(int *value, int attribute, function *f) {
    IN_CONTEXT(cuFuncGetAttribute);
    (void)f;
    *value = 1024;
    return attribute == 0 ? OK : INVALID;
}

typedef struct { uint16_t *x; float *y; int count; } widening;
static void run_to_f32(void *data) {
    widening *w = data;
    for (int i = 0; i < w->count; i++)
        w->y[i] = widen(w->x[i]);
}
static void run_nothing(void *data) { (void)data; }

unsigned cuLaunchKernel(function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, stream *s, void **params, void **extra) {
    IN_CONTEXT(cuLaunchKernel);
    if (extra || shared > (unsigned)f->shared_bytes)
        return INVALID;
    note("%s %s (%u %u %u) (%u %u %u) %u", s->capture ? "record" : "launch", f->name, gx, gy, gz, bx, by, bz, shared);
    s->clock_ms += 1;
    if (strcmp(f->name, "to_f32") == 0) {
        widening *w = malloc(sizeof *w);
        *w = (widening){*(uint16_t **)params[0], *(float **)params[1], *(int *)params[2]};
        if (!block_of((address)(uintptr_t)w->x, (size_t)w->count * 2, 0) ||
            !block_of((address)(uintptr_t)w->y, (size_t)w->count * 4, 0))
            return ILLEGAL_ADDRESS;
        enqueue(s, run_to_f32, w);
    } else if (strcmp(f->name, "norm_f32") == 0) {
        // Its arguments, as it would read them.
        note("norm_f32 columns %d eps %g kind %d bias %p", *(int *)params[4], (double)*(float *)params[5], *(int *)params[6],
             *(void **)params[2]);
        enqueue(s, run_nothing, NULL);
    }
    return OK;
}

unsigned cuGraphInstantiateWithFlags(graph **executable, graph *g, unsigned long long flags) {
    IN_CONTEXT(cuGraphInstantiateWithFlags);
    if (flags)
        return INVALID;
    *executable = malloc(sizeof **executable);
    **executable = *g;
    note("+executable");
    return OK;
}
unsigned cuGraphUpload(graph *executable, stream *s) { IN_CONTEXT(cuGraphUpload); (void)executable, (void)s; return OK; }
#ifndef WITHOUT_GRAPHS
unsigned cuGraphLaunch(graph *executable, stream *s) {
    IN_CONTEXT(cuGraphLaunch);
    if (s->capture)
        return CAPTURE;
    note("replay");
    for (operation *o = executable->first; o; o = o->next)
        o->run(o->data);
    return OK;
}
#endif
unsigned cuGraphExecDestroy(graph *executable) { IN_CONTEXT(cuGraphExecDestroy); free(executable); note("-executable"); return OK; }
unsigned cuGraphDestroy(graph *g) { IN_CONTEXT(cuGraphDestroy); free(g); note("-graph"); return OK; }

unsigned cuGetErrorName(unsigned code, const char **name) {
    if (injected("all"))
        return injected("all");
    switch (code) {
    case 2: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return OK;
    case 700: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; return OK;
    case 214: *name = "CUDA_ERROR_ECC_UNCORRECTABLE"; return OK;
    case 999: *name = "CUDA_ERROR_UNKNOWN"; return OK;
    default: *name = NULL; return INVALID;
    }
}
