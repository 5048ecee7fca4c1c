/* A consumer of the installed library:
 *
 *     consumer NANO TOKENLESS SCRATCH (PROMPT IDS TEXT)...
 *
 * with greedy ids separated by spaces. See tests/capi.rs, which compiles and runs it. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <time.h>

void check(bool condition, const char *what, const char *file, int line) {
    if (!condition) {
        fprintf(stderr, "%s:%d: expected %s\n", file, line, what);
        exit(1);
    }
}

void check_ok(welm_status got, welm_error *error, const char *what, const char *file, int line) {
    if (got != WELM_OK || error != NULL) {
        fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, what, welm_status_name(got), welm_error_message(error));
        exit(1);
    }
}

void check_fails(welm_status want, const char *text, welm_status got, welm_error *error, const char *what,
                 const char *file, int line) {
    const char *message = welm_error_message(error);
    if (got != want || error == NULL || welm_error_code(error) != want || strstr(message, text) == NULL) {
        fprintf(stderr, "%s:%d: %s: expected %s with \"%s\", got %s: %s\n", file, line, what,
                welm_status_name(want), text, welm_status_name(got), message);
        exit(1);
    }
    welm_error_free(error);
}

welm_load_options load_options(void) {
    welm_load_options options;
    const char *threads = getenv("WELM_TEST_THREADS");
    CHECK(welm_load_options_init(&options, sizeof options) == WELM_OK);
    options.device = "cpu";
    options.threads = threads ? (size_t)atoi(threads) : 0;
    return options;
}

welm_model *load(const char *path, const welm_load_options *options) {
    welm_load_options defaults = load_options();
    welm_model *model = NULL;
    OK(welm_model_load(path, options ? options : &defaults, &model, &error));
    return model;
}

welm_generate_options greedy(size_t max_tokens) {
    welm_generate_options options;
    CHECK(welm_generate_options_init(&options, sizeof options) == WELM_OK);
    options.temperature = 0;
    options.max_tokens = max_tokens;
    return options;
}

welm_generation *generate(const welm_model *model, const char *prompt, const welm_generate_options *options) {
    welm_generation *generation = NULL;
    OK(welm_model_generate(model, TEXT(prompt), options, &generation, &error));
    return generation;
}

welm_stats stats(const welm_model *model) {
    welm_stats now;
    now.struct_size = sizeof now;
    OK(welm_model_stats(model, &now, &error));
    return now;
}

void wait_for_rest(const welm_model *model) {
    time_t until = time(NULL) + 120;
    for (;;) {
        welm_stats now = stats(model);
        if (now.open == 0 && now.blocks_used == 0 && now.running == 0) return;
        CHECK(time(NULL) < until);
        short_sleep();
    }
}

void short_sleep(void) {
    struct timespec time = {0, 1000000};
    nanosleep(&time, NULL);
}

static golden *read_goldens(char **arguments, size_t n) {
    golden *goldens = calloc(n, sizeof *goldens);
    size_t i;
    for (i = 0; i < n; i++) {
        char *id = arguments[3 * i + 1];
        goldens[i].prompt = arguments[3 * i];
        goldens[i].text = arguments[3 * i + 2];
        while (*id != '\0') {
            CHECK(goldens[i].n_ids < LEN(goldens[i].ids));
            goldens[i].ids[goldens[i].n_ids++] = (uint32_t)strtoul(id, &id, 10);
        }
    }
    return goldens;
}

int main(int argc, char **argv) {
    context c;
    welm_model *model;
    golden *goldens;
    if (argc < 7 || (argc - 4) % 3 != 0) {
        fprintf(stderr, "usage: consumer NANO TOKENLESS SCRATCH (PROMPT IDS TEXT)...\n");
        return 2;
    }
    CHECK(welm_abi_version() == WELM_ABI_VERSION);

    c.nano = argv[1];
    c.tokenless = argv[2];
    c.scratch = argv[3];
    c.n_goldens = (size_t)(argc - 4) / 3;
    c.goldens = goldens = read_goldens(argv + 4, c.n_goldens);
    c.few = getenv("WELM_TEST_FEW") != NULL;
    c.valgrind = getenv("WELM_TEST_VALGRIND") != NULL;
    if (c.few) c.n_goldens = 1;
    c.model = model = load(c.nano, NULL);

    test_load(&c);
    test_log(&c);
    test_tokens(&c);
    test_chat(&c);
    test_generate(&c);
    test_stream(&c);
    test_threads(&c);
    test_fork(&c);

    wait_for_rest(model);
    welm_model_free(model);
    free(goldens);
    puts("all passed");
    return 0;
}
