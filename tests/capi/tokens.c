/* Tests of tokens, texts, likelihoods and logits. */
#include "check.h"

#include <math.h>

static const char *const TEXTS[] = {"床前明月光，", "Hello, world. ", "", "甲：你好\n", "🙂 naïve", " "};

static void round_trips(const context *c) {
    size_t i, k;
    for (i = 0; i < LEN(TEXTS); i++) {
        welm_tokens *tokens = NULL;
        welm_string *text = NULL;
        size_t n = 99, len = 99, at = 0;
        const uint32_t *ids;
        OK(welm_model_tokenize(c->model, TEXTS[i], WELM_NUL_TERMINATED, false, &tokens, &error));
        ids = welm_tokens_data(tokens, &n);
        CHECK(ids != NULL && welm_tokens_data(tokens, NULL) == ids);
        OK(welm_model_detokenize(c->model, ids, n, &text, &error));
        CHECK(strcmp(welm_string_data(text, &len), TEXTS[i]) == 0 && len == strlen(TEXTS[i]));
        CHECK(welm_string_data(text, NULL) != NULL);
        /* A token's bytes are those of the text, in their order. */
        for (k = 0; k < n; k++) {
            const uint8_t *bytes = welm_model_token_bytes(c->model, ids[k], &len);
            CHECK(bytes != NULL && at + len <= strlen(TEXTS[i]) && memcmp(bytes, TEXTS[i] + at, len) == 0);
            CHECK(!welm_model_is_special(c->model, ids[k]));
            at += len;
        }
        CHECK(at == strlen(TEXTS[i]));
        welm_tokens_free(tokens);
        welm_string_free(text);
    }
}

static void nul_is_a_character(const context *c) {
    welm_tokens *tokens = NULL;
    welm_string *text = NULL;
    size_t n = 0, len = 0;
    const uint32_t *ids;
    OK(welm_model_tokenize(c->model, "a\0b", 3, false, &tokens, &error));
    ids = welm_tokens_data(tokens, &n);
    OK(welm_model_detokenize(c->model, ids, n, &text, &error));
    CHECK(memcmp(welm_string_data(text, &len), "a\0b\0", 4) == 0 && len == 3);
    welm_tokens_free(tokens);
    welm_string_free(text);
}

static void special_tokens(const context *c) {
    welm_tokens *tokens = NULL;
    welm_string *text = NULL;
    uint32_t eos = welm_model_config(c->model)->eos_token_ids[0], id = 0;
    size_t n = 0, len = 1;
    OK(welm_model_token_id(c->model, "<|endoftext|>", WELM_NUL_TERMINATED, &id, &error));
    CHECK(id == eos && welm_model_is_special(c->model, id));
    CHECK(welm_model_token_bytes(c->model, id, &len) != NULL && len == 0);
    OK(welm_model_tokenize(c->model, "<|endoftext|>", WELM_NUL_TERMINATED, true, &tokens, &error));
    CHECK(welm_tokens_data(tokens, &n)[0] == eos && n == 1);
    OK(welm_model_detokenize(c->model, &eos, 1, &text, &error));
    CHECK(strcmp(welm_string_data(text, &len), "") == 0 && len == 0);
    welm_string_free(text);
    welm_tokens_free(tokens);
    OK(welm_model_tokenize(c->model, "<|endoftext|>", WELM_NUL_TERMINATED, false, &tokens, &error));
    CHECK(welm_tokens_data(tokens, &n) != NULL && n > 1);
    welm_tokens_free(tokens);

    id = 7;
    FAILS(WELM_NOT_FOUND, "`no such token`", welm_model_token_id(c->model, "no such token", 13, &id, &error));
    CHECK(id == 7 && !welm_model_is_special(c->model, 1u << 30));
    CHECK(welm_model_token_bytes(c->model, 1u << 30, &len) != NULL && len == 0);
}

static void bad_texts(const context *c) {
    welm_tokens *tokens = UNTOUCHED;
    welm_string *text = UNTOUCHED;
    FAILS(WELM_INVALID_UTF8, "`text` is no UTF-8 from byte 3 of 5",
          welm_model_tokenize(c->model, "床前", 5, false, &tokens, &error));
    FAILS(WELM_INVALID_UTF8, "byte 0 of 1", welm_model_tokenize(c->model, "\x80", WELM_NUL_TERMINATED, false, &tokens, &error));
    FAILS(WELM_NULL_POINTER, "`text` is NULL", welm_model_tokenize(c->model, NULL, 3, false, &tokens, &error));
    FAILS(WELM_NULL_POINTER, "`tokens` is NULL", welm_model_tokenize(c->model, "a", 1, false, NULL, &error));
    FAILS(WELM_NULL_POINTER, "`tokens` is NULL", welm_model_detokenize(c->model, NULL, 3, &text, &error));
    FAILS(WELM_NULL_POINTER, "`model` is NULL", welm_model_tokenize(NULL, "a", 1, false, &tokens, &error));
    CHECK(tokens == UNTOUCHED && text == UNTOUCHED);
    OK(welm_model_tokenize(c->model, NULL, 0, false, &tokens, &error));
    welm_tokens_free(tokens);
    OK(welm_model_detokenize(c->model, NULL, 0, &text, &error));
    welm_string_free(text);
}

