// welm for C++17: a thin header over welm.h.
//
//     const welm::Model model = welm::Model::load("my-model");
//     for (const welm::Piece& piece : model.stream("Once", options))
//         std::cout << piece.text << std::flush;
//
// - Handles own their objects. They can be moved, not copied. A handle that was moved from is empty: its functions
//   fail with WELM_NULL_POINTER, or return nothing, zero or false.
// - Functions that can fail throw welm::Error. Each also has a form, try_..., that returns a welm::Result instead. With
//   -fno-exceptions there are only the try_ functions.
// - Texts are UTF-8. A std::string_view, View or pointer that is returned belongs to the object that it came from,
//   as its comment says. Arguments are only used during the call.
// - Callbacks may throw. Then the work stops, and the exception leaves the function that was called, even if that is a
//   try_ function.
// - Threads: as in welm.h. One Model may be used by any number of threads at once; answers never change.

#ifndef WELM_HPP
#define WELM_HPP

#include "welm.h"
#include "welm_types.hpp"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace welm {

namespace detail {

template <auto Free>
struct Freer {
    template <class T>
    void operator()(T* object) const noexcept {
        Free(object);
    }
};

template <class T, auto Free>
using Handle = std::unique_ptr<T, Freer<Free>>;

/// Where a C function writes its error.
class ErrorOut {
public:
    ~ErrorOut() { welm_error_free(error_); }
    ErrorOut() = default;
    ErrorOut(const ErrorOut&) = delete;
    ErrorOut& operator=(const ErrorOut&) = delete;

    welm_error** out() noexcept { return &error_; }
    Error with(Status code) const { return Error(code, welm_error_message(error_)); }

private:
    welm_error* error_ = nullptr;
};

/// Makes a call that may fail.
template <class Call>
Result<void> run(Call call) {
    ErrorOut error;
    const Status status = call(error.out());
    if (status != WELM_OK) return error.with(status);
    return {};
}

/// Makes a call that creates a `C`, and wraps it in a `T`.
template <class T, class C, class Call>
Result<T> make(Call call) {
    C* made = nullptr;
    ErrorOut error;
    const Status status = call(&made, error.out());
    if (status != WELM_OK) return error.with(status);
    return T(made);
}

/// Makes a call that fills a struct with a `struct_size`.
template <class C, class Call>
Result<C> fill(Call call) {
    C filled{};
    filled.struct_size = sizeof(C);
    ErrorOut error;
    const Status status = call(&filled, error.out());
    if (status != WELM_OK) return error.with(status);
    return filled;
}

/// Makes a call that creates a text.
template <class Call>
Result<std::string> text(Call call) {
    welm_string* made = nullptr;
    ErrorOut error;
    const Status status = call(&made, error.out());
    if (status != WELM_OK) return error.with(status);
    const Handle<welm_string, welm_string_free> owned(made);
    std::size_t len = 0;
    const char* data = welm_string_data(made, &len);
    return std::string(data, len);
}

/// Makes a call that creates tokens.
template <class Call>
Result<std::vector<std::uint32_t>> tokens(Call call) {
    welm_tokens* made = nullptr;
    ErrorOut error;
    const Status status = call(&made, error.out());
    if (status != WELM_OK) return error.with(status);
    const Handle<welm_tokens, welm_tokens_free> owned(made);
    std::size_t len = 0;
    const std::uint32_t* data = welm_tokens_data(made, &len);
    return std::vector<std::uint32_t>(data, data + len);
}

/// The callable that a C callback calls. It stores what the callable throws, because nothing may be thrown through C.
template <class F>
class Guarded {
public:
    explicit Guarded(F& callable) noexcept : callable_(callable) {}

    /// Whether to go on: what the callable returns; true if it returns nothing, false if it throws.
    template <class... Args>
    bool operator()(Args&&... args) noexcept {
#if WELM_HPP_EXCEPTIONS
        try {
            return call(std::forward<Args>(args)...);
        } catch (...) {
            thrown_ = std::current_exception();
            return false;
        }
#else
        return call(std::forward<Args>(args)...);
#endif
    }

