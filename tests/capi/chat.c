/* Tests of chats, with the model of this repository and a template. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <sys/stat.h>
#include <unistd.h>

static const char TEMPLATE[] =
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}";

static welm_model *with_template(const context *c, const char *name, const char *text) {
    static const char *const files[] = {"config.json", "tokenizer.json", "model.safetensors"};
    char folder[1024], from[2048], to[2048];
    welm_model *model;
    FILE *file;
    size_t i;
    snprintf(folder, sizeof folder, "%s/%s", c->scratch, name);
    CHECK(mkdir(folder, 0777) == 0);
    for (i = 0; i < LEN(files); i++) {
        snprintf(from, sizeof from, "%s/%s", c->nano, files[i]);
        snprintf(to, sizeof to, "%s/%s", folder, files[i]);
        CHECK(symlink(from, to) == 0);
    }
    snprintf(to, sizeof to, "%s/chat_template.jinja", folder);
    file = fopen(to, "wb");
    CHECK(file != NULL && fwrite(text, 1, strlen(text), file) == strlen(text));
    fclose(file);
    model = load(folder, NULL);
    return model;
}

/* The whole text of a stream, which is freed. */
static char *pieces(welm_stream *stream) {
    char *text = calloc(1, 1);
    const welm_piece *piece = NULL;
    welm_error *error = NULL;
    while (welm_stream_next(stream, &piece, &error) == WELM_OK) {
        text = realloc(text, strlen(text) + piece->text_len + 1);
        strcat(text, piece->text);
    }
    CHECK(error == NULL);
    welm_stream_free(stream);
    return text;
}

/* Every way to chat gives the same answer as the conversation's tokens. These messages need no escapes in JSON. */
static void answers(const welm_model *model, const welm_message *messages, size_t n, const welm_generation *want) {
    const char *text = welm_generation_choice(want, 0)->text;
    welm_generate_options options = greedy(4);
    welm_generation *generation = NULL;
    welm_stream *stream = NULL;
    char json[1024] = "{\"messages\": [", *streamed;
    size_t i;
    for (i = 0; i < n; i++) {
        int len = (int)(messages[i].content_len == WELM_NUL_TERMINATED ? strlen(messages[i].content) : messages[i].content_len);
        snprintf(json + strlen(json), sizeof json - strlen(json), "%s{\"role\": \"%s\", \"content\": \"%.*s\"}",
                 i > 0 ? ", " : "", messages[i].role, len, messages[i].content);
    }
    strcat(json, "]}");
    OK(welm_model_chat(model, messages, n, &options, &generation, &error));
    CHECK(strcmp(welm_generation_choice(generation, 0)->text, text) == 0);
    CHECK(welm_generation_usage(generation)->prompt_tokens == welm_generation_usage(want)->prompt_tokens);
    welm_generation_free(generation);
    OK(welm_model_chat_json(model, json, WELM_NUL_TERMINATED, &options, &generation, &error));
    CHECK(strcmp(welm_generation_choice(generation, 0)->text, text) == 0);
    welm_generation_free(generation);
    OK(welm_model_chat_stream(model, messages, n, &options, &stream, &error));
    CHECK(strcmp(streamed = pieces(stream), text) == 0);
    free(streamed);
    OK(welm_model_chat_stream_json(model, json, strlen(json), &options, &stream, &error));
    CHECK(strcmp(streamed = pieces(stream), text) == 0);
    free(streamed);
    OK(welm_model_chat(model, messages, n, NULL, &generation, &error));
    CHECK(welm_generation_finish_reason(generation) != WELM_FINISH_NONE);
    welm_generation_free(generation);
}