static void without_a_tokenizer(const context *c) {
    welm_model *model = load(c->tokenless, NULL);
    welm_tokens *tokens = UNTOUCHED;
    welm_generation *generation = UNTOUCHED;
    welm_generate_options options = greedy(4);
    const uint32_t ids[] = {1, 2, 3};
    CHECK(!welm_model_config(model)->has_tokenizer);
    FAILS(WELM_TOKENIZER, "tokenizer", welm_model_tokenize(model, "a", 1, false, &tokens, &error));
    FAILS(WELM_TOKENIZER, "tokenizer", welm_model_generate(model, TEXT("a"), &options, &generation, &error));
    CHECK(tokens == UNTOUCHED && generation == UNTOUCHED);
    options.ignore_eos = true;
    OK(welm_model_generate(model, welm_prompt_tokens(ids, 3), &options, &generation, &error));
    CHECK(welm_generation_choice(generation, 0)->n_tokens == 4);
    CHECK(welm_generation_usage(generation)->prompt_tokens == 3);
    welm_generation_free(generation);
    welm_model_free(model);
}

static void scores(const context *c) {
    const char *const continuations[] = {"疑是地上霜。", "冰箱里有一条鱼。", "疑是"};
    const size_t lens[] = {WELM_NUL_TERMINATED, WELM_NUL_TERMINATED, 3};
    welm_scores *scores = NULL, *again = NULL, *none = UNTOUCHED;
    size_t i, k;
    OK(welm_model_score(c->model, "床前明月光，", WELM_NUL_TERMINATED, continuations, NULL, 3, &scores, &error));
    OK(welm_model_score(c->model, "床前明月光，", 18, continuations, lens, 3, &again, &error));
    CHECK(welm_scores_len(scores) == 3 && welm_scores_get(scores, 3) == NULL);
    for (i = 0; i < 3; i++) {
        const welm_score *score = welm_scores_get(scores, i);
        double sum = 0;
        CHECK(score->n_tokens > 0 && score->logprob < 0);
        for (k = 0; k < score->n_tokens; k++) {
            CHECK(score->tokens[k].has_logprob && score->tokens[k].n_alternatives == 0);
            sum += score->tokens[k].logprob;
        }
        CHECK(fabs(sum - score->logprob) < 1e-6);
        CHECK(i == 2 || welm_scores_get(again, i)->logprob == score->logprob);
    }
    CHECK(welm_scores_get(scores, 0)->logprob > welm_scores_get(scores, 1)->logprob);
    CHECK(welm_scores_get(again, 2)->n_tokens < welm_scores_get(scores, 2)->n_tokens);
    welm_scores_free(scores);
    welm_scores_free(again);

    FAILS(WELM_INVALID_UTF8, "`continuations[1]`",
          welm_model_score(c->model, "a", 1, (const char *const[]){"b", "\xff"}, NULL, 2, &none, &error));
    FAILS(WELM_NULL_POINTER, "`continuations[0]`",
          welm_model_score(c->model, "a", 1, (const char *const[]){NULL}, NULL, 1, &none, &error));
    FAILS(WELM_NULL_POINTER, "`scores`", welm_model_score(c->model, "a", 1, continuations, NULL, 3, NULL, &error));
    CHECK(none == UNTOUCHED);
    OK(welm_model_score(c->model, "a", 1, NULL, NULL, 0, &none, &error));
    CHECK(welm_scores_len(none) == 0 && welm_scores_get(none, 0) == NULL);
    welm_scores_free(none);
}