    /// Throws the stored exception, if there is one.
    void rethrow() const {
        if (thrown_) std::rethrow_exception(thrown_);
    }

private:
    template <class... Args>
    bool call(Args&&... args) {
        if constexpr (std::is_void_v<std::invoke_result_t<F&, Args...>>) {
            std::invoke(callable_, std::forward<Args>(args)...);
            return true;
        } else {
            return static_cast<bool>(std::invoke(callable_, std::forward<Args>(args)...));
        }
    }

    F& callable_;
    std::exception_ptr thrown_;
};

/// Texts in the form that C functions take.
struct Texts {
    std::vector<const char*> data;
    std::vector<std::size_t> lens;

    template <class Range>
    explicit Texts(const Range& texts) {
        for (auto&& element : texts) {
            using Element = decltype(element);
            using Value = std::remove_cv_t<std::remove_reference_t<Element>>;
            static_assert(std::is_lvalue_reference_v<Element> || std::is_same_v<Value, std::string_view> ||
                              std::is_pointer_v<Value>,
                          "the range makes its texts as it is read: put them into a vector first");
            const std::string_view text = element;
            data.push_back(text.data());
            lens.push_back(text.size());
        }
    }
};

} // namespace detail

/// Ends requests from any thread: all requests whose options pointed to it.
class CancelToken {
public:
    /// A token that is not cancelled.
    CancelToken() : handle_(welm_cancel_token_new()) {}

    /// Asks the requests to stop, within one step. It stays cancelled.
    void cancel() const noexcept { welm_cancel_token_cancel(handle_.get()); }
    /// Whether it was cancelled.
    bool is_cancelled() const noexcept { return welm_cancel_token_is_cancelled(handle_.get()); }
    /// For functions of welm.h.
    const welm_cancel_token* get() const noexcept { return handle_.get(); }

private:
    detail::Handle<welm_cancel_token, welm_cancel_token_free> handle_;
};

namespace detail {

inline welm_load_options to_c(const LoadOptions& options, Guarded<const Progress>& progress) {
    welm_load_options c = values(options);
    if (options.progress) {
        c.progress = [](void* data, std::uint64_t done_bytes, std::uint64_t total_bytes) {
            return (*static_cast<Guarded<const Progress>*>(data))(done_bytes, total_bytes);
        };
        c.progress_data = &progress;
    }
    return c;
}

inline welm_score_options to_c(const ScoreOptions& options) noexcept {
    welm_score_options c{};
    welm_score_options_init(&c, sizeof c);
    c.deadline_ms = deadline_ms(options.deadline);
    c.cancel = options.cancel ? options.cancel->get() : nullptr;
    c.logprobs = options.logprobs;
    if (options.cache_salt) {
        c.cache_salt = options.cache_salt->data();
        c.cache_salt_len = options.cache_salt->size();
    }
    return c;
}

/// Options in the form that C functions take, with the arrays that they point to.
class COptions {
public:
    explicit COptions(const GenerateOptions& options) : stop_(options.stop), c_(values(options)) {
        c_.stop = stop_.data.data();
        c_.stop_lens = stop_.lens.data();
        c_.n_stop = stop_.data.size();
        c_.cancel = options.cancel ? options.cancel->get() : nullptr;
    }
    COptions(const COptions&) = delete;
    COptions& operator=(const COptions&) = delete;

    const welm_generate_options* get() const noexcept { return &c_; }

private:
    Texts stop_;
    welm_generate_options c_;
};

} // namespace detail

/// The answer to a request.
class Generation {
public:
    explicit Generation(welm_generation* owned) noexcept : handle_(owned) {}

