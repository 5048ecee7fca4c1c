/* Tests of the log: messages arrive, and the callback can be changed while they do. A small model is loaded: it is often. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>
#include <time.h>

typedef struct heard {
    pthread_mutex_t lock;
    int messages, loaded, above;
    welm_log_level max_level;
    welm_status inner;
    bool alive;
} heard;

static void hear(void *data, welm_log_level level, const char *target, const char *message) {
    heard *h = data;
    pthread_mutex_lock(&h->lock);
    CHECK(h->alive && target != NULL && message != NULL);
    h->messages++;
    h->above += level > h->max_level;
    if (strncmp(message, "model loaded", 12) == 0) {
        h->loaded++;
        CHECK(strncmp(target, "welm_core", 9) == 0 && level == WELM_LOG_INFO);
        CHECK(strstr(message, " family=llama") != NULL && strstr(message, " parameters=") != NULL);
    }
    pthread_mutex_unlock(&h->lock);
}

static void start(heard *h, welm_log_level level) {
    memset(h, 0, sizeof *h);
    CHECK(pthread_mutex_init(&h->lock, NULL) == 0);
    h->max_level = level;
    h->alive = true;
    OK(welm_log_set_callback(level, hear, h, &error));
}

static void messages_arrive(const context *c) {
    heard h, later;
    start(&h, WELM_LOG_INFO);
    welm_model_free(load(c->tokenless, NULL));
    CHECK(h.loaded == 1 && h.above == 0);

    /* The new callback gets the messages; the previous one is not called again. */
    start(&later, WELM_LOG_WARN);
    h.alive = false;
    welm_model_free(load(c->tokenless, NULL));
    CHECK(later.messages == 0);
    OK(welm_log_set_callback(WELM_LOG_TRACE, NULL, NULL, &error));
    later.alive = false;
    welm_model_free(load(c->tokenless, NULL));
    start(&h, WELM_LOG_OFF);
    welm_model_free(load(c->tokenless, NULL));
    CHECK(h.messages == 0);
    start(&h, WELM_LOG_INFO);
    welm_model_free(load(c->tokenless, NULL));
    CHECK(h.loaded == 1);
    OK(welm_log_set_callback(WELM_LOG_OFF, NULL, NULL, &error));
    FAILS(WELM_INVALID_ARGUMENT, "`max_level`: expected 0 to 5, got 9", welm_log_set_callback(9, hear, &h, &error));
}

static void from_inside(void *data, welm_log_level level, const char *target, const char *message) {
    heard *h = data;
    welm_error *error = NULL;
    (void)level, (void)target, (void)message;
    h->messages++;
    h->inner = welm_log_set_callback(WELM_LOG_INFO, hear, data, &error);
    welm_error_free(error);
}

static void the_callback_cannot_change_itself(const context *c) {
    heard h;
    memset(&h, 0, sizeof h);
    OK(welm_log_set_callback(WELM_LOG_INFO, from_inside, &h, &error));
    welm_model_free(load(c->tokenless, NULL));
    OK(welm_log_set_callback(WELM_LOG_OFF, NULL, NULL, &error));
    CHECK(h.messages > 0 && h.inner == WELM_INVALID_ARGUMENT);
}

typedef struct loader {
    pthread_t thread;
    const context *c;
} loader;

static void *load_often(void *data) {
    loader *l = data;
    int i;
    for (i = 0; i < (l->c->few ? 1 : 5); i++) welm_model_free(load(l->c->tokenless, NULL));
    return NULL;
}

static void the_callback_changes_while_others_log(const context *c) {
    loader loaders[3];
    size_t i;
    int k;
    for (i = 0; i < LEN(loaders); i++) {
        loaders[i].c = c;
        CHECK(pthread_create(&loaders[i].thread, NULL, load_often, &loaders[i]) == 0);
    }
    for (k = 0; k < 100; k++) {
        heard *h = malloc(sizeof *h); /* freed at once: a late call would be seen by the sanitizer */
        start(h, k % 2 ? WELM_LOG_TRACE : WELM_LOG_INFO);
        CHECK(h->above == 0);
        OK(welm_log_set_callback(WELM_LOG_OFF, NULL, NULL, &error));
        pthread_mutex_destroy(&h->lock);
        free(h);
    }
    for (i = 0; i < LEN(loaders); i++) pthread_join(loaders[i].thread, NULL);
}

/* The callback asks for an answer while another thread waits for the end of that callback. */
static struct {
    const welm_model *model;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool asked, answered;
} asking = {NULL, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, false};

static void ask(void *data, welm_log_level level, const char *target, const char *message) {
    bool first;
    struct timespec moment = {0, 50000000};
    (void)data, (void)level, (void)target, (void)message;
    pthread_mutex_lock(&asking.lock);
    first = !asking.asked;
    asking.asked = true;
    pthread_cond_signal(&asking.changed);
    pthread_mutex_unlock(&asking.lock);
    if (!first) return;
    nanosleep(&moment, NULL); /* the other thread waits now */
    welm_generation_free(generate(asking.model, "x", NULL));
    asking.answered = true;
}

static void *load_once(void *data) {
    const context *c = data;
    welm_model_free(load(c->tokenless, NULL));
    return NULL;
}

static void a_callback_may_wait_for_the_engine(const context *c) {
    pthread_t loader;
    asking.model = c->model;
    OK(welm_log_set_callback(WELM_LOG_TRACE, ask, NULL, &error));
    CHECK(pthread_create(&loader, NULL, load_once, (void *)c) == 0);
    pthread_mutex_lock(&asking.lock);
    while (!asking.asked) pthread_cond_wait(&asking.changed, &asking.lock);
    pthread_mutex_unlock(&asking.lock);
    OK(welm_log_set_callback(WELM_LOG_TRACE, ask, NULL, &error));
    CHECK(asking.answered);
    CHECK(pthread_join(loader, NULL) == 0);
    OK(welm_log_set_callback(WELM_LOG_OFF, NULL, NULL, &error));
}

/* The callback loads a model and frees it; the model's end is logged, too. */
static struct {
    const context *c;
    pthread_mutex_t lock;
    int calls;
    bool loads;
} reloading = {NULL, PTHREAD_MUTEX_INITIALIZER, 0, false};

static void reload(void *data, welm_log_level level, const char *target, const char *message) {
    int calls;
    (void)data, (void)level, (void)target, (void)message;
    pthread_mutex_lock(&reloading.lock);
    calls = ++reloading.calls;
    pthread_mutex_unlock(&reloading.lock);
    if (reloading.loads && calls < 100) welm_model_free(load(reloading.c->tokenless, NULL));
}

static int calls_of_a_life(const context *c) {
    reloading.calls = 0;
    OK(welm_log_set_callback(WELM_LOG_TRACE, reload, NULL, &error));
    welm_model_free(load(c->tokenless, NULL));
    OK(welm_log_set_callback(WELM_LOG_OFF, NULL, NULL, &error));
    return reloading.calls;
}

static void a_callback_may_load_models(const context *c) {
    int alone;
    if (c->valgrind) return; /* a load takes long under valgrind */
    reloading.c = c;
    reloading.loads = false;
    alone = calls_of_a_life(c);
    CHECK(alone > 1); /* loaded, ended */
    reloading.loads = true;
    CHECK(calls_of_a_life(c) == alone);
}

void test_log(const context *c) {
    messages_arrive(c);
    the_callback_cannot_change_itself(c);
    the_callback_changes_while_others_log(c);
    a_callback_may_wait_for_the_engine(c);
    a_callback_may_load_models(c);
}
