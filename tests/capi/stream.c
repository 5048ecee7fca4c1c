/* Tests of answers piece by piece: from a stream, and with a callback. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>

/* The sums of the pieces of up to four sequences. */
typedef struct sums {
    char text[4][4096];
    uint32_t ids[4][512];
    size_t n_ids[4], pieces, ended;
    welm_finish_reason reason[4];
    size_t stop_after; /* pieces; 0 is never */
} sums;

static bool add(void *data, const welm_piece *piece) {
    sums *s = data;
    size_t i = piece->index, k;
    CHECK(i < 4 && s->reason[i] == WELM_FINISH_NONE);
    CHECK(strlen(piece->text) == piece->text_len);
    CHECK(strlen(s->text[i]) + piece->text_len < sizeof s->text[i]);
    strcat(s->text[i], piece->text);
    for (k = 0; k < piece->n_tokens; k++) s->ids[i][s->n_ids[i]++] = piece->tokens[k].id;
    s->reason[i] = piece->finish_reason;
    s->ended += piece->finish_reason != WELM_FINISH_NONE;
    s->pieces++;
    return s->stop_after == 0 || s->pieces < s->stop_after;
}

static welm_stream *open_stream(const welm_model *model, const char *prompt, const welm_generate_options *options) {
    welm_stream *stream = NULL;
    OK(welm_model_stream(model, TEXT(prompt), options, &stream, &error));
    return stream;
}

static sums pull(welm_stream *stream) {
    sums s;
    const welm_piece *piece = NULL, *last = UNTOUCHED;
    welm_error *error = NULL;
    welm_status status;
    memset(&s, 0, sizeof s);
    while ((status = welm_stream_next(stream, &piece, &error)) == WELM_OK) add(&s, piece);
    CHECK(status == WELM_END && error == NULL);
    CHECK(welm_stream_next(stream, &last, NULL) == WELM_END && last == UNTOUCHED);
    return s;
}

static void check_equal(const sums *s, const welm_generation *generation) {
    size_t i, k;
    CHECK(s->ended == welm_generation_n_choices(generation));
    for (i = 0; i < s->ended; i++) {
        const welm_choice *choice = welm_generation_choice(generation, i);
        CHECK(strcmp(s->text[i], choice->text) == 0 && s->reason[i] == choice->finish_reason);
        CHECK(s->n_ids[i] == choice->n_tokens);
        for (k = 0; k < choice->n_tokens; k++) CHECK(s->ids[i][k] == choice->tokens[k].id);
    }
}

static void pieces_make_the_text(const context *c) {
    const char *const stop[] = {"。\n"};
    int i;
    for (i = 0; i < 8; i += c->few ? 5 : 1) {
        welm_generate_options options = greedy(c->few ? 12 : 30);
        welm_generation *generation;
        welm_stream *stream;
        sums s;
        options.temperature = i % 2 ? 1.2f : 0;
        options.n = i % 3 ? 1 : 3;
        options.echo = i / 4;
        options.has_seed = true;
        options.seed = (uint64_t)i;
        options.stop = stop;
        options.n_stop = i % 4 < 2;
        generation = generate(c->model, "春眠不觉晓，🙂", &options);

        stream = open_stream(c->model, "春眠不觉晓，🙂", &options);
        CHECK(welm_stream_seed(stream) == (uint64_t)i);
        CHECK(welm_stream_prompt_tokens(stream) == welm_generation_usage(generation)->prompt_tokens);
        s = pull(stream);
        check_equal(&s, generation);
        welm_stream_free(stream);

        memset(&s, 0, sizeof s);
        OK(welm_model_generate_with(c->model, TEXT("春眠不觉晓，🙂"), &options, add, &s, &error));
        check_equal(&s, generation);
        welm_generation_free(generation);
    }
}

static void the_last_piece_tells_the_usage(const context *c) {
    welm_generate_options options = greedy(10);
    welm_stream *stream;
    const welm_piece *piece = NULL;
    size_t completion = 0;
    options.ignore_eos = true;
    options.logprobs = 2;
    stream = open_stream(c->model, "Hello", &options);
    while (welm_stream_next(stream, &piece, NULL) == WELM_OK) {
        CHECK(completion == 0);
        completion = piece->completion_tokens;
        CHECK((completion == 0) == (piece->finish_reason == WELM_FINISH_NONE));
        CHECK(piece->n_tokens == 0 || (piece->tokens[0].has_logprob && piece->tokens[0].n_alternatives == 2));
    }
    CHECK(completion == 10);
    welm_stream_free(stream);
}

static welm_generate_options endless(void) {
    welm_generate_options options = greedy(490);
    options.ignore_eos = true;
    return options;
}

