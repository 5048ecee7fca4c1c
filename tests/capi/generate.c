/* Tests of whole answers: their content, each option, and each kind of invalid request. */
#include "check.h"

#include <math.h>

static void pinned(const context *c) {
    size_t i, k;
    for (i = 0; i < c->n_goldens; i++) {
        const golden *g = &c->goldens[i];
        welm_generate_options options = greedy(g->n_ids);
        welm_generation *generation = generate(c->model, g->prompt, &options);
        const welm_choice *choice = welm_generation_choice(generation, 0);
        welm_tokens *tokens = NULL;
        const uint32_t *prompt;
        size_t n = 0;
        CHECK(choice->n_tokens == g->n_ids);
        for (k = 0; k < g->n_ids; k++) CHECK(choice->tokens[k].id == g->ids[k]);
        CHECK(strcmp(choice->text, g->text) == 0 && choice->text_len == strlen(g->text));
        CHECK(choice->finish_reason == WELM_FINISH_LENGTH);
        welm_generation_free(generation);

        /* The same prompt as tokens; the tokenizer of this model adds none in front. */
        OK(welm_model_tokenize(c->model, g->prompt, WELM_NUL_TERMINATED, false, &tokens, &error));
        prompt = welm_tokens_data(tokens, &n);
        OK(welm_model_generate(c->model, welm_prompt_tokens(prompt, n), &options, &generation, &error));
        CHECK(welm_generation_usage(generation)->prompt_tokens == n);
        CHECK(strcmp(welm_generation_choice(generation, 0)->text, g->text) == 0);
        welm_generation_free(generation);
        welm_tokens_free(tokens);
    }
}

static void defaults(const context *c) {
    welm_generation *generation = NULL, *again = NULL;
    welm_generate_options options;
    CHECK(welm_generate_options_init(&options, sizeof options) == WELM_OK);
    CHECK(options.struct_size == sizeof options && options.max_tokens == 16 && options.top_k == 50);
    CHECK(options.n == 1 && options.logprobs == -1 && options.repetition_penalty == 1 && options.min_p == 0);
    CHECK(options.frequency_penalty == 0 && options.presence_penalty == 0);
    CHECK(!options.logit_bias && !options.n_logit_bias);
    CHECK(options.temperature > 0.84f && options.temperature < 0.86f && options.top_p > 0.94f);
    CHECK(!options.has_seed && !options.echo && !options.parse_special && !options.ignore_eos);
    CHECK(!options.stop && !options.stop_lens && !options.n_stop && !options.deadline_ms && !options.cancel);
    CHECK(!options.stop_token_ids && !options.n_stop_token_ids && !options.cache_salt);
    CHECK(options.cache_salt_len == WELM_NUL_TERMINATED);

    /* The seed that is reported gives the same text again. */
    OK(welm_model_generate(c->model, TEXT("春眠不觉晓，"), NULL, &generation, &error));
    CHECK(welm_generation_usage(generation)->completion_tokens <= 16);
    options.seed = welm_generation_seed(generation);
    options.has_seed = true;
    again = generate(c->model, "春眠不觉晓，", &options);
    CHECK(welm_generation_seed(again) == options.seed);
    CHECK(strcmp(welm_generation_choice(generation, 0)->text, welm_generation_choice(again, 0)->text) == 0);
    CHECK(!welm_generation_choice(again, 0)->tokens[0].has_logprob);
    welm_generation_free(generation);
    welm_generation_free(again);

    /* From the smaller struct of an older caller, only its own bytes are read. */
    options.struct_size = offsetof(welm_generate_options, top_k);
    options.max_tokens = 3;
    options.top_k = options.n = 1u << 30;
    options.cancel = UNTOUCHED;
    options.stop = UNTOUCHED;
    options.stop_token_ids = UNTOUCHED;
    options.cache_salt = UNTOUCHED;
    options.n_stop_token_ids = 7;
    generation = generate(c->model, "春眠不觉晓，", &options);
    CHECK(welm_generation_choice(generation, 0)->n_tokens <= 3);
    welm_generation_free(generation);
    CHECK(welm_generate_options_init(NULL, sizeof options) == WELM_NULL_POINTER);
    CHECK(welm_generate_options_init(&options, 1u << 20) == WELM_INVALID_ARGUMENT);
}