static void conversations(const context *c) {
    const welm_message messages[] = {{"system", "简短。", WELM_NUL_TERMINATED}, {"user", "你好吗？", 6}};
    welm_model *model = with_template(c, "chat", TEMPLATE);
    welm_generate_options options = greedy(4);
    welm_string *prompt = NULL;
    welm_tokens *tokens = NULL, *same = NULL;
    welm_generation *generation = NULL;
    const char *text;
    size_t n = 0, n_same = 0, len = 0;
    const uint32_t *ids;
    CHECK(welm_model_has_chat_template(model));
    OK(welm_model_chat_prompt(model, messages, 2, true, &prompt, &error));
    text = welm_string_data(prompt, &len);
    CHECK(strcmp(text, "<|system|>简短。\n<|user|>你好\n<|assistant|>") == 0 && len == strlen(text));
    OK(welm_model_chat_tokens(model, messages, 2, true, &tokens, &error));
    OK(welm_model_tokenize(model, text, len, true, &same, &error));
    ids = welm_tokens_data(tokens, &n);
    CHECK(memcmp(ids, welm_tokens_data(same, &n_same), n * sizeof *ids) == 0 && n == n_same);
    OK(welm_model_generate(model, welm_prompt_tokens(ids, n), &options, &generation, &error));
    CHECK(welm_generation_usage(generation)->prompt_tokens == n);
    CHECK(welm_generation_finish_reason(generation) == welm_generation_choice(generation, 0)->finish_reason);
    answers(model, messages, 2, generation);
    welm_generation_free(generation);
    welm_tokens_free(tokens);
    welm_tokens_free(same);
    welm_string_free(prompt);
    OK(welm_model_chat_prompt(model, messages, 1, false, &prompt, &error));
    CHECK(strcmp(welm_string_data(prompt, NULL), "<|system|>简短。\n") == 0);
    welm_string_free(prompt);
    welm_model_free(model);
}

static void errors(const context *c) {
    const welm_message good = {"user", "a", 1}, broken = {"user", "a\xff", 2}, no_role = {NULL, "a", 1};
    welm_model *model = with_template(c, "bad-chat", "{{ raise_exception('no roles like ' ~ messages[0].role) }}");
    welm_string *prompt = UNTOUCHED;
    welm_tokens *tokens = UNTOUCHED;
    welm_generation *generation = UNTOUCHED;
    welm_stream *stream = UNTOUCHED;
    welm_generate_options hot = greedy(4);
    hot.temperature = -1;
    CHECK(welm_model_has_chat_template(model));
    FAILS(WELM_CHAT_TEMPLATE, "no roles like user", welm_model_chat(model, &good, 1, NULL, &generation, &error));
    FAILS(WELM_CHAT_TEMPLATE, "no roles like user", welm_model_chat_stream(model, &good, 1, NULL, &stream, &error));
    FAILS(WELM_INVALID_OPTION, "`messages`", welm_model_chat(model, NULL, 0, NULL, &generation, &error));
    FAILS(WELM_INVALID_OPTION, "`temperature`", welm_model_chat(model, &good, 1, &hot, &generation, &error));
    FAILS(WELM_INVALID_UTF8, "`messages[0].content`", welm_model_chat_stream(model, &broken, 1, NULL, &stream, &error));
    FAILS(WELM_NULL_POINTER, "`messages[0].role`", welm_model_chat(model, &no_role, 1, NULL, &generation, &error));
    FAILS(WELM_NULL_POINTER, "`generation`", welm_model_chat(model, &good, 1, NULL, NULL, &error));
    FAILS(WELM_NULL_POINTER, "`stream`", welm_model_chat_stream(model, &good, 1, NULL, NULL, &error));
    FAILS(WELM_INVALID_OPTION, "`request`",
          welm_model_chat_json(model, "{", WELM_NUL_TERMINATED, NULL, &generation, &error));
    FAILS(WELM_INVALID_OPTION, "`messages`",
          welm_model_chat_stream_json(model, "{}", WELM_NUL_TERMINATED, NULL, &stream, &error));
    FAILS(WELM_CHAT_TEMPLATE, "none", welm_model_chat(c->model, &good, 1, NULL, &generation, &error));
    CHECK(generation == UNTOUCHED && stream == UNTOUCHED);
    FAILS(WELM_CHAT_TEMPLATE, "no roles like user", welm_model_chat_prompt(model, &good, 1, true, &prompt, &error));
    FAILS(WELM_CHAT_TEMPLATE, "no roles like user", welm_model_chat_tokens(model, &good, 1, true, &tokens, &error));
    FAILS(WELM_INVALID_OPTION, "`messages`", welm_model_chat_prompt(model, NULL, 0, true, &prompt, &error));
    FAILS(WELM_INVALID_UTF8, "`messages[0].content` is no UTF-8 from byte 1",
          welm_model_chat_prompt(model, &broken, 1, true, &prompt, &error));
    FAILS(WELM_NULL_POINTER, "`messages[0].role`", welm_model_chat_tokens(model, &no_role, 1, true, &tokens, &error));
    FAILS(WELM_NULL_POINTER, "`messages` is NULL", welm_model_chat_tokens(model, NULL, 1, true, &tokens, &error));
    FAILS(WELM_NULL_POINTER, "`prompt` is NULL", welm_model_chat_prompt(model, &good, 1, true, NULL, &error));
    FAILS(WELM_NULL_POINTER, "`tokens` is NULL", welm_model_chat_tokens(model, &good, 1, true, NULL, &error));
    welm_model_free(model);

    CHECK(!welm_model_has_chat_template(c->model));
    FAILS(WELM_CHAT_TEMPLATE, "none", welm_model_chat_prompt(c->model, &good, 1, true, &prompt, &error));
    CHECK(prompt == UNTOUCHED && tokens == UNTOUCHED);
}

