// A libcuda for the tests of src/cuda.rs: one device whose memory is the host's, and one kernel, argmax.
//
// It runs work as late as the real driver may, and refuses what the real driver may refuse:
//
// - Copies, fills, launches and graphs wait in a queue until the stream is synchronised. So memory that is reused too
//   early is found.
// - Every call needs the context to be current on its thread.
// - While a thread records, calls that the driver calls unsafe fail and invalidate the recording, unless the thread is in
//   relaxed mode.
//
// At the end it prints what was not freed.
//
// FAKE_LIBCUDA is a list of settings: version=12090 capability=75 devices=0 memory=1000000,
// fail=cuLaunchKernel:701:2 (the second call of cuLaunchKernel returns 701), and carveout=32768 (launches with so many
// bytes of shared memory, and only those, must have asked for the largest carve-out before).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, UNSUPPORTED = 900, INVALIDATED = 901 };
enum { THREAD_LOCAL = 1, RELAXED = 2 };

// ---- settings -------------------------------------------------------------------------------------------

static long setting(const char *name, long otherwise) {
    const char *all = getenv("FAKE_LIBCUDA"), *at = all ? strstr(all, name) : NULL;
    return at ? atol(at + strlen(name)) : otherwise;
}

static Result planned(const char *function) {
    static int calls;
    const char *all = getenv("FAKE_LIBCUDA"), *at = all ? strstr(all, "fail=") : NULL;
    size_t length = strlen(function);
    if (!at || strncmp(at + 5, function, length) != 0 || at[5 + length] != ':') return SUCCESS;
    int code = 0, nth = 0;
    sscanf(at + 5 + length, ":%d:%d", &code, &nth);
    return ++calls == nth ? code : SUCCESS;
}

// ---- the context ----------------------------------------------------------------------------------------

static int context, stream_handle, n_retained, n_streams, n_modules, n_pinned, n_allocated, n_graphs, n_executables;
static _Thread_local void *current;
static _Thread_local int capture_mode = THREAD_LOCAL;

// The first error from 700 to 719, but for 701, is that of all later calls, too.
static Result lost;

static Result entered(const char *function) {
    if (lost != SUCCESS) return lost;
    if (current != &context) return INVALID_CONTEXT;
    Result result = planned(function);
    if (result >= 700 && result <= 719 && result != 701) lost = result;
    return result;
}

#define CALL(function)                              \
    do {                                            \
        Result result = entered(function);          \
        if (result != SUCCESS) return result;       \
    } while (0)

Result cuInit(unsigned flags) { return flags != 0 ? INVALID_VALUE : setting("devices=", 1) == 0 ? NO_DEVICE : planned("cuInit"); }
Result cuDriverGetVersion(int *version) { return *version = setting("version=", 99990), SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = setting("devices=", 1), SUCCESS; }
Result cuDeviceGet(int *device, int ordinal) { return *device = ordinal + 40, SUCCESS; }
Result cuDeviceGetName(char *name, int size, int device) {
    return snprintf(name, size, "Fake %d", device), SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    return *bytes = setting("memory=", 1 << 30), SUCCESS;
}
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    long capability = setting("capability=", 90);
    switch (attribute) {
        case 16: *value = 132; break;
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 97: *value = 232448; break;
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **out, int device) {
    if (device != 40) return INVALID_VALUE;
    return ++n_retained, *out = &context, planned("cuDevicePrimaryCtxRetain");
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
    if (device != 40) return INVALID_VALUE;
    if (--n_retained > 0) return SUCCESS;
    int left = n_streams + n_modules + n_pinned + n_allocated + n_graphs + n_executables;
    // The memory of a lost context is freed with it.
    fprintf(stderr, "\nlibcuda: left %d, current %d\n", lost == SUCCESS ? left : 0, current == &context);
    return SUCCESS;
}
Result cuCtxGetCurrent(void **out) { return *out = current, SUCCESS; }
Result cuCtxSetCurrent(void *to) { return current = to, SUCCESS; }

Result cuGetErrorName(Result result, const char **name) {
    *name = result == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : result == 7000 ? NULL : "CUDA_ERROR_FAKE";
    return *name ? SUCCESS : INVALID_VALUE;
}
Result cuGetErrorString(Result result, const char **text) {
    *text = result == 7000 ? NULL : "as planned";
    return *text ? SUCCESS : INVALID_VALUE;
}

// ---- the queue, and recordings --------------------------------------------------------------------------

typedef struct {
    enum { COPY, FILL, ARGMAX } kind;
    uint8_t *to;
    const uint8_t *from;
    size_t bytes;
    int byte;
    uint8_t params[24];
    unsigned rows;
} Work;

typedef struct {
    Work work[64];
    int n, spoiled;
} Graph;

static Graph queue, *recording;

