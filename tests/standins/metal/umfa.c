/*
 * STAND-IN, for tests only: a library with the ABI of universal-metal-flash-attention that behaves
 * as docs/upstream.md says the Metal one does, on a machine without Metal. "GPU" work is done on
 * the CPU, in plain loops, when a command buffer is waited for.
 *
 * What a correct caller never does is recorded as a misuse (standin_misuses), or ends the process
 * where Metal would end it. Behaviours are switched by name (standin_set).
 */
#define _GNU_SOURCE
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

/* ---------------------------------------------------------------- switches */

static struct {
    const char *name;
    atomic_int value;
} switches[] = {
    {"family", 9},          /* GPU family AppleN */
    {"no_device", 0},       /* there is no Metal device */
    {"no_queue", 0},        /* the device makes no queue */
    {"wrong_first_call", 1}, /* the first run of a (Sq, Skv) is slightly wrong */
    {"encode_code", 0},     /* error code of the next encode (4, 5, ...), once */
    {"gpu_error", 0},       /* the next command buffer ends with status 5, once */
    {"abort_on_error", 0},  /* the encoder defect: an encode that fails ends the process */
    {"rejects_asm", 0},     /* the run-time compiler rejects upstream's variant (macOS 26) */
    {"rejects_plain", 0},   /* ... and ours too */
    {"compile_ms", 0},      /* time of each compilation */
    {"encode_us", 0},       /* time of each encode, to let threads meet */
    {"prints", 0},          /* something on standard output per call */
    {"overrun_faults", 0},  /* write all of the output, whatever the buffer's size, up to a guard
                               page: what is else recorded then ends the process */
};

static atomic_int *find_switch(const char *name)
{
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        if (!strcmp(switches[i].name, name))
            return &switches[i].value;
    fprintf(stderr, "stand-in: no switch %s\n", name);
    abort();
}

API void standin_set(const char *name, int value) { atomic_store(find_switch(name), value); }
static int get(const char *name) { return atomic_load(find_switch(name)); }
API int standin_get(const char *name) { return get(name); }

/* ---------------------------------------------------------------- misuses and counts */

static pthread_mutex_t state_lock = PTHREAD_MUTEX_INITIALIZER;
static char misuse_text[1 << 16];
static long counts[8];
enum { ENCODES, COMMITS, WAITS, RUNS, LIVE_COMMANDS, LIVE_BUFFERS, COMPILES, FORWARDS };

static void misuse(const char *text)
{
    pthread_mutex_lock(&state_lock);
    if (strlen(misuse_text) + strlen(text) + 2 < sizeof misuse_text) {
        strcat(misuse_text, text);
        strcat(misuse_text, "\n");
    }
    pthread_mutex_unlock(&state_lock);
}

static void count(int what, long by)
{
    pthread_mutex_lock(&state_lock);
    counts[what] += by;
    pthread_mutex_unlock(&state_lock);
}

API const char *standin_misuses(void) { return misuse_text; }
API void standin_misuse(const char *text) { misuse(text); }
API long standin_count(int what)
{
    pthread_mutex_lock(&state_lock);
    long value = counts[what];
    pthread_mutex_unlock(&state_lock);
    return value;
}

static _Thread_local int pool_depth;
API void standin_pool(int by) { pool_depth += by; }
API int standin_pool_depth(void) { return pool_depth; }

/* ---------------------------------------------------------------- objects */

enum { BUFFER = 0x42554646, COMMANDS = 0x434f4d4d };

typedef struct {
    uint32_t kind;
    bool released;
    char *base;
    size_t length;
} Buffer;

typedef struct {
    Buffer *buffer;
    int64_t offset, strides[4];
    bool strided;
} Tensor;

typedef struct {
    uint32_t kind;
    int state; /* MTLCommandBufferStatus: 0 not enqueued, 3 scheduled, 4 completed, 5 error */
    bool failed, encoded, causal, masked, wrong, low;
    Tensor q, k, v, out, mask;
    int64_t mask_shape[4];
    uint32_t batch, seq_q, seq_kv, heads, head_dim, mask_ndim;
    int mask_type, mask_scalar, input;
    float scale;
} Commands;

/* Objects are never freed, so that a use after release is seen and is no accident. */
API void *standin_buffer(void *base, size_t length)
{
    Buffer *buffer = calloc(1, sizeof *buffer);
    *buffer = (Buffer){.kind = BUFFER, .base = base, .length = length};
    count(LIVE_BUFFERS, 1);
    return buffer;
}
API void standin_buffer_release(Buffer *buffer)
{
    if (!buffer->released)
        count(LIVE_BUFFERS, -1);
    buffer->released = true;
}
API size_t standin_buffer_length(Buffer *buffer) { return buffer->length; }
API bool standin_is_buffer(uint32_t *object) { return *object == BUFFER; }

