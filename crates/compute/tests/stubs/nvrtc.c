// Stands in for libnvrtc: "compiles" to a text that tells the file and the architecture.

#include "stub.h"

#ifndef MAJOR
#define MAJOR 12
#endif

typedef struct { char name[64], cubin[256], log[256]; } program;

unsigned nvrtcVersion(int *major, int *minor) { CALL(nvrtcVersion); *major = MAJOR; *minor = 8; return 0; }
const char *nvrtcGetErrorString(unsigned code) { return code == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
unsigned nvrtcCreateProgram(program **p, const char *text, const char *name, int count, const char *const *headers,
                            const char *const *names) {
    CALL(nvrtcCreateProgram);
    (void)text;
    if (count || headers || names)
        return 1;
    *p = calloc(1, sizeof **p);
    snprintf((*p)->name, sizeof (*p)->name, "%s", name);
    note("+program");
    return 0;
}
unsigned nvrtcCompileProgram(program *p, int count, const char *const *options) {
    unsigned code = injected("nvrtcCompileProgram");
    const char *architecture = "none";
    for (int i = 0; i < count; i++)
        if (strncmp(options[i], "--gpu-architecture=", 19) == 0)
            architecture = options[i] + 19;
    snprintf(p->log, sizeof p->log, code ? "%s(7): error: a stub is told to fail" : "%s: fine", p->name);
    snprintf(p->cubin, sizeof p->cubin, "CUBIN %s %s", p->name, architecture);
    note("compile %s %s", p->name, architecture);
    return code;
}
unsigned nvrtcGetProgramLogSize(program *p, size_t *size) { *size = strlen(p->log) + 1; return 0; }
unsigned nvrtcGetProgramLog(program *p, char *log) { strcpy(log, p->log); return 0; }
unsigned nvrtcGetCUBINSize(program *p, size_t *size) { *size = strlen(p->cubin) + 1; return 0; }
unsigned nvrtcGetCUBIN(program *p, char *cubin) { strcpy(cubin, p->cubin); return 0; }
unsigned nvrtcDestroyProgram(program **p) { free(*p); *p = NULL; note("-program"); return 0; }