static void several(const context *c) {
    welm_generate_options options = greedy(12);
    welm_generation *generation, *first;
    size_t i, sum = 0;
    options.temperature = 1;
    options.n = 3;
    options.seed = 5;
    options.has_seed = true;
    generation = generate(c->model, "白日依山尽，", &options);
    CHECK(welm_generation_n_choices(generation) == 3 && welm_generation_choice(generation, 3) == NULL);
    for (i = 0; i < 3; i++) sum += welm_generation_choice(generation, i)->n_tokens;
    CHECK(welm_generation_usage(generation)->completion_tokens <= sum);
    CHECK(strcmp(welm_generation_choice(generation, 0)->text, welm_generation_choice(generation, 1)->text) != 0);
    options.n = 1;
    first = generate(c->model, "白日依山尽，", &options);
    CHECK(strcmp(welm_generation_choice(generation, 0)->text, welm_generation_choice(first, 0)->text) == 0);
    welm_generation_free(generation);
    welm_generation_free(first);
}

static void logprobs_and_echo(const context *c) {
    welm_generate_options options = greedy(8);
    welm_generation *generation;
    const welm_choice *choice;
    size_t i, prompt_tokens;
    options.logprobs = 3;
    options.echo = true;
    generation = generate(c->model, "床前明月光，", &options);
    choice = welm_generation_choice(generation, 0);
    prompt_tokens = welm_generation_usage(generation)->prompt_tokens;
    CHECK(strncmp(choice->text, "床前明月光，", strlen("床前明月光，")) == 0);
    CHECK(choice->n_tokens == prompt_tokens + 8);
    CHECK(!choice->tokens[0].has_logprob && choice->tokens[0].n_alternatives == 0);
    for (i = 1; i < choice->n_tokens; i++) {
        const welm_token *token = &choice->tokens[i];
        CHECK(token->has_logprob && token->logprob <= 0 && token->n_alternatives == 3);
        CHECK(token->alternatives[0].logprob >= token->alternatives[1].logprob);
        CHECK(token->alternatives[1].logprob >= token->alternatives[2].logprob);
        if (i >= prompt_tokens) {
            CHECK(token->alternatives[0].id == token->id && token->alternatives[0].logprob == token->logprob);
        }
    }
    welm_generation_free(generation);

    options.logprobs = 0;
    options.echo = false;
    generation = generate(c->model, "床前明月光，", &options);
    choice = welm_generation_choice(generation, 0);
    CHECK(choice->n_tokens == 8 && choice->tokens[0].has_logprob && choice->tokens[0].n_alternatives == 0);
    welm_generation_free(generation);
}