/* Messages with other keys than role and content, tools and variables. */
static void requests(const context *c) {
    static const char request[] =
        "{\"messages\": [{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\"}]},"
        " {\"role\": \"tool\", \"content\": [{\"type\": \"text\", \"text\": \"你好\"}]}],"
        " \"tools\": [{\"name\": \"f\"}], \"add_generation_prompt\": false, \"mood\": 1.0}";
    welm_model *model = with_template(
        c, "requests",
        "{% for m in messages %}[{{ m.role }}:{{ m.content[0].text if m.content else '' }}|"
        "{{ m.tool_calls | length if m.tool_calls else 0 }}]{% endfor %}{{ tools | tojson }}{{ documents is none }}"
        "{{ mood }}{{ add_generation_prompt }}");
    const char expected[] = "[assistant:|1][tool:你好|0][{\"name\": \"f\"}]True1.0False";
    welm_string *prompt = NULL;
    welm_tokens *tokens = NULL, *same = NULL;
    size_t n = 0, n_same = 0, len = 0;
    const uint32_t *ids;
    OK(welm_model_chat_prompt_json(model, request, WELM_NUL_TERMINATED, &prompt, &error));
    CHECK(strcmp(welm_string_data(prompt, &len), expected) == 0 && len == strlen(expected));
    OK(welm_model_chat_tokens_json(model, request, strlen(request), &tokens, &error));
    OK(welm_model_tokenize(model, expected, len, true, &same, &error));
    ids = welm_tokens_data(tokens, &n);
    CHECK(memcmp(ids, welm_tokens_data(same, &n_same), n * sizeof *ids) == 0 && n == n_same);
    welm_tokens_free(tokens);
    welm_tokens_free(same);
    welm_string_free(prompt);

    prompt = UNTOUCHED;
    tokens = UNTOUCHED;
    FAILS(WELM_INVALID_OPTION, "messages[1]: expected an object, got a number",
          welm_model_chat_prompt_json(model, "{\"messages\": [{}, 1]}", WELM_NUL_TERMINATED, &prompt, &error));
    FAILS(WELM_INVALID_OPTION, "`tools`",
          welm_model_chat_tokens_json(model, "{\"messages\": [{}], \"tools\": 1}", WELM_NUL_TERMINATED, &tokens, &error));
    FAILS(WELM_INVALID_OPTION, "`messages`",
          welm_model_chat_prompt_json(model, "{\"messages\": []}", WELM_NUL_TERMINATED, &prompt, &error));
    FAILS(WELM_INVALID_OPTION, "`request`",
          welm_model_chat_prompt_json(model, "{\"messages\"", WELM_NUL_TERMINATED, &prompt, &error));
    FAILS(WELM_INVALID_UTF8, "`request`", welm_model_chat_prompt_json(model, "\xff", 1, &prompt, &error));
    FAILS(WELM_NULL_POINTER, "`request`", welm_model_chat_prompt_json(model, NULL, 1, &prompt, &error));
    FAILS(WELM_NULL_POINTER, "`prompt`", welm_model_chat_prompt_json(model, request, WELM_NUL_TERMINATED, NULL, &error));
    FAILS(WELM_NULL_POINTER, "`tokens`", welm_model_chat_tokens_json(model, request, WELM_NUL_TERMINATED, NULL, &error));
    CHECK(prompt == UNTOUCHED && tokens == UNTOUCHED);
    welm_model_free(model);
}

void test_chat(const context *c) {
    conversations(c);
    requests(c);
    errors(c);
}
