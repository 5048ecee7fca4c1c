/* Tests of loading, its options and errors, and of the properties of a model. */
#include "check.h"

#include <sys/stat.h>

static void write_file(const context *c, const char *name, const char *text) {
    char path[1024];
    FILE *file;
    snprintf(path, sizeof path, "%s/%s", c->scratch, name);
    file = fopen(path, "wb");
    CHECK(file != NULL);
    CHECK(fwrite(text, 1, strlen(text), file) == strlen(text));
    fclose(file);
}

static void versions(void) {
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", WELM_VERSION_MAJOR, WELM_VERSION_MINOR, WELM_VERSION_PATCH);
    CHECK(strcmp(welm_version(), version) == 0);
    CHECK(strcmp(welm_status_name(WELM_QUEUE_FULL), "WELM_QUEUE_FULL") == 0);
    CHECK(strcmp(welm_status_name(1000), "unknown status") == 0);
}

static void config(const context *c) {
    const welm_config *config = welm_model_config(c->model);
    size_t i;
    CHECK(strcmp(config->family, "welm") == 0);
    CHECK(strstr(config->backend, "cpu") != NULL);
    CHECK(config->vocab_size == 7040 && config->dim == 256 && config->n_layers == 6);
    CHECK(config->n_heads == 4 && config->n_kv_heads == 4 && config->head_dim == 64);
    CHECK(config->hidden_dim == 1024 && config->max_context == 512 && config->n_params == 6541312);
    CHECK(config->has_tokenizer && config->n_eos > 0);
    for (i = 0; i < config->n_eos; i++) CHECK(welm_model_is_special(c->model, config->eos_token_ids[i]));
    CHECK(welm_model_config(NULL) == NULL);
}

static void memory(const context *c) {
    welm_load_options options = load_options();
    struct { welm_estimate e; uint64_t newer; } wide = {0};
    struct { size_t struct_size; uint64_t mapped_bytes, next; } narrow = {0};
    welm_estimate planned, taken;
    planned.struct_size = taken.struct_size = sizeof planned;
    OK(welm_model_estimate(c->nano, &options, &planned, &error));
    OK(welm_model_memory(c->model, &taken, &error));
    CHECK(memcmp(&planned, &taken, sizeof planned) == 0);
    CHECK(taken.total_bytes
          == taken.mapped_bytes + taken.converted_bytes + taken.cache_bytes + taken.scratch_bytes);
    CHECK(taken.context_tokens == 512 && taken.cache_tokens == 8 * 512);

    /* A program that was compiled with an older or newer header. */
    narrow.struct_size = 16;
    narrow.next = 7;
    OK(welm_model_memory(c->model, (welm_estimate *)(void *)&narrow, &error));
    CHECK(narrow.struct_size == 16 && narrow.mapped_bytes == taken.mapped_bytes && narrow.next == 7);
    wide.e.struct_size = sizeof wide;
    wide.newer = 7;
    OK(welm_model_memory(c->model, &wide.e, &error));
    CHECK(wide.e.struct_size == sizeof wide && wide.e.cache_tokens == taken.cache_tokens && wide.newer == 0);
    taken.struct_size = 0;
    FAILS(WELM_INVALID_ARGUMENT, "`memory->struct_size`: expected 64", welm_model_memory(c->model, &taken, &error));
}

typedef struct progress_state {
    uint64_t calls, last, total;
    bool go_on;
} progress_state;

static bool count_progress(void *data, uint64_t done_bytes, uint64_t total_bytes) {
    progress_state *state = data;
    CHECK(done_bytes >= state->last && done_bytes <= total_bytes);
    state->calls++;
    state->last = done_bytes;
    state->total = total_bytes;
    return state->go_on;
}