    /// Text of the first sequence; valid as long as this object.
    std::string_view text() const { return choice(handle_.get(), 0).text; }
    /// Why the first sequence ended.
    FinishReason finish_reason() const noexcept { return welm_generation_finish_reason(handle_.get()); }
    /// All sequences, in order; valid as long as this object.
    View<Choice> choices() const noexcept {
        return {handle_.get(), welm_generation_n_choices(handle_.get()), choice};
    }
    /// Tokens that were used.
    Usage usage() const noexcept {
        const welm_usage* usage = welm_generation_usage(handle_.get());
        return usage ? *usage : Usage{};
    }
    /// The seed that was used.
    std::uint64_t seed() const noexcept { return welm_generation_seed(handle_.get()); }
    /// For functions of welm.h.
    const welm_generation* get() const noexcept { return handle_.get(); }

private:
    static Choice choice(const void* generation, std::size_t index) {
        const welm_choice* c = welm_generation_choice(static_cast<const welm_generation*>(generation), index);
        return c ? Choice(*c) : Choice();
    }

    detail::Handle<welm_generation, welm_generation_free> handle_;
};

/// An answer that is being generated. One thread at a time may ask for pieces; any thread may cancel. The destructor
/// ends the request.
class Stream {
public:
    explicit Stream(welm_stream* owned) noexcept : handle_(owned) {}

    /// Waits for the next piece; nothing at the end. Its text is valid until the next piece.
    Result<std::optional<Piece>> try_next() {
        const welm_piece* piece = nullptr;
        detail::ErrorOut error;
        const Status status = welm_stream_next(handle_.get(), &piece, error.out());
        if (status == WELM_END) return std::optional<Piece>();
        if (status != WELM_OK) return error.with(status);
        return std::optional<Piece>(*piece);
    }
    /// As `try_next`, but waits no longer than `timeout`. So a server can check now and then whether its client has
    /// hung up.
    Result<Waited> try_next_for(std::chrono::milliseconds timeout) {
        const auto ms = static_cast<std::uint64_t>(timeout.count() > 0 ? timeout.count() : 0);
        const welm_piece* piece = nullptr;
        detail::ErrorOut error;
        const Status status = welm_stream_next_timeout(handle_.get(), ms, &piece, error.out());
        if (status == WELM_PENDING) return Waited{true, {}};
        if (status == WELM_END) return Waited{};
        if (status != WELM_OK) return error.with(status);
        return Waited{false, Piece(*piece)};
    }
    /// Ends the request; pieces that are already generated still come.
    void cancel() const noexcept { welm_stream_cancel(handle_.get()); }
    /// The seed that is used.
    std::uint64_t seed() const noexcept { return welm_stream_seed(handle_.get()); }
    /// Tokens of the prompt.
    std::size_t prompt_tokens() const noexcept { return welm_stream_prompt_tokens(handle_.get()); }
    /// For functions of welm.h.
    const welm_stream* get() const noexcept { return handle_.get(); }

#if WELM_HPP_EXCEPTIONS
    /// See `try_next`.
    std::optional<Piece> next() { return try_next().value(); }
    /// See `try_next_for`.
    Waited next_for(std::chrono::milliseconds timeout) { return try_next_for(timeout).value(); }

    /// Goes from piece to piece. A stream can be read once: all its iterators share one position.
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Piece;
        using difference_type = std::ptrdiff_t;
        using pointer = const Piece*;
        using reference = const Piece&;

        iterator() = default;
        explicit iterator(Stream& stream) : stream_(&stream), piece_(stream.next()) {}
        const Piece& operator*() const noexcept { return *piece_; }
        const Piece* operator->() const noexcept { return &*piece_; }
        iterator& operator++() {
            piece_ = stream_->next();
            return *this;
        }
        void operator++(int) { ++*this; }
        /// Iterators are equal if both are at the end, or both are not.
        friend bool operator==(const iterator& a, const iterator& b) noexcept {
            return a.piece_.has_value() == b.piece_.has_value();
        }
        friend bool operator!=(const iterator& a, const iterator& b) noexcept { return !(a == b); }

