/* 32 threads, or a quarter, share one model. Each text is the same as alone, to the last bit of its log-probabilities,
 * although every second request is cancelled while it runs. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>

enum { THREADS = 32, REQUESTS = 4 };

static const char *const PROMPTS[] = {"床前明月光，", "春眠不觉晓，", "《秋思》\n", "甲：你好", "Hello, world. "};

static welm_generate_options request(const context *c, size_t i, const char **prompt) {
    welm_generate_options options = greedy(c->few ? 3 + i % 5 : 10 + i % 23);
    *prompt = PROMPTS[i % LEN(PROMPTS)];
    options.temperature = i % 3 ? 1.0f : 0;
    options.n = 1 + i % 2;
    options.logprobs = 2;
    options.has_seed = true;
    options.seed = 100 + i;
    return options;
}

static bool equal(const welm_generation *a, const welm_generation *b) {
    size_t i, k, j;
    if (welm_generation_n_choices(a) != welm_generation_n_choices(b)) return false;
    for (i = 0; i < welm_generation_n_choices(a); i++) {
        const welm_choice *x = welm_generation_choice(a, i), *y = welm_generation_choice(b, i);
        if (strcmp(x->text, y->text) != 0 || x->n_tokens != y->n_tokens || x->finish_reason != y->finish_reason)
            return false;
        for (k = 0; k < x->n_tokens; k++) {
            const welm_token *t = &x->tokens[k], *u = &y->tokens[k];
            if (t->id != u->id || t->logprob != u->logprob || t->n_alternatives != u->n_alternatives) return false;
            for (j = 0; j < t->n_alternatives; j++) {
                if (memcmp(&t->alternatives[j], &u->alternatives[j], sizeof t->alternatives[j]) != 0) return false;
            }
        }
    }
    return true;
}

typedef struct worker {
    pthread_t thread;
    const context *c;
    size_t first, n;
    const welm_model *model;
    welm_generation **alone;
} worker;

static void *work(void *data) {
    worker *w = data;
    size_t r;
    for (r = w->first; r < w->first + w->n; r++) {
        const char *prompt;
        welm_generate_options options = request(w->c, r, &prompt);
        if (r % 2 == 0) {
            welm_generation *together = generate(w->model, prompt, &options);
            CHECK(equal(together, w->alone[r]));
            welm_generation_free(together);
        } else {
            welm_stream *stream = NULL;
            const welm_piece *piece = NULL;
            size_t pieces = 0;
            OK(welm_model_stream(w->model, TEXT(prompt), &options, &stream, &error));
            while (welm_stream_next(stream, &piece, NULL) == WELM_OK) {
                if (++pieces == 1 + r % 5) {
                    if (r % 4 == 1) break; /* hangs up */
                    welm_stream_cancel(stream);
                }
            }
            welm_stream_free(stream);
        }
    }
    return NULL;
}

void test_threads(const context *c) {
    worker workers[THREADS];
    const size_t n = c->few ? 1 : REQUESTS, n_threads = c->few ? THREADS / 4 : THREADS;
    welm_generation **alone = calloc(n_threads * n, sizeof *alone);
    welm_model *model;
    size_t i;
    for (i = 0; i < n_threads * n; i++) {
        const char *prompt;
        welm_generate_options options = request(c, i, &prompt);
        alone[i] = generate(c->model, prompt, &options);
    }
    model = load(c->nano, NULL);
    for (i = 0; i < n_threads; i++) {
        workers[i].c = c;
        workers[i].first = i * n;
        workers[i].n = n;
        workers[i].model = model;
        workers[i].alone = alone;
        CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
    for (i = 0; i < n_threads; i++) pthread_join(workers[i].thread, NULL);
    wait_for_rest(model);
    {
        welm_stats now = stats(model);
        uint64_t observed = 0;
        size_t b;
        CHECK(now.requests == n_threads * n && now.open == 0 && now.blocks_used == 0 && now.queue_depth == 0);
        CHECK(now.completion_tokens > 0 && now.steps > 0 && now.blocks_total > 0);
        for (b = 0; b < WELM_HISTOGRAM_BUCKETS; b++) observed += now.time_to_first_token.counts[b];
        CHECK(observed > 0 && observed <= 2 * now.requests); /* one a sequence, n is 1 or 2 */
        CHECK(now.time_to_first_token.bounds_s[1] == 2 * now.time_to_first_token.bounds_s[0]);
        CHECK(welm_histogram_quantile_s(&now.time_to_first_token, 1) >= now.time_to_first_token.bounds_s[0]);
        CHECK(welm_histogram_quantile_s(NULL, 1) == 0);
    }
    welm_model_free(model);
    for (i = 0; i < n_threads * n; i++) welm_generation_free(alone[i]);
    free(alone);
}
