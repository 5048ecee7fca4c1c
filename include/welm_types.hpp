// The types that the classes of welm.hpp take and return: errors, options, and the parts of answers. Include welm.hpp,
// not this file.

#ifndef WELM_TYPES_HPP
#define WELM_TYPES_HPP

#include "welm.h"

#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define WELM_HPP_EXCEPTIONS 1
#else
#define WELM_HPP_EXCEPTIONS 0
#endif

namespace welm {

class CancelToken;

using Status = welm_status;              ///< The kind of an error.
using FinishReason = welm_finish_reason; ///< Why a sequence ended.
using LogLevel = welm_log_level;         ///< How important a message is.
using Alternative = welm_alternative;    ///< A likely token, with the logarithm of its probability.
using Usage = welm_usage;                ///< Tokens that a request used.
using Estimate = welm_estimate;          ///< Memory that a model takes, in bytes.
using Stats = welm_stats;                ///< Counters of an engine.
using Histogram = welm_histogram;        ///< Times in buckets.

/// An error: `what()` says in one line what was expected and what was found.
class Error : public std::runtime_error {
public:
    Error(Status code, const std::string& message) : std::runtime_error(message), code_(code) {}

    /// The kind of error.
    Status code() const noexcept { return code_; }
    /// The name of the kind as in welm.h, "WELM_QUEUE_FULL"; always valid.
    const char* name() const noexcept { return welm_status_name(static_cast<std::int32_t>(code_)); }

private:
    Status code_;
};

/// A value, or an error.
template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    /// Whether there is a value.
    bool has_value() const noexcept { return state_.index() == 0; }
    /// Whether there is a value.
    explicit operator bool() const noexcept { return has_value(); }

    /// The value; there has to be one.
    T& operator*() & noexcept { return *operator->(); }
    /// The value; there has to be one.
    const T& operator*() const& noexcept { return *operator->(); }
    /// The value, moved out; there has to be one.
    T operator*() && { return std::move(*operator->()); }
    /// The value; there has to be one.
    T* operator->() noexcept {
        assert(has_value());
        return std::get_if<0>(&state_);
    }
    /// The value; there has to be one.
    const T* operator->() const noexcept {
        assert(has_value());
        return std::get_if<0>(&state_);
    }
    /// The error; there has to be one.
    const Error& error() const noexcept {
        assert(!has_value());
        return *std::get_if<1>(&state_);
    }

#if WELM_HPP_EXCEPTIONS
    /// The value, moved out; throws the error if there is none.
    T value() && {
        if (!has_value()) throw error();
        return std::move(*operator->());
    }
#endif

private:
    std::variant<T, Error> state_;
};

/// Success, or an error.
template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}

    /// Whether there is no error.
    bool has_value() const noexcept { return !error_; }
    /// Whether there is no error.
    explicit operator bool() const noexcept { return has_value(); }
    /// The error; there has to be one.
    const Error& error() const noexcept {
        assert(error_);
        return *error_;
    }

#if WELM_HPP_EXCEPTIONS
    /// Throws the error if there is one.
    void value() const {
        if (error_) throw *error_;
    }
#endif

private:
    std::optional<Error> error_;
};

/// A sequence whose values are made when they are read. Valid as long as the object that it came from.
template <class T>
class View {
public:
    using Get = T (*)(const void* object, std::size_t index);

    View() = default;
    View(const void* object, std::size_t size, Get get) noexcept : object_(object), size_(size), get_(get) {}

    /// Number of values.
    std::size_t size() const noexcept { return size_; }
    /// Whether there is none.
    bool empty() const noexcept { return size_ == 0; }
    /// The value of this index, which has to be below `size()`.
    T operator[](std::size_t index) const {
        assert(index < size_);
        return get_(object_, index);
    }

    /// Goes from value to value; stays valid when the view is destroyed.
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = T;
        using difference_type = std::ptrdiff_t;
        using pointer = void;
        using reference = T;

        iterator() = default;
        iterator(const View& view, std::size_t index) noexcept : view_(view), index_(index) {}
        T operator*() const { return view_[index_]; }
        iterator& operator++() noexcept {
            ++index_;
            return *this;
        }
        iterator operator++(int) noexcept { return {view_, index_++}; }
        friend bool operator==(const iterator& a, const iterator& b) noexcept { return a.index_ == b.index_; }
        friend bool operator!=(const iterator& a, const iterator& b) noexcept { return a.index_ != b.index_; }