API void *standin_commands(void)
{
    if (pool_depth == 0)
        misuse("a command buffer was made without an autorelease pool");
    Commands *commands = calloc(1, sizeof *commands);
    commands->kind = COMMANDS;
    count(LIVE_COMMANDS, 1);
    return commands;
}

API void standin_commands_release(Commands *commands)
{
    if (commands->state == 3)
        misuse("a committed command buffer was never waited for");
    count(LIVE_COMMANDS, -1);
}

static Buffer *as_buffer(void *object, const char *what)
{
    Buffer *buffer = object;
    /* A message to something that is no object ends the process on a Mac. */
    if (!buffer || buffer->kind != BUFFER) {
        fprintf(stderr, "stand-in: %s is not an MTLBuffer\n", what);
        abort();
    }
    return buffer;
}

/* ---------------------------------------------------------------- numbers */

static float from_half(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent == 0    ? ldexpf((float)fraction, -24)
                  : exponent == 31 ? (fraction ? NAN : INFINITY)
                                   : ldexpf((float)(fraction + 1024), exponent - 25);
    return bits >> 15 ? -value : value;
}

static float load(const char *at, int precision, int64_t index)
{
    if (precision == 2)
        return ((const float *)at)[index];
    uint16_t bits = ((const uint16_t *)at)[index];
    if (precision == 0)
        return from_half(bits);
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/* To 11 significant bits, as FP16 weights have. */
static double to_low(double x)
{
    int exponent;
    double fraction = frexp(x, &exponent);
    return ldexp(nearbyint(ldexp(fraction, 11)), exponent - 11);
}

static int precision_code(const char *text)
{
    if (!text)
        return 2;
    if (!strcmp(text, "fp16"))
        return 0;
    if (!strcmp(text, "bf16"))
        return 1;
    if (strcmp(text, "fp32"))
        misuse("an unknown precision, which is taken for fp32");
    return 2;
}

/* ---------------------------------------------------------------- the run on the "GPU" */

static int64_t at(const Tensor *t, int64_t b, int64_t h, int64_t s)
{
    return b * t->strides[0] + h * t->strides[1] + s * t->strides[2];
}

static const char *data(const Tensor *t) { return t->buffer->base + t->offset; }

static float mask_value(const Commands *c, const uint32_t where[4])
{
    int64_t index = 0;
    for (uint32_t i = 0; i < c->mask_ndim; i++)
        index += (c->mask_shape[i] == 1 ? 0 : where[4 - c->mask_ndim + i]) * c->mask.strides[i];
    if (c->mask_type == 1)
        return ((const uint8_t *)data(&c->mask))[index] ? 0 : -INFINITY;
    static const int codes[] = {-1, 0, 1, 2}; /* mask scalars to precisions */
    int code = codes[c->mask_scalar];
    return code < 0 ? 0 : load(data(&c->mask), code, index);
}

static void run_row(const Commands *c, uint32_t b, uint32_t h, uint32_t i, float *row, double *w)
{
    double best = -INFINITY, total = 0;
    for (uint32_t j = 0; j < c->seq_kv; j++) {
        double s = 0;
        for (uint32_t d = 0; d < c->head_dim; d++)
            s += (double)load(data(&c->q), c->input, at(&c->q, b, h, i) + d) *
                 load(data(&c->k), c->input, at(&c->k, b, h, j) + d);
        /* Before the scale, and in FP32. */
        if (c->masked)
            s = (float)s + mask_value(c, (uint32_t[4]){b, h, i, j});
        w[j] = s * c->scale;
        if (c->causal && j > i)
            w[j] = -INFINITY; /* top left */
        best = fmax(best, w[j]);
    }
    for (uint32_t j = 0; j < c->seq_kv; j++) {
        w[j] = exp(w[j] - best);
        if (c->low)
            w[j] = to_low(w[j]);
        total += w[j];
    }
    for (uint32_t d = 0; d < c->head_dim; d++) {
        double sum = 0;
        for (uint32_t j = 0; j < c->seq_kv; j++)
            sum += w[j] * load(data(&c->v), c->input, at(&c->v, b, h, j) + d);
        row[d] = (float)(sum / total) * (c->wrong ? 1.05f : 1);
    }
}

static size_t out_bytes(const Commands *c)
{
    return (size_t)c->batch * c->heads * c->seq_q * c->head_dim * 4; /* FP32, always */
}

/* Memory of the output's size that ends at a page that nobody may touch. */
static float *guarded(size_t room, char **map, size_t *mapped)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (room + page - 1) / page * page;
    *mapped = body + page;
    *map = mmap(NULL, *mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*map == MAP_FAILED || mprotect(*map + body, page, PROT_NONE))
        abort();
    return (float *)(*map + body - room);
}