    private:
        Stream* stream_ = nullptr;
        std::optional<Piece> piece_;
    };

    /// Waits for the next piece.
    iterator begin() { return iterator(*this); }
    /// After the last piece.
    iterator end() noexcept { return {}; }
#endif

private:
    detail::Handle<welm_stream, welm_stream_free> handle_;
};

/// The scores of several continuations.
class Scores {
public:
    explicit Scores(welm_scores* owned) noexcept : handle_(owned) {}

    /// All scores, in the order of the continuations; valid as long as this object.
    View<Score> all() const noexcept {
        return {handle_.get(), welm_scores_len(handle_.get()), [](const void* scores, std::size_t index) {
                    return Score(*welm_scores_get(static_cast<const welm_scores*>(scores), index));
                }};
    }

private:
    detail::Handle<welm_scores, welm_scores_free> handle_;
};

/// Logits after some tokens of a prompt, `rows()` times `cols()`.
class Logits {
public:
    explicit Logits(welm_logits* owned) noexcept
        : handle_(owned), data_(welm_logits_data(owned, &rows_, &cols_)) {}

    /// Positions of the prompt that were asked for.
    std::size_t rows() const noexcept { return handle_ ? rows_ : 0; }
    /// The model's `vocab_size`.
    std::size_t cols() const noexcept { return handle_ ? cols_ : 0; }
    /// One row after another; valid as long as this object.
    const float* data() const noexcept { return handle_ ? data_ : nullptr; }

private:
    detail::Handle<welm_logits, welm_logits_free> handle_;
    std::size_t rows_ = 0, cols_ = 0;
    const float* data_;
};

namespace detail {

inline std::vector<welm_message> to_c(const std::vector<Message>& messages) {
    std::vector<welm_message> c;
    for (const Message& message : messages)
        c.push_back({message.role.c_str(), message.content.data(), message.content.size()});
    return c;
}

} // namespace detail

/// A loaded model. Any number of threads may use one at once: their requests are computed together.
class Model {
public:
    explicit Model(welm_model* owned) noexcept : handle_(owned) {}

    /// Loads a Hugging Face folder, an int8 folder, or a GGUF file. The files must not change as long as the model
    /// exists.
    static Result<Model> try_load(const std::string& path, const LoadOptions& options = {}) {
        detail::Guarded<const Progress> progress(options.progress);
        const welm_load_options c = detail::to_c(options, progress);
        auto model = detail::make<Model, welm_model>(
            [&](auto** out, auto** error) { return welm_model_load(path.c_str(), &c, out, error); });
        progress.rethrow();
        return model;
    }

    /// Memory that loading would take.
    static Result<Estimate> try_estimate(const std::string& path, const LoadOptions& options = {}) {
        detail::Guarded<const Progress> progress(options.progress);
        const welm_load_options c = detail::to_c(options, progress);
        return detail::fill<Estimate>(
            [&](auto* out, auto** error) { return welm_model_estimate(path.c_str(), &c, out, error); });
    }

    /// Continues a prompt; returns when all sequences have ended. Cancelling is no error.
    Result<Generation> try_generate(Prompt prompt, const GenerateOptions& options = {}) const {
        const detail::COptions c(options);
        return detail::make<Generation, welm_generation>([&](auto** out, auto** error) {
            return welm_model_generate(get(), prompt.get(), c.get(), out, error);
        });
    }

    /// Continues a prompt and calls `callback(const Piece&)` for each piece, on this thread; returning `false` ends it.
    template <class F>
    Result<void> try_generate_with(Prompt prompt, const GenerateOptions& options, F&& callback) const {
        using Callback = detail::Guarded<std::remove_reference_t<F>>;
        const detail::COptions c(options);
        Callback guarded(callback);
        const auto call = [](void* data, const welm_piece* piece) {
            return (*static_cast<Callback*>(data))(Piece(*piece));
        };
        auto done = detail::run([&](auto** error) {
            return welm_model_generate_with(get(), prompt.get(), c.get(), call, &guarded, error);
        });
        guarded.rethrow();
        return done;
    }