static void early_ends(const context *c) {
    welm_generate_options options = endless();
    welm_stream *stream = open_stream(c->model, "床前明月光，", &options);
    const welm_piece *piece = NULL;
    welm_status status;
    welm_error *error = NULL;
    size_t n_pieces = 0, n_pending = 0;
    sums s;
    memset(&s, 0, sizeof s);

    /* Cancelled by a call: pieces that are already generated still come. */
    OK(welm_stream_next(stream, &piece, &error));
    welm_stream_cancel(stream);
    welm_stream_cancel(stream);
    s = pull(stream);
    CHECK(s.reason[0] == WELM_FINISH_CANCELLED);
    welm_stream_free(stream);
    wait_for_rest(c->model);

    /* With a timeout: some waits end without a token, but every token comes in the end. */
    options.max_tokens = c->few ? 12 : 40;
    stream = open_stream(c->model, "床前明月光，", &options);
    options = endless();
    do {
        piece = UNTOUCHED;
        status = welm_stream_next_timeout(stream, 0, &piece, &error);
        CHECK(!error && (status == WELM_OK) == (piece != UNTOUCHED));
        n_pieces += status == WELM_OK;
        n_pending += status == WELM_PENDING;
    } while (status != WELM_END);
    CHECK(n_pieces >= 1 && n_pending >= 1);
    welm_stream_free(stream);
    stream = open_stream(c->model, "床前明月光，", &options);
    OK(welm_stream_next_timeout(stream, UINT64_MAX, &piece, &error));
    CHECK(piece->index == 0);
    welm_stream_free(stream);
    wait_for_rest(c->model);

    /* Freed while it runs, at once or after a piece. */
    welm_stream_free(open_stream(c->model, "床前明月光，", &options));
    stream = open_stream(c->model, "床前明月光，", &options);
    OK(welm_stream_next(stream, &piece, &error));
    welm_stream_free(stream);
    wait_for_rest(c->model);

    /* Stopped by the callback. */
    memset(&s, 0, sizeof s);
    s.stop_after = 3;
    OK(welm_model_generate_with(c->model, TEXT("床前明月光，"), &options, add, &s, &error));
    CHECK(s.pieces == 3 && s.ended == 0);
    wait_for_rest(c->model);
}

static void *pull_on_thread(void *data) {
    sums *s = malloc(sizeof *s);
    *s = pull(data);
    return s;
}

static void cancelled_from_another_thread(const context *c) {
    welm_generate_options options = endless();
    int i, waited;
    for (i = 0; i < 4; i++) {
        welm_cancel_token *cancel = welm_cancel_token_new();
        welm_stream *stream;
        pthread_t thread;
        void *result;
        sums *s;
        options.cancel = cancel;
        stream = open_stream(c->model, "床前明月光，", &options);
        if (i < 2) welm_cancel_token_free(cancel); /* the request holds a share */
        CHECK(pthread_create(&thread, NULL, pull_on_thread, stream) == 0);
        for (waited = 0; waited < 20000 && stats(c->model).running == 0; waited++) short_sleep();
        if (i < 2) {
            welm_stream_cancel(stream);
        } else {
            welm_cancel_token_cancel(cancel);
        }
        pthread_join(thread, &result);
        s = result;
        CHECK(s->reason[0] == WELM_FINISH_CANCELLED && s->n_ids[0] < 490);
        free(s);
        welm_stream_free(stream);
        if (i >= 2) welm_cancel_token_free(cancel);
    }
    wait_for_rest(c->model);
}

static void streams_outlive_the_model(const context *c) {
    welm_generate_options options = greedy(c->few ? 6 : 20);
    welm_model *model = load(c->nano, NULL);
    welm_generation *generation = generate(c->model, "床前明月光，", &options);
    welm_stream *read = open_stream(model, "床前明月光，", &options);
    welm_stream *unread = open_stream(model, "床前明月光，", &options);
    sums s;
    welm_model_free(model);
    s = pull(read);
    check_equal(&s, generation);
    welm_stream_free(read);
    welm_stream_free(unread);
    CHECK(welm_generation_choice(generation, 0)->text[0] != '\0');
    welm_generation_free(generation);
}

static void a_full_queue_refuses(const context *c) {
    welm_load_options load_tight = load_options();
    welm_generate_options options = endless();
    welm_stream *streams[8];
    welm_error *error = NULL;
    welm_status status = WELM_OK;
    welm_model *model;
    size_t n = 0, i;
    load_tight.max_running = 1;
    load_tight.queue_limit = 1;
    model = load(c->nano, &load_tight);
    while (n < LEN(streams) && status == WELM_OK) {
        status = welm_model_stream(model, TEXT("a"), &options, &streams[n], &error);
        n += status == WELM_OK;
    }
    check_fails(WELM_QUEUE_FULL, "the limit is 1", status, error, "opening streams", __FILE__, __LINE__);
    CHECK(n >= 1 && stats(model).rejected == 1);
    for (i = 0; i < n; i++) welm_stream_free(streams[i]);
    wait_for_rest(model);
    welm_model_free(model);
}

static void errors(const context *c) {
    welm_stream *stream = UNTOUCHED;
    const welm_piece *piece = UNTOUCHED;
    sums s;
    memset(&s, 0, sizeof s);
    FAILS(WELM_NULL_POINTER, "`stream`", welm_model_stream(c->model, TEXT("a"), NULL, NULL, &error));
    FAILS(WELM_INVALID_UTF8, "`prompt`", welm_model_stream(c->model, TEXT("\xff"), NULL, &stream, &error));
    FAILS(WELM_NULL_POINTER, "`stream`", welm_stream_next(NULL, &piece, &error));
    FAILS(WELM_NULL_POINTER, "`callback`", welm_model_generate_with(c->model, TEXT("a"), NULL, NULL, NULL, &error));
    FAILS(WELM_INVALID_UTF8, "`prompt`", welm_model_generate_with(c->model, TEXT("\xff"), NULL, add, &s, &error));
    CHECK(stream == UNTOUCHED && piece == UNTOUCHED && s.pieces == 0);
    stream = open_stream(c->model, "a", NULL);
    FAILS(WELM_NULL_POINTER, "`piece`", welm_stream_next(stream, NULL, &error));
    FAILS(WELM_NULL_POINTER, "`piece`", welm_stream_next_timeout(stream, 0, NULL, &error));
    FAILS(WELM_NULL_POINTER, "`stream`", welm_stream_next_timeout(NULL, 0, &piece, &error));
    welm_stream_free(stream);
}

void test_stream(const context *c) {
    pieces_make_the_text(c);
    the_last_piece_tells_the_usage(c);
    early_ends(c);
    cancelled_from_another_thread(c);
    streams_outlive_the_model(c);
    a_full_queue_refuses(c);
    errors(c);
}