static void run(Commands *c)
{
    size_t room = c->out.buffer->length - (size_t)c->out.offset, need = out_bytes(c), mapped;
    if (!get("overrun_faults") && need > room)
        need = room;
    char *map;
    float *out = guarded(room & ~(size_t)3, &map, &mapped);
    double *weights = malloc(sizeof *weights * c->seq_kv);
    float *row = malloc(sizeof *row * c->head_dim);
    size_t done = 0;
    for (uint32_t b = 0; b < c->batch; b++)
        for (uint32_t h = 0; h < c->heads; h++)
            for (uint32_t i = 0; i < c->seq_q; i++) {
                run_row(c, b, h, i, row, weights);
                for (uint32_t d = 0; d < c->head_dim && done < need / 4; d++)
                    out[done++] = row[d];
            }
    memcpy(c->out.buffer->base + c->out.offset, out, need < room ? need : room);
    munmap(map, mapped);
    free(weights);
    free(row);
    count(RUNS, 1);
}

static atomic_long unfinished; /* command buffers that use the context's mask memory */

API int standin_commit(Commands *c)
{
    if (c->state != 0) {
        misuse("a command buffer was committed twice");
        return 1; /* Metal ends the process */
    }
    if (c->failed)
        misuse("a command buffer was committed after an error code");
    if (!c->encoded && !c->failed)
        misuse("an empty command buffer was committed");
    c->state = 3;
    count(COMMITS, 1);
    if (c->encoded) {
        size_t room = c->out.buffer->length - (size_t)c->out.offset, need = out_bytes(c);
        memset(c->out.buffer->base + c->out.offset, 0xff, need < room ? need : room); /* NaN */
    }
    return 0;
}

API void standin_wait(Commands *c)
{
    count(WAITS, 1);
    if (c->state != 3) {
        misuse("waiting for a command buffer that was not committed");
        return;
    }
    const Tensor *all[] = {&c->q, &c->k, &c->v, &c->out, &c->mask};
    for (int i = 0; i < 5; i++)
        if (c->encoded && all[i]->buffer && all[i]->buffer->released)
            misuse("a buffer was released while the GPU used it");
    if (c->encoded) {
        if (c->masked)
            atomic_fetch_sub(&unfinished, 1);
        int error = atomic_exchange(find_switch("gpu_error"), 0);
        if (!error)
            run(c);
        c->state = error ? 5 : 4;
    } else
        c->state = 5;
}

API int standin_status(Commands *c) { return c->state; }

/* ---------------------------------------------------------------- shaders */

typedef struct {
    char key[65];
    char variant[12], place[12];
} Origin;
static Origin origins[256];
static int origin_count;
static uint32_t lengths[1024][2]; /* (Sq, Skv) that have run */
static int length_count;