static void progress(const context *c) {
    progress_state state = {0, 0, 0, true};
    welm_load_options options = load_options();
    welm_model *model;
    options.progress = count_progress;
    options.progress_data = &state;
    welm_model_free(load(c->nano, &options));
    CHECK(state.calls > 1 && state.last == state.total);

    memset(&state, 0, sizeof state);
    model = UNTOUCHED;
    FAILS(WELM_LOAD_CANCELLED, "cancelled", welm_model_load(c->nano, &options, &model, &error));
    CHECK(state.calls == 1 && model == UNTOUCHED);
}

static void options_are_used(const context *c) {
    welm_load_options options = load_options();
    welm_estimate memory;
    welm_model *model, *other;
    memory.struct_size = sizeof memory;
    options.isa = "scalar";
    options.dtype = "auto";
    options.activations = "int16";
    options.cache_dtype = "f32";
    options.threads = 1;
    options.context_tokens = 64;
    options.cache_tokens = 128;
    model = load(c->nano, &options);
    OK(welm_model_memory(model, &memory, &error));
    CHECK(memory.context_tokens == 64 && memory.cache_tokens == 128);
    CHECK(strstr(welm_model_config(model)->backend, "scalar") != NULL);

    /* The engine lives as long as one handle. */
    other = welm_model_clone(model);
    CHECK(strcmp(welm_model_config(model)->backend, welm_model_config(other)->backend) == 0);
    welm_model_free(model);
    CHECK(strcmp(welm_model_config(other)->family, "welm") == 0);
    CHECK(stats(other).open == 0);
    welm_model_free(other);
}

/* One option set by an assignment. */
#define REFUSED(status, text, set)                                                       \
    do {                                                                                 \
        welm_load_options options = load_options();                                      \
        welm_model *model = UNTOUCHED;                                                   \
        options.set;                                                                     \
        FAILS(status, text, welm_model_load(c->nano, &options, &model, &error));         \
        CHECK(model == UNTOUCHED);                                                       \
    } while (0)

static void options_are_checked(const context *c) {
    REFUSED(WELM_INVALID_OPTION, "`device`", device = "tpu");
    REFUSED(WELM_INVALID_OPTION, "`dtype`", dtype = "int3");
    REFUSED(WELM_INVALID_OPTION, "`cache_dtype`", cache_dtype = "int8");
    REFUSED(WELM_INVALID_OPTION, "`activations`", activations = "int4");
    REFUSED(WELM_INVALID_OPTION, "`activations`", activations = "int8_rotated");
    REFUSED(WELM_UNAVAILABLE, "cuda", device = "cuda:99");
    REFUSED(WELM_UNAVAILABLE, "sse2", isa = "sse2");
    REFUSED(WELM_INVALID_UTF8, "`device` is no UTF-8 from byte 2", device = "cp\xff");
    REFUSED(WELM_INVALID_OPTION, "`threads`", threads = 5000);
    REFUSED(WELM_INVALID_OPTION, "`context_tokens`", context_tokens = 513);
    REFUSED(WELM_INVALID_OPTION, "`chunk_tokens`", chunk_tokens = 1 << 20);
    REFUSED(WELM_INVALID_OPTION, "`max_running`", max_running = 1 << 20);
    REFUSED(WELM_INVALID_OPTION, "`queue_limit`", queue_limit = 1 << 22);
    REFUSED(WELM_OUT_OF_MEMORY, "1000 are available", memory_limit = 1000);
    REFUSED(WELM_INVALID_ARGUMENT, "`options->struct_size`", struct_size = 3);
}