static Result spoil(void) {
    if (!recording || capture_mode == RELAXED) return SUCCESS;
    return recording->spoiled = 1, UNSUPPORTED;
}

static void run(const Work *work) {
    if (work->kind == COPY) memmove(work->to, work->from, work->bytes);
    if (work->kind == FILL) memset(work->to, work->byte, work->bytes);
    if (work->kind != ARGMAX) return;
    uint64_t addresses[2];
    uint32_t vocab;
    memcpy(addresses, work->params, 16);
    memcpy(&vocab, work->params + 16, 4);
    const float *logits = (const float *)addresses[0];
    uint32_t *tokens = (uint32_t *)addresses[1];
    for (uint32_t row = 0; row < work->rows; ++row, logits += vocab) {
        tokens[row] = 0;
        for (uint32_t i = 1; i < vocab; ++i)
            if (logits[i] > logits[tokens[row]]) tokens[row] = i;
    }
}

static void drain(void) {
    for (int i = 0; i < queue.n; ++i) run(&queue.work[i]);
    queue.n = 0;
}

static Result enqueue(Work work) {
    Graph *to = recording ? recording : &queue;
    if (to->n == 64) return INVALID_VALUE;
    return to->work[to->n++] = work, SUCCESS;
}

Result cuStreamCreate(void **out, unsigned flags) {
    CALL("cuStreamCreate");
    return flags != 1 ? INVALID_VALUE : (++n_streams, *out = &stream_handle, SUCCESS);
}
Result cuStreamDestroy_v2(void *stream) {
    CALL("cuStreamDestroy");
    return stream != &stream_handle ? INVALID_HANDLE : (--n_streams, SUCCESS);
}
Result cuStreamSynchronize(void *stream) {
    CALL("cuStreamSynchronize");
    if (stream != &stream_handle) return INVALID_HANDLE;
    if (spoil() != SUCCESS) return UNSUPPORTED;
    return drain(), SUCCESS;
}
Result cuStreamBeginCapture_v2(void *stream, int mode) {
    CALL("cuStreamBeginCapture");
    if (stream != &stream_handle || mode != THREAD_LOCAL) return INVALID_VALUE;
    if (recording) return ILLEGAL_STATE;
    return recording = calloc(1, sizeof(Graph)), ++n_graphs, SUCCESS;
}
Result cuStreamEndCapture(void *stream, void **out) {
    CALL("cuStreamEndCapture");
    if (stream != &stream_handle || !recording) return ILLEGAL_STATE;
    *out = recording->spoiled ? NULL : recording;
    if (!*out) free(recording), --n_graphs;
    recording = NULL;
    return *out ? SUCCESS : INVALIDATED;
}
Result cuThreadExchangeStreamCaptureMode(int *mode) {
    int before = capture_mode;
    return capture_mode = *mode, *mode = before, SUCCESS;
}
Result cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
    CALL("cuGraphInstantiate");
    if (flags != 0) return INVALID_VALUE;
    memcpy(*out = malloc(sizeof(Graph)), graph, sizeof(Graph));
    return ++n_executables, SUCCESS;
}
Result cuGraphDestroy(void *graph) { return free(graph), --n_graphs, SUCCESS; }
Result cuGraphExecDestroy(void *graph) {
    CALL("cuGraphExecDestroy");
    return free(graph), --n_executables, SUCCESS;
}
Result cuGraphLaunch(void *graph, void *stream) {
    CALL("cuGraphLaunch");
    if (stream != &stream_handle) return INVALID_HANDLE;
    const Graph *from = graph;
    for (int i = 0; i < from->n; ++i) enqueue(from->work[i]);
    return SUCCESS;
}

// ---- memory ---------------------------------------------------------------------------------------------

