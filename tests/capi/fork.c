/* A forked child has no engine: calls return that error at once, and it may free the objects that it inherited. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void inherited(welm_model *model, welm_stream *stream) {
    welm_generate_options late = greedy(8);
    welm_generation *generation = UNTOUCHED;
    const char *continuations[] = {"a"};
    welm_scores *scores = UNTOUCHED;
    welm_logits *logits = UNTOUCHED;
    welm_stream *other = UNTOUCHED;
    const welm_piece *piece = UNTOUCHED;
    welm_tokens *tokens;
    const char *text = "forked after the model was loaded";
    late.deadline_ms = 500;
    FAILS(WELM_FORKED, text, welm_model_generate(model, TEXT("x"), NULL, &generation, &error));
    FAILS(WELM_FORKED, text, welm_model_generate(model, TEXT("x"), &late, &generation, &error));
    FAILS(WELM_FORKED, text, welm_model_score(model, "x", 1, continuations, NULL, 1, &scores, &error));
    FAILS(WELM_FORKED, text, welm_model_logits(model, TEXT("x"), 0, &logits, &error));
    FAILS(WELM_FORKED, text, welm_model_stream(model, TEXT("x"), NULL, &other, &error));
    FAILS(WELM_FORKED, text, welm_model_check_health(model, &error));
    FAILS(WELM_FORKED, text, welm_stream_next(stream, &piece, &error));
    CHECK(welm_stream_next_timeout(stream, 1000, &piece, NULL) == WELM_END);
    CHECK(generation == UNTOUCHED && scores == UNTOUCHED && logits == UNTOUCHED);
    CHECK(other == UNTOUCHED && piece == UNTOUCHED);
    OK(welm_model_tokenize(model, "x", 1, false, &tokens, &error));
    welm_tokens_free(tokens);
    stats(model);
    OK(welm_log_set_callback(WELM_LOG_OFF, NULL, NULL, &error));
    welm_stream_cancel(stream);
    welm_stream_free(stream);
    welm_model_free(model);
}

void test_fork(const context *c) {
    welm_generate_options options = greedy(200);
    welm_model *model;
    welm_stream *stream;
    const welm_piece *piece;
    int status = 0;
    pid_t child;
    time_t until = time(NULL) + 60;
    if (c->valgrind) return; /* what a child leaves of its parent's engine counts as lost there */
    options.ignore_eos = true;
    model = load(c->nano, NULL);
    OK(welm_model_stream(model, TEXT("x"), &options, &stream, &error));
    OK(welm_stream_next(stream, &piece, &error));
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        inherited(model, stream);
        welm_generation_free(generate(model = load(c->nano, NULL), "x", NULL));
        welm_model_free(model);
        _exit(7);
    }
    while (waitpid(child, &status, WNOHANG) == 0) {
        CHECK(time(NULL) < until);
        short_sleep();
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    OK(welm_stream_next(stream, &piece, &error));
    OK(welm_model_check_health(model, &error));
    welm_stream_free(stream);
    welm_model_free(model);
}