static void ends(const context *c) {
    const char *const stops[] = {"never", "，X"};
    const char *stop[2] = {"never", NULL};
    const size_t lens[] = {5, 3};
    welm_generate_options options = greedy(24);
    welm_generation *whole = generate(c->model, "床前明月光，", &options), *generation;
    const char *text = welm_generation_choice(whole, 0)->text;
    const char *comma = strstr(text, "，");
    welm_cancel_token *cancel = welm_cancel_token_new();
    CHECK(comma != NULL);

    /* Stop strings, one with a length of its own. */
    stop[1] = "，";
    options.stop = stop;
    options.n_stop = 2;
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_STOP);
    CHECK(welm_generation_choice(generation, 0)->text_len == (size_t)(comma - text));
    CHECK(strncmp(welm_generation_choice(generation, 0)->text, text, (size_t)(comma - text)) == 0);
    welm_generation_free(generation);
    options.stop = stops;
    options.stop_lens = lens;
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_STOP);
    welm_generation_free(generation);
    welm_generation_free(whole);

    /* The model's end token ends the text, unless it is ignored. */
    options = greedy(400);
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_END_OF_TEXT);
    CHECK(welm_generation_choice(generation, 0)->has_end_token && welm_generation_choice(generation, 0)->end_token == 1);
    const uint32_t fourth = welm_generation_choice(generation, 0)->tokens[3].id;
    welm_generation_free(generation);
    options.ignore_eos = true;
    options.max_tokens = c->few ? 30 : 60;
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_LENGTH);
    CHECK(welm_generation_usage(generation)->completion_tokens == options.max_tokens);
    CHECK(!welm_generation_choice(generation, 0)->has_end_token);
    welm_generation_free(generation);

    /* Stop tokens end it as end tokens do; a stop string may name a special token. */
    const uint32_t stop_tokens[] = {9, fourth};
    options.stop_token_ids = stop_tokens;
    options.n_stop_token_ids = 2;
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_STOP);
    CHECK(welm_generation_choice(generation, 0)->n_tokens == 3);
    CHECK(welm_generation_choice(generation, 0)->has_end_token);
    CHECK(welm_generation_choice(generation, 0)->end_token == fourth);
    welm_generation_free(generation);
    options.n_stop_token_ids = 0;
    const char *spelled[] = {"<|endoftext|>"};
    const welm_logit_bias likely = {1, 100};
    options.stop = spelled;
    options.stop_lens = NULL;
    options.n_stop = 1;
    options.logit_bias = &likely;
    options.n_logit_bias = 1;
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_STOP);
    CHECK(welm_generation_choice(generation, 0)->text_len == 0 && welm_generation_choice(generation, 0)->n_tokens == 1);
    welm_generation_free(generation);
    options.n_stop = options.n_logit_bias = 0;

    /* A deadline and a cancelled token end the request with the text so far. */
    options.max_tokens = 480;
    options.deadline_ms = 1;
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_DEADLINE);
    welm_generation_free(generation);
    options.deadline_ms = 0;
    options.cancel = cancel;
    CHECK(!welm_cancel_token_is_cancelled(cancel));
    welm_cancel_token_cancel(cancel);
    CHECK(welm_cancel_token_is_cancelled(cancel));
    generation = generate(c->model, "床前明月光，", &options);
    CHECK(welm_generation_choice(generation, 0)->finish_reason == WELM_FINISH_CANCELLED);
    CHECK(welm_generation_choice(generation, 0)->n_tokens == 0);
    welm_generation_free(generation);
    welm_cancel_token_free(cancel);
}

/* The second equal prompt is found in the cache. */
static void prefix_hits(const context *c) {
    const char *prompt = "红豆生南国，春来发几枝。愿君多采撷，此物最相思。红豆生南国，春来发几枝。";
    welm_generate_options options = greedy(4);
    welm_generation *generation = generate(c->model, prompt, &options);
    welm_generation_free(generation);
    generation = generate(c->model, prompt, &options);
    CHECK(welm_generation_usage(generation)->cached_tokens > 0);
    welm_generation_free(generation);
    /* But not of another salt. */
    for (int i = 0; i < 2; ++i) {
        options.cache_salt = i ? "tenant and more" : "tenant";
        options.cache_salt_len = i ? 6 : WELM_NUL_TERMINATED;
        generation = generate(c->model, prompt, &options);
        CHECK((welm_generation_usage(generation)->cached_tokens > 0) == (i == 1));
        welm_generation_free(generation);
    }
    CHECK(stats(c->model).prefix_hit_tokens > 0);
}

/* One option set by an assignment. */
#define REFUSED(status, text, set)                                                                  \
    do {                                                                                            \
        welm_generate_options options = greedy(4);                                                  \
        welm_generation *generation = UNTOUCHED;                                                    \
        options.set;                                                                                \
        FAILS(status, text, welm_model_generate(c->model, TEXT("a"), &options, &generation, &error)); \
        CHECK(generation == UNTOUCHED);                                                             \
    } while (0)