    /// Continues a prompt; the caller asks for one piece after another. The model may be destroyed before the stream.
    Result<Stream> try_stream(Prompt prompt, const GenerateOptions& options = {}) const {
        const detail::COptions c(options);
        return detail::make<Stream, welm_stream>([&](auto** out, auto** error) {
            return welm_model_stream(get(), prompt.get(), c.get(), out, error);
        });
    }

    /// Log-likelihoods of given continuations, which are any range that holds its elements, or has views of them; they
    /// convert to std::string_view.
    template <class Range = std::initializer_list<std::string_view>>
    Result<Scores> try_score(std::string_view prompt, const Range& continuations) const {
        const detail::Texts texts(continuations);
        return detail::make<Scores, welm_scores>([&](auto** out, auto** error) {
            return welm_model_score(get(), prompt.data(), prompt.size(), texts.data.data(), texts.lens.data(),
                                    texts.data.size(), out, error);
        });
    }

    /// Log-likelihoods of many continuations, each after its own prompt. They are computed together, and are those that
    /// `try_score` gives for each. Give pairs of the same prompt one after another: equal beginnings are computed once.
    Result<Scores> try_score_pairs(const std::vector<std::pair<Prompt, Prompt>>& pairs,
                                   const ScoreOptions& options = {}) const {
        std::vector<welm_prompt> prompts, continuations;
        for (const auto& [prompt, continuation] : pairs) {
            prompts.push_back(prompt.get());
            continuations.push_back(continuation.get());
        }
        const welm_score_options c = detail::to_c(options);
        return detail::make<Scores, welm_scores>([&](auto** out, auto** error) {
            return welm_model_score_pairs(get(), prompts.data(), continuations.data(), pairs.size(), &c, out, error);
        });
    }

    /// Logits after each token of a prompt from position `from` on.
    Result<Logits> try_logits(Prompt prompt, std::size_t from = 0) const {
        return detail::make<Logits, welm_logits>(
            [&](auto** out, auto** error) { return welm_model_logits(get(), prompt.get(), from, out, error); });
    }

    /// The tokens of a text; with `parse_special`, spellings of special tokens become these tokens.
    Result<std::vector<std::uint32_t>> try_tokenize(std::string_view text, bool parse_special = false) const {
        return detail::tokens([&](auto** out, auto** error) {
            return welm_model_tokenize(get(), text.data(), text.size(), parse_special, out, error);
        });
    }

    /// The text of tokens; bytes that are not UTF-8 become U+FFFD.
    Result<std::string> try_detokenize(const std::vector<std::uint32_t>& tokens) const {
        return detail::text([&](auto** out, auto** error) {
            return welm_model_detokenize(get(), tokens.data(), tokens.size(), out, error);
        });
    }

    /// The id of a token, from its name in the vocabulary; WELM_NOT_FOUND if there is none.
    Result<std::uint32_t> try_token_id(std::string_view token) const {
        std::uint32_t id = 0;
        auto done = detail::run([&](auto** error) {
            return welm_model_token_id(get(), token.data(), token.size(), &id, error);
        });
        if (!done) return done.error();
        return id;
    }

    /// The text of a conversation, made by the model's own chat template; with `answer` it ends where the assistant's
    /// answer begins.
    Result<std::string> try_chat_prompt(const std::vector<Message>& messages, bool answer = true) const {
        const std::vector<welm_message> c = detail::to_c(messages);
        return detail::text([&](auto** out, auto** error) {
            return welm_model_chat_prompt(get(), c.data(), c.size(), answer, out, error);
        });
    }

