// A consumer of the installed library through welm.hpp:
//
//     consumer MODEL (PROMPT IDS TEXT)...
//
// See tests/cpp.rs, which compiles and runs it.

#include <welm.hpp>

#include <algorithm>
#include <atomic>
#include <limits>
#include <set>
#include <thread>

#include "check.hpp"

std::string other_file(const welm::Model& model, std::string_view prompt); // other.cpp

namespace {

using namespace std::chrono_literals;

template <class T>
constexpr bool move_only = std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>
                           && !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(move_only<welm::Model> && move_only<welm::Generation> && move_only<welm::Stream>);
static_assert(move_only<welm::CancelToken> && move_only<welm::Scores>);
static_assert(!std::is_copy_constructible_v<welm::Log>);

/// The error that a call throws.
template <class Call>
welm::Error failure(Call call) {
    try {
        call();
    } catch (const welm::Error& error) {
        return error;
    }
    CHECK(!"an error");
    std::abort();
}

welm::GenerateOptions greedy(std::size_t max_tokens) {
    welm::GenerateOptions options;
    options.temperature = 0;
    options.max_tokens = max_tokens;
    return options;
}

std::vector<std::uint32_t> ids(const welm::View<welm::Token>& tokens) {
    std::vector<std::uint32_t> all;
    for (const welm::Token& token : tokens) all.push_back(token.id);
    return all;
}

/// All parts of an answer.
struct Said {
    std::vector<std::string> texts;
    std::vector<welm::FinishReason> reasons;
    std::vector<std::vector<std::uint32_t>> tokens;
    std::vector<float> logprobs;