static void options_are_checked(const context *c) {
    const char *const empty[] = {""}, *const broken[] = {"ok", "\xe5\xba"};
    const welm_logit_bias high = {1, 101}, unknown = {7040, 1};
    REFUSED(WELM_INVALID_OPTION, "`temperature`", temperature = -1);
    REFUSED(WELM_INVALID_OPTION, "`top_p`", top_p = 1.5f);
    REFUSED(WELM_INVALID_OPTION, "`min_p`", min_p = 2);
    REFUSED(WELM_INVALID_OPTION, "`repetition_penalty`", repetition_penalty = 0);
    REFUSED(WELM_INVALID_OPTION, "`frequency_penalty`", frequency_penalty = 101);
    REFUSED(WELM_INVALID_OPTION, "`presence_penalty`", presence_penalty = NAN);
    REFUSED(WELM_INVALID_OPTION, "`logit_bias`: expected -100", logit_bias = &high; options.n_logit_bias = 1);
    REFUSED(WELM_INVALID_OPTION, "expected tokens below 7040", logit_bias = &unknown; options.n_logit_bias = 1);
    REFUSED(WELM_NULL_POINTER, "`logit_bias` is NULL", n_logit_bias = 1);
    REFUSED(WELM_INVALID_OPTION, "`n`", n = 0);
    REFUSED(WELM_INVALID_OPTION, "`n`", n = 129);
    REFUSED(WELM_INVALID_OPTION, "`logprobs`", logprobs = 101);
    REFUSED(WELM_INVALID_ARGUMENT, "`options->logprobs`: expected -1 or more, got -2", logprobs = -2);
    REFUSED(WELM_INVALID_OPTION, "`stop`", stop = empty; options.n_stop = 1);
    REFUSED(WELM_INVALID_UTF8, "`stop[1]` is no UTF-8 from byte 0 of 2", stop = broken; options.n_stop = 2);
    REFUSED(WELM_NULL_POINTER, "`stop` is NULL", n_stop = 1);
    REFUSED(WELM_TOO_LONG, "512", max_tokens = 600);
    REFUSED(WELM_INVALID_OPTION, "option `cache_salt`: expected 1 to 256 bytes, got 0", cache_salt = "");
    REFUSED(WELM_NULL_POINTER, "`stop_token_ids`", n_stop_token_ids = 1);
    REFUSED(WELM_INVALID_ARGUMENT, "`options->struct_size`", struct_size = 0);
}

static void prompts_are_checked(const context *c) {
    welm_generation *generation = UNTOUCHED;
    welm_generate_options options = greedy(2);
    const uint32_t unknown = 7040;
    welm_prompt both = TEXT("a");
    both.tokens = &unknown;
    FAILS(WELM_NULL_POINTER, "`prompt` is NULL", welm_model_generate(c->model, TEXT(NULL), NULL, &generation, &error));
    FAILS(WELM_NULL_POINTER, "`prompt` is NULL",
          welm_model_generate(c->model, welm_prompt_text(NULL, 1), NULL, &generation, &error));
    FAILS(WELM_INVALID_UTF8, "`prompt` is no UTF-8 from byte 3 of 4",
          welm_model_generate(c->model, TEXT("床\xe5"), NULL, &generation, &error));
    FAILS(WELM_INVALID_ARGUMENT, "`prompt`", welm_model_generate(c->model, both, NULL, &generation, &error));
    FAILS(WELM_INVALID_OPTION, "expected tokens below 7040, got 7040",
          welm_model_generate(c->model, welm_prompt_tokens(&unknown, 1), NULL, &generation, &error));
    FAILS(WELM_NULL_POINTER, "`model` is NULL", welm_model_generate(NULL, TEXT("a"), NULL, &generation, &error));
    FAILS(WELM_NULL_POINTER, "`generation` is NULL", welm_model_generate(c->model, TEXT("a"), NULL, NULL, &error));
    CHECK(generation == UNTOUCHED);

    /* An empty prompt is allowed, as text and as tokens: the answer starts a text. */
    OK(welm_model_generate(c->model, welm_prompt_text(NULL, 0), &options, &generation, &error));
    welm_generation_free(generation);
    OK(welm_model_generate(c->model, welm_prompt_tokens(NULL, 0), &options, &generation, &error));
    CHECK(welm_generation_usage(generation)->prompt_tokens == 1);
    welm_generation_free(generation);
}

void test_generate(const context *c) {
    pinned(c);
    defaults(c);
    several(c);
    logprobs_and_echo(c);
    ends(c);
    prefix_hits(c);
    options_are_checked(c);
    prompts_are_checked(c);
}