/* The masking strategy depends on the longer length; the rest of the source on these. */
static bool compile(const Commands *c)
{
    char text[200], key[65];
    uint32_t longest = c->seq_q > c->seq_kv ? c->seq_q : c->seq_kv;
    snprintf(text, sizeof text, "%u %d %d %.9g %d %d", c->head_dim, c->input, c->low, c->scale,
             longest <= 256, get("family"));
    uint64_t hash = 1469598103934665603u;
    for (char *p = text; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 1099511628211u;
    snprintf(key, sizeof key, "%016llx%016llx%016llx%016llx", (unsigned long long)hash,
             (unsigned long long)~hash, (unsigned long long)hash * 3, (unsigned long long)hash * 5);
    for (int i = 0; i < origin_count; i++)
        if (!strcmp(origins[i].key, key))
            return strcmp(origins[i].place, "failed");
    usleep((useconds_t)get("compile_ms") * 1000);
    count(COMPILES, 1);
    Origin *o = &origins[origin_count++ % 256];
    bool plain = get("rejects_asm"), failed = plain && get("rejects_plain");
    strcpy(o->key, key);
    strcpy(o->variant, plain && !failed ? "plain" : "upstream");
    strcpy(o->place, failed ? "failed" : "runtime");
    return !failed;
}

API int32_t mfa_shader_origins(char *buffer, long size)
{
    char *text = malloc(256 * 300 + 3);
    size_t end = (size_t)sprintf(text, "[");
    for (int i = 0; i < origin_count && i < 256; i++) {
        bool tried =
            strcmp(origins[i].variant, "plain") == 0 || !strcmp(origins[i].place, "failed");
        end += (size_t)sprintf(text + end,
                               "%s{\"attempts\":[%s],\"key\":\"%s\",\"milliseconds\":1.5,"
                               "\"origin\":\"%s\",\"variant\":\"%s\"}",
                               i ? "," : "", tried ? "\"runtime (upstream): illegal __asm\"" : "",
                               origins[i].key, origins[i].place, origins[i].variant);
    }
    end += (size_t)sprintf(text + end, "]") + 1;
    if (buffer && size >= (long)end)
        memcpy(buffer, text, end);
    free(text);
    return (int32_t)end;
}

/* ---------------------------------------------------------------- the published interface */

static int context_object;
API int32_t mfa_create_context(void **context)
{
    if (get("no_device"))
        return 3;
    *context = &context_object;
    return 0;
}
API void mfa_destroy_context(void *context) { (void)context; }

static Tensor tensor(void *object, int64_t offset, const int64_t *strides, const char *what,
                     uint32_t heads, uint32_t seq, uint32_t dim)
{
    Tensor t = {.buffer = as_buffer(object, what), .offset = offset, .strided = strides != NULL};
    if (!strides) {
        misuse("no strides: the heads of K and V are found with Sq");
        int64_t usual[4] = {(int64_t)heads * seq * dim, (int64_t)seq * dim, dim, 1};
        memcpy(t.strides, usual, sizeof usual);
        return t;
    }
    memcpy(t.strides, strides, sizeof t.strides);
    if (strides[3] != 1)
        misuse("the last stride is not 1");
    for (int i = 0; i < 4; i++)
        if (strides[i] <= 0)
            misuse("a stride that is not positive");
    return t;
}

static void check_reach(const Tensor *t, const Commands *c, uint32_t seq, int size)
{
    int64_t last = at(t, c->batch - 1, c->heads - 1, seq - 1) + c->head_dim;
    if (t->offset + last * size > (int64_t)t->buffer->length)
        misuse("an input is over-read");
    if (t->buffer->released)
        misuse("a released buffer was encoded");
    /* Kernels load two elements at once where the step from row to row is even. */
    bool odd = t->offset / size % 2 || (c->heads > 1 && t->strides[1] % 2) ||
               (c->batch > 1 && t->strides[0] % 2);
    if (odd && t->strides[2] % 2 == 0)
        misuse("a pair of elements is loaded misaligned");
}

static atomic_int inside;

API int32_t mfa_attention_encode_mtl(
    void *context, void *command_buffer, void *q, int64_t q_offset, const int64_t *q_strides,
    void *k, int64_t k_offset, const int64_t *k_strides, void *v, int64_t v_offset,
    const int64_t *v_strides, void *out, int64_t out_offset, void *mask, int64_t mask_offset,
    const int64_t *mask_shape, const int64_t *mask_strides, uint32_t mask_ndim, int mask_type,
    int mask_scalar, uint32_t batch, uint32_t seq_q, uint32_t seq_kv, uint32_t heads,
    uint16_t head_dim, float scale, bool causal, const char *input, const char *intermediate)
{
    if (!context || !command_buffer || !q || !k || !v || !out)
        return 1;
    if (atomic_fetch_add(&inside, 1))
        misuse("two threads are inside the library");
    if (atomic_load(&unfinished))
        misuse("the mask memory of an unfinished call is written to");
    count(ENCODES, 1);
    usleep((useconds_t)get("encode_us"));
    if (pool_depth == 0)
        misuse("a call without an autorelease pool");
    Commands *c = command_buffer;
    if (c->kind != COMMANDS)
        abort();
    if (c->state != 0)
        misuse("encoding into a committed command buffer");
    /* What traps in Swift. */
    if (!batch || !head_dim || head_dim > 384 ||
        (mask_type && (double)batch * heads * seq_q * seq_kv >= 4294967296.0)) {
        fprintf(stderr, "stand-in: a problem that ends the process\n");
        abort();
    }
    c->batch = batch, c->seq_q = seq_q, c->seq_kv = seq_kv, c->heads = heads;
    c->head_dim = head_dim, c->scale = scale, c->causal = causal;
    c->input = precision_code(input), c->low = precision_code(intermediate) != 2;
    c->q = tensor(q, q_offset, q_strides, "q", heads, seq_q, head_dim);
    c->k = tensor(k, k_offset, k_strides, "k", heads, seq_q, head_dim); /* Sq, not Skv */
    c->v = tensor(v, v_offset, v_strides, "v", heads, seq_q, head_dim);
    int size = c->input == 2 ? 4 : 2;
    check_reach(&c->q, c, seq_q, size);
    if (k_strides)
        check_reach(&c->k, c, seq_kv, size);
    if (v_strides)
        check_reach(&c->v, c, seq_kv, size);
    c->out = (Tensor){.buffer = as_buffer(out, "out"), .offset = out_offset};
    if ((size_t)out_offset + out_bytes(c) > c->out.buffer->length)
        misuse("the FP32 output does not fit its buffer");
    if (c->input == 0 && c->low)
        misuse("FP16 scores");
    if (mask_type) {
        if (!mask || !mask_shape || !mask_strides || !mask_ndim || mask_ndim > 4) {
            atomic_fetch_sub(&inside, 1);
            c->failed = true;
            return 1;
        }
        c->masked = true, c->mask_type = mask_type, c->mask_scalar = mask_scalar;
        c->mask_ndim = mask_ndim;
        c->mask = (Tensor){.buffer = as_buffer(mask, "mask"), .offset = mask_offset};
        memcpy(c->mask_shape, mask_shape, mask_ndim * sizeof *mask_shape);
        memcpy(c->mask.strides, mask_strides, mask_ndim * sizeof *mask_strides);
        if (mask_type == 1)
            misuse("a bool mask, which becomes -inf under fast math");
    }
    int code = atomic_exchange(find_switch("encode_code"), 0);
    if (!code && !compile(c))
        code = 5;
    if (get("prints") || code)
        printf("stand-in: a message on standard output\n");
    if (code && get("abort_on_error"))
        abort();
    c->failed = code != 0, c->encoded = code == 0;
    if (c->encoded) {
        bool known = false;
        for (int i = 0; i < length_count; i++)
            known |= lengths[i][0] == seq_q && lengths[i][1] == seq_kv;
        c->wrong = !known && get("wrong_first_call");
        if (!known && length_count < 1024) {
            lengths[length_count][0] = seq_q;
            lengths[length_count++][1] = seq_kv;
        }
        if (c->masked)
            atomic_fetch_add(&unfinished, 1);
    }
    atomic_fetch_sub(&inside, 1);
    return code;
}

/* Below Apple9 it is wrong; a caller of this project has no reason to use it at all. */
API int32_t mfa_attention_forward(void *context, ...)
{
    (void)context;
    count(FORWARDS, 1);
    misuse("mfa_attention_forward was called");
    return 5;
}

API const char *mfa_error_string(int code)
{
    static const char *texts[] = {"Success",
                                  "Invalid arguments",
                                  "Memory allocation failed",
                                  "Device not supported",
                                  "Kernel compilation failed",
                                  "Execution failed"};
    return strdup(code >= 0 && code <= 5 ? texts[code] : "Unknown error");
}

API bool mfa_is_device_supported(void) { return !get("no_device"); }
API void mfa_get_version(int *major, int *minor, int *patch) { *major = 1, *minor = *patch = 0; }
API double mfa_get_gpu_latency(void *context) { return context ? 0.001 : 0; }
API int32_t mfa_create_buffer(void *c, size_t size, void **out) { return c && size && out ? 5 : 1; }
API int32_t mfa_buffer_from_ptr(void *c, void *p, size_t n, void **out)
{
    return c && p && n && out ? 5 : 1;
}
API int32_t mfa_buffer_from_ptr_with_strides(void *c, void *p, size_t n, const int64_t *shape,
                                             const int64_t *strides, uint32_t ndim, void **out)
{
    return c && p && n && shape && strides && ndim && out ? 5 : 1;
}
API void *mfa_buffer_contents(void *buffer) { return buffer ? ((Buffer *)buffer)->base : NULL; }
API void mfa_destroy_buffer(void *buffer) { (void)buffer; }

/* Everything as in a new process. */
API void standin_reset(void)
{
    static const struct {
        const char *name;
        int value;
    } initial[] = {{"family", 9}, {"wrong_first_call", 1}};
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        atomic_store(&switches[i].value, 0);
    for (size_t i = 0; i < 2; i++)
        standin_set(initial[i].name, initial[i].value);
    pthread_mutex_lock(&state_lock);
    misuse_text[0] = 0;
    for (int i = 0; i < COMPILES + 2; i++)
        if (i != LIVE_COMMANDS && i != LIVE_BUFFERS)
            counts[i] = 0;
    pthread_mutex_unlock(&state_lock);
    origin_count = length_count = 0;
    atomic_store(&unfinished, 0);
    atomic_store(&inside, 0);
}