    bool operator==(const Said& other) const {
        return texts == other.texts && reasons == other.reasons && tokens == other.tokens && logprobs == other.logprobs;
    }
};

Said said(const welm::Generation& answer) {
    Said all;
    for (const welm::Choice& choice : answer.choices()) {
        all.texts.emplace_back(choice.text);
        all.reasons.push_back(choice.finish_reason);
        all.tokens.push_back(ids(choice.tokens));
        for (const welm::Token& token : choice.tokens) {
            all.logprobs.push_back(token.logprob.value_or(1));
            for (const welm::Alternative& other : token.alternatives) all.logprobs.push_back(other.logprob);
        }
    }
    return all;
}

void pinned(const welm::Model& model, const std::vector<Golden>& goldens) {
    for (const Golden& golden : goldens) {
        const welm::GenerateOptions options = greedy(golden.ids.size());
        const welm::Generation answer = model.generate(golden.prompt, options);
        CHECK(answer.text() == golden.text && answer.choices().size() == 1);
        CHECK(ids(answer.choices()[0].tokens) == golden.ids);
        CHECK(answer.usage().completion_tokens == golden.ids.size());

        std::string text;
        std::vector<std::uint32_t> tokens;
        for (const welm::Piece& piece : model.stream(golden.prompt, options)) {
            text += piece.text;
            for (const welm::Token& token : piece.tokens) tokens.push_back(token.id);
        }
        CHECK(text == golden.text && tokens == golden.ids);

        text.clear();
        model.generate_with(golden.prompt, options, [&](const welm::Piece& piece) { text += piece.text; });
        CHECK(text == golden.text);

        // The same prompt as tokens; the tokenizer of this model adds none in front.
        const std::vector<std::uint32_t> prompt = model.tokenize(golden.prompt);
        CHECK(prompt.size() == answer.usage().prompt_tokens);
        CHECK(model.generate(prompt, options).text() == golden.text);

        text.clear();
        welm::Stream timed = model.stream(welm::Prompt(prompt.data(), prompt.size()), options);
        for (;;) {
            const welm::Waited waited = timed.next_for(0ms);
            CHECK(!waited.pending || !waited.piece);
            if (waited.piece) text += waited.piece->text;
            else if (!waited.pending) break;
        }
        CHECK(text == golden.text);
    }
}

void options_are_passed_on(const welm::Model& model) {
    const welm::GenerateOptions defaults;
    CHECK(defaults.max_tokens == 16 && defaults.top_k == 50 && defaults.n == 1 && defaults.repetition_penalty == 1);
    CHECK(defaults.temperature > 0.84f && defaults.temperature < 0.86f && defaults.top_p > 0.94f);
    CHECK(!defaults.echo && !defaults.seed && !defaults.logprobs && !defaults.deadline && defaults.stop.empty());
    const welm::LoadOptions load;
    CHECK(load.prefix_cache && load.device.empty() && !load.progress && !load.allow_unread_tensors);

    welm::GenerateOptions options;
    options.seed = 7;
    options.n = 3;
    options.logprobs = 2;
    options.max_tokens = 12;
    options.echo = true;
    const welm::Generation first = model.generate("春眠不觉晓，", options), again = model.generate("春眠不觉晓，", options);
    CHECK(said(first) == said(again) && first.seed() == 7 && first.choices().size() == 3);
    for (const welm::Choice& choice : first.choices()) {
        CHECK(choice.text.rfind("春眠不觉晓，", 0) == 0);
        const welm::View<welm::Token> tokens = choice.tokens;
        CHECK(!tokens[0].logprob || tokens[0].alternatives.size() == 2);
        const welm::Token last = tokens[tokens.size() - 1];
        CHECK(last.logprob && *last.logprob <= 0 && last.alternatives.size() == 2);
        CHECK(last.alternatives[0].logprob >= last.alternatives[1].logprob);
    }

    const std::string whole(model.generate("床前明月光，", greedy(12)).text());
    options = greedy(12);
    options.stop = {"no such text", "。"};
    const welm::Generation stopped = model.generate("床前明月光，", options);
    CHECK(stopped.choices()[0].finish_reason == WELM_FINISH_STOP);
    CHECK(stopped.text() == whole.substr(0, whole.find("。")));

    options = greedy(12);
    const std::uint32_t likeliest = model.generate("床前明月光，", options).choices()[0].tokens[0].id;
    options.logit_bias = {{likeliest, -std::numeric_limits<float>::infinity()}};
    CHECK(model.generate("床前明月光，", options).choices()[0].tokens[0].id != likeliest);
    options = greedy(40);
    options.presence_penalty = 100; // enough for no token to come twice
    std::set<std::uint32_t> ids;
    const welm::Generation varied = model.generate("床前明月光，", options);
    for (const welm::Token& token : varied.choices()[0].tokens) CHECK(ids.insert(token.id).second);

    options = greedy(12);
    options.stop_token_ids = {9, likeliest};
    const welm::Generation ended = model.generate("床前明月光，", options);
    CHECK(ended.choices()[0].finish_reason == WELM_FINISH_STOP && ended.choices()[0].tokens.empty());
    CHECK(ended.choices()[0].end_token == likeliest);
    for (welm::Stream stream = model.stream("床前明月光，", options); const auto piece = stream.next();)
        CHECK(piece->end_token == likeliest && piece->finish_reason == WELM_FINISH_STOP);
    options = greedy(2);
    const std::string shared = "红豆生南国，春来发几枝。愿君多采撷，此物最相思。红豆生南国，春来发几枝。";
    for (const bool found : {false, true}) {
        options.cache_salt = "of a tenant";
        CHECK((model.generate(shared, options).usage().cached_tokens > 0) == found);
    }

    options = greedy(500);
    options.ignore_eos = true;
    options.deadline = -5ms; // has passed already; in C, 0 means none
    const welm::Generation late = model.generate("床前明月光，", options);
    CHECK(late.choices()[0].finish_reason == WELM_FINISH_DEADLINE);
}

void errors_have_codes(const welm::Model& model) {
    const welm::Error absent = failure([] { welm::Model::load("/no/such/model"); });
    CHECK(absent.code() == WELM_IO && absent.name() == std::string("WELM_IO"));
    CHECK(std::string(absent.what()).find("/no/such/model") != std::string::npos);
    CHECK(failure([] { welm::Model::estimate("/no/such/model"); }).code() == WELM_IO);
    CHECK(failure([] { welm::quantize("/no/such/model", "/no/such/folder"); }).code() == WELM_IO);
    CHECK(failure([&] { model.generate("\xff"); }).code() == WELM_INVALID_UTF8);
    CHECK(failure([&] { model.generate(std::vector<std::uint32_t>{1u << 30}); }).code() != WELM_OK);
    CHECK(failure([&] { model.token_id("no such token"); }).code() == WELM_NOT_FOUND);
    CHECK(failure([&] { model.stream("x", greedy(100'000)); }).code() == WELM_TOO_LONG);
    CHECK(failure([&] { model.logits("x", 9); }).code() == WELM_INVALID_OPTION);
    welm::LoadOptions load;
    load.device = "toaster";
    CHECK(failure([&] { welm::Model::estimate("x", load); }).code() == WELM_INVALID_OPTION);

    welm::GenerateOptions options;
    options.temperature = -1;
    const welm::Result<welm::Generation> wrong = model.try_generate("x", options);
    CHECK(!wrong && !wrong.has_value() && wrong.error().code() == WELM_INVALID_OPTION);
    CHECK(model.try_stream("x", options).error().code() == WELM_INVALID_OPTION);
    const auto done = model.try_generate_with("x", options, [](const welm::Piece&) {});
    CHECK(!done && done.error().code() == WELM_INVALID_OPTION);
    CHECK(failure([&] { done.value(); }).what() == std::string(done.error().what()));
    const welm::Result<welm::Generation> right = model.try_generate("x");
    CHECK(right && right->choices().size() == 1 && (*right).usage().completion_tokens <= 16);
}

/// Thrown by callbacks; it is not derived from std::exception.
struct Thrown {
    int value;
};

template <class Call>
int thrown(Call call) {
    try {
        call();
    } catch (const Thrown& thrown) {
        return thrown.value;
    }
    return 0;
}

void exceptions_come_out_of_callbacks(const welm::Model& model, const std::string& path) {
    int pieces = 0;
    const auto throwing = [&](const welm::Piece&) -> bool {
        if (++pieces == 3) throw Thrown{3};
        return true;
    };
    CHECK(thrown([&] { model.generate_with("床前明月光，", greedy(40), throwing); }) == 3 && pieces == 3);
    pieces = 0;
    CHECK(thrown([&] { (void)model.try_generate_with("床前明月光，", greedy(40), throwing); }) == 3 && pieces == 3);

    welm::LoadOptions load;
    load.progress = [](std::uint64_t, std::uint64_t) -> bool { throw Thrown{4}; };
    CHECK(thrown([&] { welm::Model::load(path, load); }) == 4);
    CHECK(thrown([&] { (void)welm::Model::try_load(path, load); }) == 4);
    std::uint64_t last = 0;
    load.progress = [&](std::uint64_t done, std::uint64_t total) {
        CHECK(last <= done && done <= total);
        last = done;
        return true;
    };
    welm::Model::load(path, load);
    CHECK(last > 0);
    load.progress = [](std::uint64_t, std::uint64_t) { return false; };
    CHECK(failure([&] { welm::Model::load(path, load); }).code() == WELM_LOAD_CANCELLED);

    // False ends it, without an error; so does leaving the loop.
    pieces = 0;
    model.generate_with("床前明月光，", greedy(40), [&](const welm::Piece&) { return ++pieces < 2; });
    CHECK(pieces == 2);
    for (const welm::Piece& piece : model.stream("床前明月光，", greedy(400))) {
        CHECK(piece.index == 0);
        break;
    }
    CHECK(thrown([&] {
              for (const welm::Piece& piece : model.stream("床前明月光，", greedy(400)))
                  throw Thrown{int(piece.index) + 5};
          })
          == 5);
}

void cancelling(const welm::Model& model) {
    welm::GenerateOptions options = greedy(400);
    options.ignore_eos = true;
    welm::CancelToken token;
    CHECK(!token.is_cancelled());
    options.cancel = &token;
    welm::Stream stream = model.stream("床前明月光，", options);
    CHECK(stream.next());
    token.cancel();
    CHECK(token.is_cancelled());
    welm::FinishReason reason = WELM_FINISH_NONE;
    while (const auto piece = stream.next()) reason = piece->finish_reason;
    CHECK(reason == WELM_FINISH_CANCELLED && !stream.next());
    CHECK(model.generate("床前明月光，", options).choices()[0].finish_reason == WELM_FINISH_CANCELLED);

    // From another thread, while this one waits.
    options.cancel = nullptr;
    welm::Stream other = model.stream("床前明月光，", options);
    std::thread canceller([&] { other.cancel(); });
    for (const welm::Piece& piece : other) reason = piece.finish_reason;
    canceller.join();
    CHECK(reason == WELM_FINISH_CANCELLED);
}

void empty_handles_fail(welm::Model model) {
    const welm::Model taken = std::move(model);
    CHECK(taken.get() && !model.get()); // NOLINT: what was moved from is the subject
    CHECK(failure([&] { model.generate("x"); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.stream("x"); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.stats(); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.check_health(); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.tokenize("x"); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.score("x", {"y"}); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.score_pairs({{"x", "y"}}); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.chat({{"user", "x"}}); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { model.chat_stream({{"user", "x"}}); }).code() == WELM_NULL_POINTER);
    CHECK(model.config().vocab_size == 0 && model.token_bytes(3).empty() && !model.clone().get());

    welm::Generation answer = taken.generate("x", greedy(2));
    const welm::Generation kept = std::move(answer);
    CHECK(answer.choices().empty() && answer.text().empty() && answer.usage().completion_tokens == 0);
    CHECK(answer.finish_reason() == WELM_FINISH_NONE);
    CHECK(kept.choices().size() == 1);

    welm::Stream stream = taken.stream("x", greedy(2));
    welm::Stream moved = std::move(stream);
    CHECK(failure([&] { stream.next(); }).code() == WELM_NULL_POINTER);
    CHECK(failure([&] { stream.next_for(1ms); }).code() == WELM_NULL_POINTER);
    stream.cancel();
    CHECK(stream.seed() == 0 && moved.next());
    stream = taken.stream("x", greedy(2));
    CHECK(stream.next());

    welm::Logits logits = taken.logits("x");
    const welm::Logits held = std::move(logits);
    CHECK(logits.rows() == 0 && !logits.data() && held.rows() > 0 && held.cols() == 7040 && held.data());
    welm::Scores scores = taken.score("x", {"y"});
    const welm::Scores rest = std::move(scores);
    CHECK(scores.all().empty() && rest.all().size() == 1);
    welm::CancelToken token;
    const welm::CancelToken cancelled = std::move(token);
    token.cancel();
    CHECK(!token.is_cancelled() && !cancelled.is_cancelled());
}

void the_rest(const welm::Model& model, const std::string& path) {
    CHECK(welm::version() == "0.1.0" && welm::abi_version() == WELM_ABI_VERSION);
    const welm::Config config = model.config();
    CHECK(config.family == "welm" && config.vocab_size == 7040 && config.has_tokenizer);
    CHECK(config.eos_token_ids.size() > 0 && model.is_special(config.eos_token_ids[0]));
    const welm::Estimate estimate = welm::Model::estimate(path), memory = model.memory();
    CHECK(estimate.total_bytes == memory.total_bytes && memory.total_bytes > 7'000'000);

    const std::string text = "甲：你好\n🙂";
    const std::vector<std::uint32_t> tokens = model.tokenize(text);
    std::string bytes;
    for (const std::uint32_t token : tokens) bytes += model.token_bytes(token);
    CHECK(model.detokenize(tokens) == text && bytes == text && model.tokenize("").empty());
    CHECK(model.detokenize({}).empty() && model.tokenize("<|endoftext|>", true).size() == 1);
    CHECK(model.token_id("<|endoftext|>") == model.tokenize("<|endoftext|>", true)[0]);
    const std::string nul("a\0b", 3);
    CHECK(model.detokenize(model.tokenize(nul)) == nul);

    // This model has no chat template.
    const std::vector<welm::Message> messages = {{"user", "你好"}};
    CHECK(!model.has_chat_template());
    CHECK(failure([&] { model.chat_prompt(messages); }).code() == WELM_CHAT_TEMPLATE);
    CHECK(failure([&] { model.chat_tokens(messages); }).code() == WELM_CHAT_TEMPLATE);
    const std::string request = R"({"messages": [{"role": "user", "content": [{"text": "你好"}]}], "mark": "!",
        "chat_template": "{{ messages[0].content[0].text }}{{ mark }}{{ tools is none }}"})";
    CHECK(model.chat_prompt_json(request) == "你好!True");
    CHECK(model.chat_tokens_json(request) == model.tokenize("你好!True"));
    CHECK(failure([&] { model.chat_prompt_json("{"); }).code() == WELM_INVALID_OPTION);
    CHECK(failure([&] { model.chat_tokens_json("{}"); }).code() == WELM_INVALID_OPTION);

    // The answer is the same as for its prompt.
    welm::GenerateOptions few;
    few.max_tokens = 4;
    few.seed = 7;
    const welm::Generation answer = model.chat_json(request, few);
    CHECK(answer.text() == model.generate(model.chat_tokens_json(request), few).text());
    CHECK(answer.finish_reason() == answer.choices()[0].finish_reason && answer.finish_reason() == WELM_FINISH_LENGTH);
    std::string streamed;
    for (const welm::Piece& piece : model.chat_stream_json(request, few)) streamed += piece.text;
    CHECK(streamed == answer.text());
    CHECK(failure([&] { model.chat(messages); }).code() == WELM_CHAT_TEMPLATE);
    CHECK(failure([&] { model.chat_stream(messages, few); }).code() == WELM_CHAT_TEMPLATE);
    CHECK(failure([&] { model.chat_json("{}"); }).code() == WELM_INVALID_OPTION);
    CHECK(failure([&] { model.chat_stream_json("{"); }).code() == WELM_INVALID_OPTION);
    CHECK(!model.try_chat(messages) && !model.try_chat_stream(messages));

    const welm::Scores scores = model.score("床前明月光，", {"疑是地上霜。", "Hello"});
    CHECK(scores.all().size() == 2 && scores.all()[0].logprob > scores.all()[1].logprob);
    double sum = 0;
    for (const welm::Token& token : scores.all()[0].tokens) sum += double(*token.logprob);
    CHECK(sum - scores.all()[0].logprob < 1e-3 && scores.all()[0].logprob - sum < 1e-3);
    const std::vector<std::string> continuations = {"疑是地上霜。"};
    CHECK(model.score("床前明月光，", continuations).all()[0].logprob == scores.all()[0].logprob);

    // Many prompts at once: each pair has the same score as alone, as text or as tokens.
    const std::vector<std::uint32_t> ids = model.tokenize("疑是地上霜。");
    const welm::Scores pairs =
        model.score_pairs({{"床前明月光，", "疑是地上霜。"}, {"床前明月光，", ids}, {"春眠不觉晓，", "处处闻啼鸟。"}});
    CHECK(pairs.all().size() == 3 && pairs.all()[0].logprob == scores.all()[0].logprob);
    CHECK(pairs.all()[1].logprob == pairs.all()[0].logprob);
    CHECK(pairs.all()[2].logprob == model.score("春眠不觉晓，", {"处处闻啼鸟。"}).all()[0].logprob);
    CHECK(model.score_pairs({}).all().empty());
    const welm::CancelToken cancel;
    welm::ScoreOptions ends;
    ends.logprobs = 1;
    CHECK(model.score_pairs({{"床前明月光，", "疑"}}, ends).all()[0].tokens[0].alternatives.size() == 1);
    ends.cache_salt = "a tenant's";
    CHECK(model.score_pairs({{"床前明月光，", "疑"}}, ends).all()[0].logprob == model.score("床前明月光，", {"疑"}).all()[0].logprob);
    ends.cache_salt = "";
    CHECK(failure([&] { model.score_pairs({{"a", "b"}}, ends); }).code() == WELM_INVALID_OPTION);
    ends.cache_salt.reset();
    ends.cancel = &cancel;
    CHECK(model.score_pairs({{"a", "b"}}, ends).all().size() == 1);
    cancel.cancel();
    CHECK(failure([&] { model.score_pairs({{"a", "b"}}, ends); }).code() == WELM_INTERRUPTED);
    ends.cancel = nullptr;
    ends.deadline = std::chrono::milliseconds(1);
    const std::vector<std::pair<welm::Prompt, welm::Prompt>> many(20'000, {"床前明月光，", "疑是地上霜。"});
    CHECK(failure([&] { model.score_pairs(many, ends); }).code() == WELM_INTERRUPTED);
    CHECK(!model.try_score_pairs({{"a", "\xff"}}));

    std::atomic<int> heard{0};
    {
        const welm::Log log = welm::Log::start(WELM_LOG_INFO, [&](welm::LogLevel level, std::string_view target,
                                                                  std::string_view message) {
            heard += level <= WELM_LOG_INFO && !target.empty() && message.rfind("model loaded", 0) == 0;
            throw Thrown{9}; // is dropped
        });
        welm::Model::load(path);
        CHECK(heard == 1);
    }
    welm::Model::load(path);
    CHECK(heard == 1);

    // A stream outlives its model.
    welm::Stream stream = [&] { return welm::Model::load(path).stream("床前明月光，", greedy(8)); }();
    std::string alone;
    for (const welm::Piece& piece : stream) alone += piece.text;
    CHECK(alone == model.generate("床前明月光，", greedy(8)).text());
    CHECK(!other_file(model, "x").empty());
    model.check_health();
    CHECK(welm::quantile_s(model.stats().time_to_first_token, 0.5) > 0);
}

/// Request `i` of a mix.
std::pair<std::string, welm::GenerateOptions> mixed(std::size_t i) {
    const char* const openings[] = {"床前明月光，", "春眠不觉晓，", "《秋思》\n", "甲：你好", "Hello, world. "};
    welm::GenerateOptions options;
    options.max_tokens = 10 + i % 23;
    options.temperature = i % 3 ? 1.0f : 0.0f;
    options.n = 1 + i % 2;
    options.logprobs = 2;
    options.seed = 100 + i;
    return {openings[i % 5], options};
}

void threads_share_a_model(const std::string& path) {
    const std::size_t threads = 32, requests = std::getenv("WELM_TEST_FEW") ? 1 : 6;
    std::vector<Said> alone;
    welm::LoadOptions uncached;
    uncached.prefix_cache = false;
    {
        const welm::Model model = welm::Model::load(path, uncached);
        for (std::size_t i = 0; i < threads * requests; ++i) {
            const auto [prompt, options] = mixed(i);
            alone.push_back(said(model.generate(prompt, options)));
        }
    }
    const welm::Model model = welm::Model::load(path);
    std::atomic<std::size_t> same{0}, cancelled{0};
    const auto work = [&](std::size_t thread) {
        for (std::size_t i = thread * requests; i < (thread + 1) * requests; ++i) {
            auto [prompt, options] = mixed(i);
            if (i % 2 == 0) {
                same += said(model.generate(prompt, options)) == alone[i];
                continue;
            }
            const welm::CancelToken token;
            options.cancel = &token;
            std::size_t pieces = 0;
            for (const welm::Piece& piece : model.stream(prompt, options)) {
                if (++pieces == 1 + i % 5) token.cancel();
                cancelled += piece.finish_reason == WELM_FINISH_CANCELLED;
                if (i % 4 == 1 && pieces == 1 + i % 5) break;
            }
        }
    };
    std::vector<std::thread> pool;
    for (std::size_t thread = 0; thread < threads; ++thread) pool.emplace_back(work, thread);
    for (std::thread& thread : pool) thread.join();
    CHECK(same == threads * requests / 2 && cancelled > 0);

    for (int tries = 0;; ++tries) {
        const welm::Stats stats = model.stats();
        if (stats.open == 0 && stats.blocks_used == 0) break;
        CHECK(tries < 2000);
        std::this_thread::sleep_for(10ms);
    }
    CHECK(model.stats().requests == threads * requests);
}

} // namespace

int main(int argc, char** argv) {
    CHECK(argc > 1);
    const std::string path = argv[1];
    try {
        const welm::Model model = welm::Model::load(path);
        pinned(model, goldens(argc, argv, 2));
        options_are_passed_on(model);
        errors_have_codes(model);
        exceptions_come_out_of_callbacks(model, path);
        cancelling(model);
        empty_handles_fail(model.clone());
        the_rest(model, path);
        threads_share_a_model(path);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "not expected: %s\n", error.what());
        return 1;
    }
    std::puts("all passed");
    return 0;
}
