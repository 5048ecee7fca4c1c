/* Code that the C tests share. Every failure ends the program and prints its line. */
#ifndef CHECK_H
#define CHECK_H

#include <welm.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A prompt with the result of greedy decoding, from tests/fixtures/nano_greedy.json. */
typedef struct golden {
    const char *prompt;
    uint32_t ids[64];
    size_t n_ids;
    const char *text;
} golden;

typedef struct context {
    const char *nano;      /* examples/welm-nano */
    const char *tokenless; /* a fixture of float weights without a tokenizer */
    const char *scratch;   /* an empty folder */
    const welm_model *model;
    const golden *goldens;
    size_t n_goldens;
    bool few;      /* the same, less often: in all builds but one */
    bool valgrind; /* where some things cannot be tested */
} context;

/* One function for each file, which runs its tests. */
void test_load(const context *c);
void test_log(const context *c);
void test_tokens(const context *c);
void test_chat(const context *c);
void test_generate(const context *c);
void test_stream(const context *c);
void test_threads(const context *c);
void test_fork(const context *c);

/* The options that tests load with: the defaults, and the number of threads in WELM_TEST_THREADS. */
welm_load_options load_options(void);
welm_model *load(const char *path, const welm_load_options *options);
welm_generate_options greedy(size_t max_tokens);
welm_generation *generate(const welm_model *model, const char *prompt, const welm_generate_options *options);
welm_stats stats(const welm_model *model);
/* A millisecond. */
void short_sleep(void);
/* Waits until no request is open and no cache block is used. */
void wait_for_rest(const welm_model *model);

void check(bool condition, const char *what, const char *file, int line);
void check_ok(welm_status got, welm_error *error, const char *what, const char *file, int line);
void check_fails(welm_status want, const char *text, welm_status got, welm_error *error, const char *what,
                 const char *file, int line);

#define CHECK(condition) check((condition), #condition, __FILE__, __LINE__)

/* Makes a call whose last argument is `&error`, and checks that it succeeds. */
#define OK(call)                                                        \
    do {                                                                \
        welm_error *error = NULL;                                       \
        welm_status got_ = (call);                                      \
        check_ok(got_, error, #call, __FILE__, __LINE__);               \
    } while (0)

/* Makes a call, and checks that it fails with this status and a message that contains this text. */
#define FAILS(status, text, call)                                       \
    do {                                                                \
        welm_error *error = NULL;                                       \
        welm_status got_ = (call);                                      \
        check_fails(status, text, got_, error, #call, __FILE__, __LINE__); \
    } while (0)

/* The value of an output, which a failing call must not change. */
#define UNTOUCHED ((void *)(uintptr_t)8)

#define TEXT(text) welm_prompt_text((text), WELM_NUL_TERMINATED)
#define LEN(array) (sizeof(array) / sizeof((array)[0]))

#endif