    /// The tokens of `try_chat_prompt`, which can be used as a prompt. Special tokens in the text of a message are
    /// parsed, so look for them in messages that are not trusted.
    Result<std::vector<std::uint32_t>> try_chat_tokens(const std::vector<Message>& messages, bool answer = true) const {
        const std::vector<welm_message> c = detail::to_c(messages);
        return detail::tokens([&](auto** out, auto** error) {
            return welm_model_chat_tokens(get(), c.data(), c.size(), answer, out, error);
        });
    }

    /// As `try_chat_prompt`, for a JSON object with `messages`, `tools` and the other keys of
    /// `welm_model_chat_prompt_json`.
    Result<std::string> try_chat_prompt_json(std::string_view request) const {
        return detail::text([&](auto** out, auto** error) {
            return welm_model_chat_prompt_json(get(), request.data(), request.size(), out, error);
        });
    }

    /// The tokens of `try_chat_prompt_json`, made as by `try_chat_tokens`.
    Result<std::vector<std::uint32_t>> try_chat_tokens_json(std::string_view request) const {
        return detail::tokens([&](auto** out, auto** error) {
            return welm_model_chat_tokens_json(get(), request.data(), request.size(), out, error);
        });
    }

    /// The model's answer to a conversation, with the model's own chat template; it ends at the model's end tokens.
    /// Special tokens in the text of a message are parsed, so look for them in messages that are not trusted.
    Result<Generation> try_chat(const std::vector<Message>& messages, const GenerateOptions& options = {}) const {
        const std::vector<welm_message> m = detail::to_c(messages);
        const detail::COptions c(options);
        return detail::make<Generation, welm_generation>([&](auto** out, auto** error) {
            return welm_model_chat(get(), m.data(), m.size(), c.get(), out, error);
        });
    }

    /// As `try_chat`, for a JSON object with `messages`, `tools` and the other keys of `welm_model_chat_prompt_json`.
    Result<Generation> try_chat_json(std::string_view request, const GenerateOptions& options = {}) const {
        const detail::COptions c(options);
        return detail::make<Generation, welm_generation>([&](auto** out, auto** error) {
            return welm_model_chat_json(get(), request.data(), request.size(), c.get(), out, error);
        });
    }

    /// As `try_chat`, but the caller asks for one piece after another. The model may be destroyed before the stream.
    Result<Stream> try_chat_stream(const std::vector<Message>& messages, const GenerateOptions& options = {}) const {
        const std::vector<welm_message> m = detail::to_c(messages);
        const detail::COptions c(options);
        return detail::make<Stream, welm_stream>([&](auto** out, auto** error) {
            return welm_model_chat_stream(get(), m.data(), m.size(), c.get(), out, error);
        });
    }

    /// As `try_chat_json`, piece by piece.
    Result<Stream> try_chat_stream_json(std::string_view request, const GenerateOptions& options = {}) const {
        const detail::COptions c(options);
        return detail::make<Stream, welm_stream>([&](auto** out, auto** error) {
            return welm_model_chat_stream_json(get(), request.data(), request.size(), c.get(), out, error);
        });
    }

    /// Whether the engine still runs, or the error with which it ended: for the liveness probe of a service. See
    /// `welm_model_check_health`.
    Result<void> try_check_health() const {
        return detail::run([&](auto** error) { return welm_model_check_health(get(), error); });
    }

    /// Counters of the engine, at this moment.
    Result<Stats> try_stats() const {
        return detail::fill<Stats>([&](auto* out, auto** error) { return welm_model_stats(get(), out, error); });
    }

    /// The memory that the model takes.
    Result<Estimate> try_memory() const {
        return detail::fill<Estimate>([&](auto* out, auto** error) { return welm_model_memory(get(), out, error); });
    }