static size_t allocated;

Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CALL("cuMemGetInfo");
    *total = setting("memory=", 1 << 30);
    return *free_bytes = *total - allocated, SUCCESS;
}
Result cuMemAlloc_v2(unsigned long long *out, size_t bytes) {
    CALL("cuMemAlloc");
    if (spoil() != SUCCESS) return UNSUPPORTED;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > (size_t)setting("memory=", 1 << 30) - allocated) return OUT_OF_MEMORY;
    size_t *block = aligned_alloc(256, (bytes + 511) / 256 * 256);
    block[0] = bytes;
    allocated += bytes, ++n_allocated;
    return *out = (unsigned long long)block + 256, SUCCESS;
}
Result cuMemFree_v2(unsigned long long at) {
    CALL("cuMemFree");
    if (spoil() != SUCCESS) return UNSUPPORTED;
    drain();
    size_t *block = (size_t *)(at - 256);
    allocated -= block[0], --n_allocated;
    return free(block), SUCCESS;
}
Result cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    CALL("cuMemHostAlloc");
    (void)flags;
    return *out = malloc(bytes), ++n_pinned, SUCCESS;
}
Result cuMemFreeHost(void *at) {
    CALL("cuMemFreeHost");
    return free(at), --n_pinned, SUCCESS;
}
static Result copy(void *to, const void *from, size_t bytes, void *stream) {
    Work work = {.kind = COPY, .to = to, .from = from, .bytes = bytes};
    return stream == &stream_handle && bytes > 0 ? enqueue(work) : INVALID_VALUE;
}
Result cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, void *stream) {
    CALL("cuMemcpyHtoD");
    return copy((void *)to, from, bytes, stream);
}
Result cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream) {
    CALL("cuMemcpyDtoH");
    return copy(to, (const void *)from, bytes, stream);
}
Result cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *stream) {
    CALL("cuMemcpyDtoD");
    return copy((void *)to, (const void *)from, bytes, stream);
}
Result cuMemsetD8Async(unsigned long long at, unsigned char byte, size_t bytes, void *stream) {
    CALL("cuMemsetD8");
    Work work = {.kind = FILL, .to = (uint8_t *)at, .bytes = bytes, .byte = byte};
    return stream == &stream_handle && bytes > 0 ? enqueue(work) : INVALID_VALUE;
}
// Keeps what it was told, in a row.
Result cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *sizes,
                              const uint64_t *strides, const uint32_t *boxes, const uint32_t *steps, int interleave,
                              int swizzle, int promotion, int fill) {
    CALL("cuTensorMapEncodeTiled");
    if (rank != 2 || steps[0] != 1 || steps[1] != 1 || interleave != 0 || fill != 0) return INVALID_VALUE;
    if (strides[0] % 16 != 0 || boxes[1] > 256) return INVALID_VALUE;
    uint64_t kept[16] = {type, (uint64_t)address, sizes[0], sizes[1], strides[0], boxes[0], boxes[1], swizzle, promotion};
    return memcpy(map, kept, sizeof kept), SUCCESS;
}

// ---- code -----------------------------------------------------------------------------------------------

// A kernel that is there, and one whose parameters are of another size than the caller thinks.
static struct Function {
    const char *name;
    size_t bytes;
    int most_shared, carveout;
} functions[] = {{"argmax", 24, 49152, -1}, {"sample_top", 1000, 49152, -1}};

Result cuModuleLoadData(void **out, const void *image) {
    CALL("cuModuleLoadData");
    if (spoil() != SUCCESS) return UNSUPPORTED;
    if (*(const uint32_t *)image != 0xba55ed50u) return INVALID_IMAGE;
    return *out = malloc(1), ++n_modules, SUCCESS;
}
Result cuModuleUnload(void *module) {
    CALL("cuModuleUnload");
    return free(module), --n_modules, SUCCESS;
}
Result cuModuleGetFunction(void **out, void *module, const char *name) {
    CALL("cuModuleGetFunction");
    (void)module;
    for (int i = 0; i < 2; ++i)
        if (strcmp(functions[i].name, name) == 0) return *out = &functions[i], SUCCESS;
    return NOT_FOUND;
}
Result cuFuncGetParamInfo(void *function, size_t index, size_t *offset, size_t *bytes) {
    CALL("cuFuncGetParamInfo");
    return index != 0 ? INVALID_VALUE : (*offset = 0, *bytes = ((struct Function *)function)->bytes, SUCCESS);
}
Result cuFuncGetAttribute(int *value, int attribute, void *function) {
    CALL("cuFuncGetAttribute");
    (void)function;
    return attribute != 1 ? INVALID_VALUE : (*value = 1024, SUCCESS);
}
Result cuFuncSetAttribute(void *function, int attribute, int value) {
    CALL("cuFuncSetAttribute");
    struct Function *of = function;
    if (attribute == 8 && value <= 232448 - 1024) return of->most_shared = value, SUCCESS;
    // Once is enough.
    if (attribute == 9 && value == 100 && of->carveout == -1) return of->carveout = value, SUCCESS;
    return INVALID_VALUE;
}
#ifndef WITHOUT_LAUNCH
Result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                      unsigned shared, void *stream, void **params, void **extra) {
    CALL("cuLaunchKernel");
    if (function != &functions[0] || stream != &stream_handle || extra) return INVALID_VALUE;
    if (x == 0 || y != 1 || z != 1 || tx == 0 || tx > 1024 || ty != 1 || tz != 1) return INVALID_VALUE;
    if (shared > (unsigned)functions[0].most_shared) return INVALID_VALUE;
    long least = setting("carveout=", 0);
    if (least && functions[0].carveout != (shared < least ? -1 : 100)) return INVALID_VALUE;
    Work work = {.kind = ARGMAX, .rows = x};
    memcpy(work.params, params[0], 24);
    return enqueue(work);
}
#endif