static void grown_options(const context *c) {
    struct { welm_load_options o; const char *newer; } newer;
    welm_load_options older = load_options();
    welm_model *model = UNTOUCHED;
    CHECK(welm_load_options_init(&newer.o, sizeof newer) == WELM_OK);
    CHECK(newer.o.struct_size == sizeof newer && newer.newer == NULL && newer.o.max_running == 64);
    newer.o.device = "cpu";
    newer.o.threads = older.threads;
    welm_model_free(load(c->tokenless, &newer.o));
    newer.newer = "something";
    FAILS(WELM_INVALID_ARGUMENT, "`options` sets an option at byte",
          welm_model_load(c->tokenless, &newer.o, &model, &error));
    CHECK(model == UNTOUCHED);

    /* After the end of an older struct there may be any bytes. */
    older.struct_size = offsetof(welm_load_options, dtype);
    older.dtype = UNTOUCHED;
    older.progress_data = UNTOUCHED;
    welm_model_free(load(c->tokenless, &older));
    CHECK(welm_load_options_init(NULL, sizeof older) == WELM_NULL_POINTER);
    CHECK(welm_load_options_init(&older, 5) == WELM_INVALID_ARGUMENT);
}

static void files_are_checked(const context *c) {
    char path[1024];
    welm_model *model = UNTOUCHED;
    welm_estimate estimate;
    estimate.struct_size = sizeof estimate;
    FAILS(WELM_NULL_POINTER, "`path` is NULL", welm_model_load(NULL, NULL, &model, &error));
    FAILS(WELM_NULL_POINTER, "`model` is NULL", welm_model_load(c->nano, NULL, NULL, &error));
    FAILS(WELM_IO, "no/such/model", welm_model_load("no/such/model", NULL, &model, &error));
    FAILS(WELM_IO, "\xEF\xBF\xBD", welm_model_load("no/such/\xff", NULL, &model, &error));
    FAILS(WELM_IO, "no/such/model", welm_model_estimate("no/such/model", NULL, &estimate, &error));
    CHECK(welm_model_load("no/such/model", NULL, &model, NULL) == WELM_IO); /* nobody wants the error */

    write_file(c, "damaged.gguf", "GGUF, but no more of it");
    snprintf(path, sizeof path, "%s/damaged.gguf", c->scratch);
    FAILS(WELM_INVALID_FILE, "damaged.gguf", welm_model_load(path, NULL, &model, &error));

    snprintf(path, sizeof path, "%s/unknown", c->scratch);
    CHECK(mkdir(path, 0777) == 0);
    write_file(c, "unknown/config.json", "{\"model_type\": \"abacus\"}");
    FAILS(WELM_CONFIG, "abacus", welm_model_load(path, NULL, &model, &error));
    CHECK(model == UNTOUCHED);
}

static void quantize(const context *c) {
    char path[1024];
    progress_state state = {0, 0, 0, true};
    welm_model *model;
    snprintf(path, sizeof path, "%s/int8", c->scratch);
    FAILS(WELM_INVALID_FILE, "int8 already", welm_quantize(c->nano, path, NULL, NULL, &error));
    FAILS(WELM_NULL_POINTER, "`to` is NULL", welm_quantize(c->nano, NULL, NULL, NULL, &error));
    FAILS(WELM_INVALID_OPTION, "an empty path", welm_quantize(c->tokenless, "", NULL, NULL, &error));
    OK(welm_quantize(c->tokenless, path, count_progress, &state, &error));
    CHECK(state.calls > 1 && state.last == state.total);
    /* It replaces a folder that it wrote, and no other. */
    OK(welm_quantize(c->tokenless, path, NULL, NULL, &error));
    write_file(c, "int8/notes.txt", "mine");
    FAILS(WELM_INVALID_OPTION, "which has notes.txt", welm_quantize(c->tokenless, path, NULL, NULL, &error));
    welm_model_free(load(path, NULL));

    memset(&state, 0, sizeof state);
    snprintf(path, sizeof path, "%s/stopped", c->scratch);
    FAILS(WELM_LOAD_CANCELLED, "cancelled", welm_quantize(c->tokenless, path, count_progress, &state, &error));
    FAILS(WELM_IO, "stopped", welm_model_load(path, NULL, &model, &error));
}

void test_load(const context *c) {
    versions();
    config(c);
    memory(c);
    progress(c);
    options_are_used(c);
    options_are_checked(c);
    grown_options(c);
    files_are_checked(c);
    quantize(c);
}