    /// Shapes and settings of the model.
    Config config() const {
        const welm_config* config = welm_model_config(get());
        return config ? Config(*config) : Config();
    }
    /// The bytes of a token, perhaps only a part of a character; valid as long as this handle.
    std::string_view token_bytes(std::uint32_t token) const noexcept {
        std::size_t len = 0;
        const std::uint8_t* data = welm_model_token_bytes(get(), token, &len);
        return detail::text(reinterpret_cast<const char*>(data), len);
    }
    /// Whether a token is a control token, which is not part of a text.
    bool is_special(std::uint32_t token) const noexcept { return welm_model_is_special(get(), token); }
    /// Whether the model has a chat template.
    bool has_chat_template() const noexcept { return welm_model_has_chat_template(get()); }
    /// Another handle of the same engine; the model is not copied.
    Model clone() const noexcept { return Model(welm_model_clone(get())); }
    /// For functions of welm.h.
    const welm_model* get() const noexcept { return handle_.get(); }

#if WELM_HPP_EXCEPTIONS
    /// See `try_load`.
    static Model load(const std::string& path, const LoadOptions& options = {}) {
        return try_load(path, options).value();
    }
    /// See `try_estimate`.
    static Estimate estimate(const std::string& path, const LoadOptions& options = {}) {
        return try_estimate(path, options).value();
    }
    /// See `try_generate`.
    Generation generate(Prompt prompt, const GenerateOptions& options = {}) const {
        return try_generate(prompt, options).value();
    }
    /// See `try_generate_with`.
    template <class F>
    void generate_with(Prompt prompt, const GenerateOptions& options, F&& callback) const {
        try_generate_with(prompt, options, callback).value();
    }
    /// See `try_stream`.
    Stream stream(Prompt prompt, const GenerateOptions& options = {}) const {
        return try_stream(prompt, options).value();
    }
    /// See `try_score`.
    template <class Range = std::initializer_list<std::string_view>>
    Scores score(std::string_view prompt, const Range& continuations) const {
        return try_score(prompt, continuations).value();
    }
    /// See `try_score_pairs`.
    Scores score_pairs(const std::vector<std::pair<Prompt, Prompt>>& pairs, const ScoreOptions& options = {}) const {
        return try_score_pairs(pairs, options).value();
    }
    /// See `try_logits`.
    Logits logits(Prompt prompt, std::size_t from = 0) const { return try_logits(prompt, from).value(); }
    /// See `try_tokenize`.
    std::vector<std::uint32_t> tokenize(std::string_view text, bool parse_special = false) const {
        return try_tokenize(text, parse_special).value();
    }
    /// See `try_detokenize`.
    std::string detokenize(const std::vector<std::uint32_t>& tokens) const { return try_detokenize(tokens).value(); }
    /// See `try_token_id`.
    std::uint32_t token_id(std::string_view token) const { return try_token_id(token).value(); }
    /// See `try_chat_prompt`.
    std::string chat_prompt(const std::vector<Message>& messages, bool answer = true) const {
        return try_chat_prompt(messages, answer).value();
    }
    /// See `try_chat_tokens`.
    std::vector<std::uint32_t> chat_tokens(const std::vector<Message>& messages, bool answer = true) const {
        return try_chat_tokens(messages, answer).value();
    }
    /// See `try_chat_prompt_json`.
    std::string chat_prompt_json(std::string_view request) const { return try_chat_prompt_json(request).value(); }
    /// See `try_chat_tokens_json`.
    std::vector<std::uint32_t> chat_tokens_json(std::string_view request) const {
        return try_chat_tokens_json(request).value();
    }
    /// See `try_chat`.
    Generation chat(const std::vector<Message>& messages, const GenerateOptions& options = {}) const {
        return try_chat(messages, options).value();
    }
    /// See `try_chat_json`.
    Generation chat_json(std::string_view request, const GenerateOptions& options = {}) const {
        return try_chat_json(request, options).value();
    }
    /// See `try_chat_stream`.
    Stream chat_stream(const std::vector<Message>& messages, const GenerateOptions& options = {}) const {
        return try_chat_stream(messages, options).value();
    }
    /// See `try_chat_stream_json`.
    Stream chat_stream_json(std::string_view request, const GenerateOptions& options = {}) const {
        return try_chat_stream_json(request, options).value();
    }
    /// See `try_check_health`.
    void check_health() const { try_check_health().value(); }
    /// See `try_stats`.
    Stats stats() const { return try_stats().value(); }
    /// See `try_memory`.
    Estimate memory() const { return try_memory().value(); }
#endif

private:
    detail::Handle<welm_model, welm_model_free> handle_;
};