/* Each pair has the same score as alone, as text or as tokens. Also cancelled, with a deadline, and with errors. */
static void pairs(const context *c) {
    const char *const continuation[] = {"疑是地上霜。"};
    welm_tokens *tokens = NULL;
    welm_scores *one = NULL, *all = NULL, *none = UNTOUCHED;
    welm_score_options options;
    welm_cancel_token *cancel = welm_cancel_token_new();
    welm_prompt prompts[200], continuations[200];
    const size_t n_pairs = c->few ? 6 : LEN(prompts);
    size_t i, n = 0;
    const uint32_t *ids;
    OK(welm_model_score(c->model, "床前明月光，", WELM_NUL_TERMINATED, continuation, NULL, 1, &one, &error));
    OK(welm_model_tokenize(c->model, continuation[0], WELM_NUL_TERMINATED, false, &tokens, &error));
    ids = welm_tokens_data(tokens, &n);
    for (i = 0; i < n_pairs; i++) {
        prompts[i] = TEXT(i % 3 == 2 ? "春" : "床前明月光，");
        continuations[i] = i % 3 == 1 ? welm_prompt_tokens(ids, n) : TEXT(continuation[0]);
    }
    OK(welm_model_score_pairs(c->model, prompts, continuations, n_pairs, NULL, &all, &error));
    CHECK(welm_scores_len(all) == n_pairs && welm_scores_get(all, n_pairs) == NULL);
    for (i = 0; i < n_pairs; i++) {
        const welm_score *score = welm_scores_get(all, i), *alone = welm_scores_get(one, 0);
        CHECK((score->logprob == alone->logprob) == (i % 3 != 2) && score->n_tokens == n);
    }
    welm_scores_free(one);
    welm_scores_free(all);

    CHECK(welm_score_options_init(&options, sizeof options) == WELM_OK);
    CHECK(options.struct_size == sizeof options && options.deadline_ms == 0 && options.cancel == NULL);
    CHECK(options.logprobs == 0);
    options.cancel = cancel;
    options.logprobs = 2;
    OK(welm_model_score_pairs(c->model, prompts, continuations, 1, &options, &all, &error));
    CHECK(welm_scores_get(all, 0)->tokens[0].n_alternatives == 2);
    welm_scores_free(all);
    welm_cancel_token_cancel(cancel);
    FAILS(WELM_INTERRUPTED, "it was cancelled",
          welm_model_score_pairs(c->model, prompts, continuations, 2, &options, &none, &error));
    welm_cancel_token_free(cancel);
    options.cancel = NULL;
    options.deadline_ms = 1;
    short_sleep();
    for (i = 0; i < n_pairs; i++) prompts[i] = TEXT("床前明月光，疑是地上霜。举头望明月，低头思故乡。");
    FAILS(WELM_INTERRUPTED, "the deadline passed",
          welm_model_score_pairs(c->model, prompts, continuations, n_pairs, &options, &none, &error));
    options.struct_size = 1;
    FAILS(WELM_INVALID_ARGUMENT, "`options->struct_size`",
          welm_model_score_pairs(c->model, prompts, continuations, 1, &options, &none, &error));
    continuations[1] = TEXT("\xff");
    FAILS(WELM_INVALID_UTF8, "`continuations[1]`",
          welm_model_score_pairs(c->model, prompts, continuations, 2, NULL, &none, &error));
    prompts[0] = TEXT(NULL);
    FAILS(WELM_NULL_POINTER, "`prompts[0]`",
          welm_model_score_pairs(c->model, prompts, continuations, 1, NULL, &none, &error));
    FAILS(WELM_NULL_POINTER, "`continuations`",
          welm_model_score_pairs(c->model, prompts, NULL, 1, NULL, &none, &error));
    FAILS(WELM_NULL_POINTER, "`scores`",
          welm_model_score_pairs(c->model, prompts, continuations, 0, NULL, NULL, &error));
    CHECK(none == UNTOUCHED);
    OK(welm_model_score_pairs(c->model, NULL, NULL, 0, NULL, &none, &error));
    CHECK(welm_scores_len(none) == 0);
    welm_scores_free(none);
    welm_tokens_free(tokens);
    wait_for_rest(c->model);
}

/* The largest logit after the prompt is the token that greedy decoding takes. */
static void logits(const context *c) {
    size_t i, rows = 0, cols = 0;
    welm_logits *logits = UNTOUCHED;
    for (i = 0; i < c->n_goldens; i++) {
        const float *row;
        size_t best = 0, k;
        OK(welm_model_logits(c->model, TEXT(c->goldens[i].prompt), 0, &logits, &error));
        row = welm_logits_data(logits, &rows, &cols);
        CHECK(rows >= 1 && cols == 7040);
        row += (rows - 1) * cols;
        for (k = 1; k < cols; k++) best = row[k] > row[best] ? k : best;
        CHECK(best == c->goldens[i].ids[0]);
        CHECK(welm_logits_data(logits, NULL, NULL) != NULL);
        welm_logits_free(logits);
    }
    logits = UNTOUCHED;
    FAILS(WELM_INVALID_OPTION, "`from`", welm_model_logits(c->model, TEXT("a"), 500, &logits, &error));
    FAILS(WELM_NULL_POINTER, "`logits`", welm_model_logits(c->model, TEXT("a"), 0, NULL, &error));
    CHECK(logits == UNTOUCHED);
    CHECK(welm_logits_data(NULL, &rows, &cols) == NULL && rows == 0 && cols == 0);
}

void test_tokens(const context *c) {
    round_trips(c);
    nul_is_a_character(c);
    special_tokens(c);
    bad_texts(c);
    without_a_tokenizer(c);
    scores(c);
    pairs(c);
    logits(c);
}
