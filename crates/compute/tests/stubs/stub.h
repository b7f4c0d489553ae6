// Shared by the libraries that stand in for NVIDIA's in tests: streams that do at once what they are asked for, or record it,
// in the memory of the host; a log of all calls; and errors on request.
//
// STUB_LOG names the file that calls are appended to; STUB_FAIL one that holds "FUNCTION CODE", with "all" for every function.

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct operation {
    void (*run)(void *);
    void *data;
    struct operation *next;
} operation;

typedef struct {
    operation *first, *last;
} graph;

typedef struct {
    graph *capture;
    int capture_mode;
    double clock_ms;
} stream;

// What does not end with its first run stays: a recorded operation runs again.
static inline void enqueue(stream *s, void (*run)(void *), void *data) {
    if (!s->capture) {
        run(data);
        return;
    }
    operation *o = calloc(1, sizeof *o);
    o->run = run;
    o->data = data;
    if (s->capture->last)
        s->capture->last->next = o;
    else
        s->capture->first = o;
    s->capture->last = o;
}

static inline void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
#include <stdarg.h>
static inline void note(const char *format, ...) {
    const char *path = getenv("STUB_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file)
        return;
    char line[512];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    fprintf(file, "%s\n", line);
    fclose(file);
}

// The code that FUNCTION is to fail with, or 0.
static inline unsigned injected(const char *function) {
    const char *path = getenv("STUB_FAIL");
    FILE *file = path ? fopen(path, "r") : NULL;
    char name[128] = "";
    unsigned code = 0;
    if (file) {
        if (fscanf(file, "%127s %u", name, &code) != 2)
            code = 0;
        fclose(file);
    }
    return strcmp(name, function) == 0 || strcmp(name, "all") == 0 ? code : 0;
}

#define CALL(function)                                                                                                         \
    do {                                                                                                                       \
        unsigned code_ = injected(#function);                                                                                  \
        if (code_) {                                                                                                           \
            note(#function " fails with %u", code_);                                                                           \
            return code_;                                                                                                      \
        }                                                                                                                      \
    } while (0)

static inline float widen(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