/// Writes an int8 folder from a Hugging Face folder; `progress` is called after each matrix. `to` is a new folder, an
/// empty one, or one that this function wrote before, which is then replaced in one step; see `welm_quantize`.
inline Result<void> try_quantize(const std::string& from, const std::string& to, const Progress& progress = {}) {
    using Callback = detail::Guarded<const Progress>;
    Callback guarded(progress);
    const auto call = [](void* data, std::uint64_t done_bytes, std::uint64_t total_bytes) {
        return (*static_cast<Callback*>(data))(done_bytes, total_bytes);
    };
    auto done = detail::run([&](auto** error) {
        return welm_quantize(from.c_str(), to.c_str(), progress ? +call : nullptr, &guarded, error);
    });
    guarded.rethrow();
    return done;
}

/// Sends the log to a callback, which replaces the previous one. After the destructor the log goes nowhere.
///
/// The callback runs on the threads that log, perhaps on several at once; what it throws is dropped. It must not create
/// or destroy a Log.
class Log {
public:
    using Callback = std::function<void(LogLevel level, std::string_view target, std::string_view message)>;

    /// Starts. WELM_UNAVAILABLE if this program has set a `tracing` subscriber in Rust.
    static Result<Log> try_start(LogLevel max_level, Callback callback) {
        auto kept = std::make_unique<Callback>(std::move(callback));
        const auto call = [](void* data, LogLevel level, const char* target, const char* message) {
            detail::Guarded<Callback> guarded(*static_cast<Callback*>(data));
            guarded(level, std::string_view(target), std::string_view(message));
        };
        auto done = detail::run([&](auto** error) {
            return welm_log_set_callback(static_cast<std::int32_t>(max_level), call, kept.get(), error);
        });
        if (!done) return done.error();
        return Log(std::move(kept));
    }

#if WELM_HPP_EXCEPTIONS
    /// See `try_start`.
    static Log start(LogLevel max_level, Callback callback) {
        return try_start(max_level, std::move(callback)).value();
    }
#endif

    Log(Log&&) = default;
    // The destructor of the old value would end the new log.
    Log& operator=(Log&&) = delete;
    ~Log() {
        if (callback_) welm_log_set_callback(WELM_LOG_OFF, nullptr, nullptr, nullptr);
    }

private:
    explicit Log(std::unique_ptr<Callback> callback) noexcept : callback_(std::move(callback)) {}

    std::unique_ptr<Callback> callback_;
};

/// The quantile `q` (0 to 1): the upper bound, in seconds, of the bucket in which this share of the observations is
/// reached.
inline double quantile_s(const Histogram& histogram, double q) noexcept {
    return welm_histogram_quantile_s(&histogram, q);
}

/// Version of the library that runs, "0.1.0"; always valid.
inline std::string_view version() noexcept { return welm_version(); }

/// The WELM_ABI_VERSION of the library that runs.
inline std::uint32_t abi_version() noexcept { return welm_abi_version(); }

#if WELM_HPP_EXCEPTIONS
/// See `try_quantize`.
inline void quantize(const std::string& from, const std::string& to, const Progress& progress = {}) {
    try_quantize(from, to, progress).value();
}
#endif

} // namespace welm

#endif // WELM_HPP