    private:
        View view_;
        std::size_t index_ = 0;
    };

    /// The first value.
    iterator begin() const noexcept { return {*this, 0}; }
    /// After the last value.
    iterator end() const noexcept { return {*this, size_}; }

private:
    const void* object_ = nullptr;
    std::size_t size_ = 0;
    Get get_ = nullptr;
};

namespace detail {

inline welm_generate_options generate_defaults() noexcept {
    welm_generate_options options{};
    welm_generate_options_init(&options, sizeof options);
    return options;
}

inline welm_load_options load_defaults() noexcept {
    welm_load_options options{};
    welm_load_options_init(&options, sizeof options);
    return options;
}

inline std::string_view text(const char* data, std::size_t len) noexcept {
    return data ? std::string_view(data, len) : std::string_view();
}

/// Views of C arrays.
template <class T, class C>
View<T> array(const C* data, std::size_t size) noexcept {
    return {data, size, [](const void* values, std::size_t i) { return T(static_cast<const C*>(values)[i]); }};
}

} // namespace detail

/// Called while weights are read: bytes that are ready, bytes in all. Returning `false` ends the loading with
/// WELM_LOAD_CANCELLED.
using Progress = std::function<bool(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

/// How a model is loaded; see `welm_load_options`. Empty texts and zeros are the defaults.
struct LoadOptions {
    /// Where the model runs; auto is the first CUDA device that can run it, else the CPU (auto, cpu, cuda or cuda:N;
    /// default: auto).
    std::string device{};
    /// Element type of the weights in memory; auto is never less exact than the file (auto, f32, bf16 or int8;
    /// default: auto).
    std::string dtype{};
    /// Element type of the cached keys and values; auto is f16 on the CPU and bf16 on CUDA, which has no other (auto,
    /// f32, bf16 or f16; default: auto).
    std::string cache_dtype{};
    /// Precision of activations where they are multiplied by int8 or four-bit weights (auto, int8, int8_rotated or
    /// int16; default: auto).
    std::string activations{};
    /// Instruction set to use at most, such as avx2 or neon (default: what WELM_ISA says, or else the best that the
    /// machine has).
    std::string isa{};
    /// Compute threads (1 to 1024; default: as many as CPU affinity and cgroup quota allow).
    std::size_t threads = detail::load_defaults().threads;
    /// Most tokens of one sequence (1 to 16777216; default: the limit of the model).
    std::size_t context_tokens = detail::load_defaults().context_tokens;
    /// Tokens that the KV cache holds, over all sequences (1 to 4294967296; default: eight full contexts, but no more
    /// than 32768).
    std::size_t cache_tokens = detail::load_defaults().cache_tokens;
    /// Most prompt tokens computed in one step, so that other requests wait at most one step for a long prompt (1 to
    /// 65536; default: 256 on the CPU, up to 2048 on CUDA).
    std::size_t chunk_tokens = detail::load_defaults().chunk_tokens;
    /// Most sequences that run at once (1 to 4096; default: 64).
    std::size_t max_running = detail::load_defaults().max_running;
    /// Most sequences that wait; a request beyond them is refused (1 to 1048576; default: 1024).
    std::size_t queue_limit = detail::load_defaults().queue_limit;
    /// Most bytes that weights, KV cache and scratch may take together (default: what the machine has available).
    std::uint64_t memory_limit = detail::load_defaults().memory_limit;
    /// Whether beginnings that prompts have in common are computed once and shared (default: true).
    bool prefix_cache = detail::load_defaults().prefix_cache;
    /// Whether weights are copied out of the mapped file into memory of the process (default: false).
    bool copy_weights = detail::load_defaults().copy_weights;
    /// Called while weights are read or quantised, with the bytes that are ready and the bytes in all (default:
    /// none).
    ///
    /// It is called on the loading thread.
    Progress progress{};
    /// Whether a mapped file that is truncated while in use is an error instead of the end of the process (default:
    /// true).
    bool guard_mapped_files = detail::load_defaults().guard_mapped_files;
    /// Whether a model may have tensors that nothing reads, such as heads for other tasks (default: false).
    bool allow_unread_tensors = detail::load_defaults().allow_unread_tensors;
};

/// How a prompt is continued; see `welm_generate_options`. Defaults are those of the library.
struct GenerateOptions {
    /// Most tokens generated for each sequence (default: 16).
    std::size_t max_tokens = detail::generate_defaults().max_tokens;
    /// Divides the logits; 0 is greedy: the likeliest token is always taken (0 to 100; default: 0.85).
    float temperature = detail::generate_defaults().temperature;
    /// Keeps the likeliest tokens whose probabilities add up to this; 0 is greedy, 1 is off (0 to 1; default: 0.95).
    float top_p = detail::generate_defaults().top_p;
    /// Keeps this many of the likeliest tokens; 0 is off (default: 50).
    std::size_t top_k = detail::generate_defaults().top_k;
    /// Drops tokens less likely than this share of the likeliest token's probability; 0 is off (0 to 1; default:
    /// 0.0).
    float min_p = detail::generate_defaults().min_p;
    /// Divides positive and multiplies negative logits of tokens that prompt or text contain; 1 is off (0.01 to 100;
    /// default: 1.0).
    float repetition_penalty = detail::generate_defaults().repetition_penalty;
    /// Subtracted from a token's logit for each time that the generated text has it; 0 is off (-100 to 100; default:
    /// 0.0).
    float frequency_penalty = detail::generate_defaults().frequency_penalty;
    /// Subtracted once from the logits of tokens that the generated text has; 0 is off (-100 to 100; default: 0.0).
    float presence_penalty = detail::generate_defaults().presence_penalty;
    /// Added to the logits of these tokens; -infinity rules a token out (-100 to 100, or -infinity; default: none).
    std::vector<welm_logit_bias> logit_bias{};
    /// Sequences returned; the prompt is computed once (1 to 128; default: 1).
    std::size_t n = detail::generate_defaults().n;
    /// Whether the prompt is part of the text, and of the log-probabilities if those are asked for (default: false).
    bool echo = detail::generate_defaults().echo;
    /// Strings that end a sequence; they are never part of the text (at most 256, each of 1 to 256 bytes; default:
    /// none).
    std::vector<std::string> stop{};
    /// How many of the likeliest tokens are reported at each place, with log-probabilities (at most 100; default:
    /// none is reported).
    std::optional<std::int32_t> logprobs{};
    /// Seed of the random numbers; the same request with the same seed gives the same text (default: drawn, and
    /// reported with the result).
    std::optional<std::uint64_t> seed{};
    /// Time after which the request ends with what it has, counted from the call (default: never).
    ///
    /// Zero or less counts as 1 ms.
    std::optional<std::chrono::milliseconds> deadline{};
    /// Token that ends the request from another thread (default: none).
    ///
    /// The object is only used during the call; the request keeps what it stands for, and ends when that is cancelled.
    const CancelToken* cancel = nullptr;
    /// Whether spellings of special tokens in the prompt become these tokens; otherwise they are ordinary text
    /// (default: false).
    bool parse_special = detail::generate_defaults().parse_special;
    /// Whether the model's end tokens are ignored, so that the text goes on up to max_tokens (default: false).
    bool ignore_eos = detail::generate_defaults().ignore_eos;
    /// Tokens that end a sequence as the model's own end tokens do (at most 256; default: none).
    std::vector<std::uint32_t> stop_token_ids{};
    /// Prefix-cache entries are shared only between requests with the same salt (1 to 256 bytes; default: shared by
    /// all that have none).
    std::optional<std::string> cache_salt{};
};

/// How pairs are scored; see `welm_score_options`.
struct ScoreOptions {
    /// Time after which the scoring ends without a result, counted from the call (default: never).
    ///
    /// Zero or less counts as 1 ms.
    std::optional<std::chrono::milliseconds> deadline{};
    /// Token that ends the scoring from another thread (default: none).
    ///
    /// It is only used during the call.
    const CancelToken* cancel = nullptr;
    /// How many of the likeliest tokens are reported at each place of a continuation, with log-probabilities (at most
    /// 100; default: 0).
    std::size_t logprobs = 0;
    /// Prefix-cache entries are shared only between requests with the same salt (1 to 256 bytes; default: shared by
    /// all that have none).
    ///
    /// It changes no score.
    std::optional<std::string> cache_salt{};
};

namespace detail {

/// The options in the form that C functions take, without the callback.
inline welm_load_options values(const LoadOptions& options) {
    const auto set = [](const std::string& text) { return text.empty() ? nullptr : text.c_str(); };
    welm_load_options c = load_defaults();
    c.device = set(options.device);
    c.dtype = set(options.dtype);
    c.cache_dtype = set(options.cache_dtype);
    c.activations = set(options.activations);
    c.isa = set(options.isa);
    c.threads = options.threads;
    c.context_tokens = options.context_tokens;
    c.cache_tokens = options.cache_tokens;
    c.chunk_tokens = options.chunk_tokens;
    c.max_running = options.max_running;
    c.queue_limit = options.queue_limit;
    c.memory_limit = options.memory_limit;
    c.prefix_cache = options.prefix_cache;
    c.copy_weights = options.copy_weights;
    c.guard_mapped_files = options.guard_mapped_files;
    c.allow_unread_tensors = options.allow_unread_tensors;
    return c;
}

/// A deadline in the form that C functions take, where 0 is none.
inline std::uint64_t deadline_ms(const std::optional<std::chrono::milliseconds>& deadline) noexcept {
    if (!deadline) return 0;
    return deadline->count() > 0 ? static_cast<std::uint64_t>(deadline->count()) : 1;
}

/// The options in the form that C functions take, without the stop strings and the token that cancels.
inline welm_generate_options values(const GenerateOptions& options) noexcept {
    welm_generate_options c = generate_defaults();
    c.max_tokens = options.max_tokens;
    c.top_k = options.top_k;
    c.n = options.n;
    c.temperature = options.temperature;
    c.top_p = options.top_p;
    c.min_p = options.min_p;
    c.repetition_penalty = options.repetition_penalty;
    c.frequency_penalty = options.frequency_penalty;
    c.presence_penalty = options.presence_penalty;
    c.logit_bias = options.logit_bias.data();
    c.n_logit_bias = options.logit_bias.size();
    c.has_seed = options.seed.has_value();
    c.seed = options.seed.value_or(0);
    c.logprobs = options.logprobs.value_or(c.logprobs);
    c.echo = options.echo;
    c.parse_special = options.parse_special;
    c.ignore_eos = options.ignore_eos;
    c.stop_token_ids = options.stop_token_ids.data();
    c.n_stop_token_ids = options.stop_token_ids.size();
    if (options.cache_salt) {
        c.cache_salt = options.cache_salt->data();
        c.cache_salt_len = options.cache_salt->size();
    }
    c.deadline_ms = deadline_ms(options.deadline);
    return c;
}

} // namespace detail

/// One message of a conversation.
struct Message {
    std::string role{};    ///< "system", "user", "assistant", or another role that the template knows.
    std::string content{}; ///< The message's text.
};

/// A prompt: text or tokens. It only points to them, so they have to live as long.
class Prompt {
public:
    Prompt(std::string_view text) : c_(welm_prompt_text(text.data(), text.size())) {}
    Prompt(const std::string& text) : Prompt(std::string_view(text)) {}
    Prompt(const char* text) : Prompt(std::string_view(text)) {}
    Prompt(const std::vector<std::uint32_t>& tokens) : Prompt(tokens.data(), tokens.size()) {}
    Prompt(const std::uint32_t* tokens, std::size_t n) : c_(welm_prompt_tokens(tokens, n)) {}

    /// For functions of welm.h.
    welm_prompt get() const noexcept { return c_; }

private:
    welm_prompt c_;
};

/// A token of an answer. Its view is valid as long as the answer or piece.
struct Token {
    std::uint32_t id = 0;                 ///< The token.
    std::optional<float> logprob{};       ///< Natural logarithm of its probability, if asked for.
    View<Alternative> alternatives{};     ///< The likeliest tokens at this position, likeliest first.

    explicit Token(const welm_token& c)
        : id(c.id), logprob(c.has_logprob ? std::optional<float>(c.logprob) : std::nullopt),
          alternatives(detail::array<Alternative>(c.alternatives, c.n_alternatives)) {}
};

/// A piece of a stream. Text and tokens are valid until the next piece is asked for, or until the callback returns.
struct Piece {
    std::size_t index = 0;                         ///< Which of the `n` sequences it belongs to.
    std::string_view text{};                       ///< The next part of the text; may be empty.
    View<Token> tokens{};                          ///< Tokens since the last piece.
    FinishReason finish_reason = WELM_FINISH_NONE; ///< On the last piece of a sequence: why it ended.
    std::size_t completion_tokens = 0;             ///< On the last piece: tokens generated.
    std::size_t cached_tokens = 0;                 ///< On the last piece: prompt tokens found in the prefix cache.
    std::optional<std::uint32_t> end_token{};      ///< On the last piece: the token that ended it, if one did.

    explicit Piece(const welm_piece& c)
        : index(c.index), text(detail::text(c.text, c.text_len)), tokens(detail::array<Token>(c.tokens, c.n_tokens)),
          finish_reason(c.finish_reason), completion_tokens(c.completion_tokens), cached_tokens(c.cached_tokens),
          end_token(c.has_end_token ? std::optional<std::uint32_t>(c.end_token) : std::nullopt) {}
};

/// The result of waiting for a piece.
struct Waited {
    bool pending = false;         ///< No piece came in time.
    std::optional<Piece> piece{}; ///< Nothing if `pending`, and at the end.
};

/// One generated sequence. It is valid as long as its Generation.
struct Choice {
    std::string_view text{};                       ///< The text; with `echo`, the prompt is in front of it.
    View<Token> tokens{};                          ///< Its tokens; with `echo`, the prompt's are in front of them.
    FinishReason finish_reason = WELM_FINISH_NONE; ///< Why it ended.
    std::optional<std::uint32_t> end_token{};      ///< The token that ended it, if one did.

    Choice() = default;
    explicit Choice(const welm_choice& c)
        : text(detail::text(c.text, c.text_len)), tokens(detail::array<Token>(c.tokens, c.n_tokens)),
          finish_reason(c.finish_reason),
          end_token(c.has_end_token ? std::optional<std::uint32_t>(c.end_token) : std::nullopt) {}
};

/// The log-likelihood of a continuation. Its view is valid as long as its Scores.
struct Score {
    double logprob = 0;   ///< Sum of the log-probabilities of its tokens, natural logarithm.
    View<Token> tokens{}; ///< The tokens, each with its log-probability.

    explicit Score(const welm_score& c) : logprob(c.logprob), tokens(detail::array<Token>(c.tokens, c.n_tokens)) {}
};

/// Settings of a model; see `welm_config`. Its views are valid as long as the handle that it came from.
struct Config {
    std::string_view family{};                ///< The family, as named in the model's file.
    std::string_view backend{};               ///< Where the model runs.
    std::uint64_t n_params = 0;               ///< Number of weights.
    std::size_t vocab_size = 0;               ///< Length of the logits.
    std::size_t dim = 0;                      ///< Width of the residual stream.
    std::size_t n_layers = 0;                 ///< Layers.
    std::size_t n_heads = 0;                  ///< Query heads.
    std::size_t n_kv_heads = 0;               ///< Key and value heads.
    std::size_t head_dim = 0;                 ///< Width of a head.
    std::size_t hidden_dim = 0;               ///< Width of the hidden layer of the feed-forward network.
    std::size_t max_context = 0;              ///< Most tokens of a sequence that the model was made for.
    View<std::uint32_t> eos_token_ids{};      ///< Tokens that end a text.
    std::optional<std::uint32_t> bos_token_id{}; ///< The token that starts a text.
    bool has_tokenizer = false;               ///< Without one the model takes and returns tokens only.

    Config() = default;
    explicit Config(const welm_config& c)
        : family(c.family), backend(c.backend), n_params(c.n_params), vocab_size(c.vocab_size), dim(c.dim),
          n_layers(c.n_layers), n_heads(c.n_heads), n_kv_heads(c.n_kv_heads), head_dim(c.head_dim),
          hidden_dim(c.hidden_dim), max_context(c.max_context),
          eos_token_ids(detail::array<std::uint32_t>(c.eos_token_ids, c.n_eos)),
          bos_token_id(c.has_bos ? std::optional<std::uint32_t>(c.bos_token_id) : std::nullopt),
          has_tokenizer(c.has_tokenizer) {}
};

} // namespace welm

#endif // WELM_TYPES_HPP
