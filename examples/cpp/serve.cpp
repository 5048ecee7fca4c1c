// A small HTTP service: one model, a thread for each request, answers whole or streamed.
//
//     serve --model ../welm-nano --port 8080
//     curl localhost:8080/v1/completions -d '{"prompt": "床前明月光，", "max_tokens": 24, "stream": true}'
//
// A request whose client has gone is cancelled. SIGTERM and Ctrl-C end the service when the running requests have
// ended; a second one cancels them. http.hpp has the server and its limits, ask.hpp reads what a client sends,
// arguments.hpp the command line.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <malloc.h>

#include <welm.hpp>

#include "arguments.hpp"
#include "ask.hpp"
#include "http.hpp"
#include "signals.hpp"

namespace {

using namespace std::chrono_literals;

/// Most bytes of an answer that is not streamed; a longer one has to be streamed.
constexpr std::size_t kMostKept = 2 << 20;
/// Most bytes of a stream that a slow client has not read yet; with more its connection is closed.
constexpr std::size_t kMostUntaken = 2 << 20;

/// An error of the service or of the client, with its HTTP status.
struct Refused : std::runtime_error {
    unsigned status;
    std::string type;
    Refused(unsigned s, std::string t, const std::string& message)
        : std::runtime_error(message), status(s), type(std::move(t)) {}
};

unsigned http_status(welm::Status status) {
    switch (status) {
    case WELM_INVALID_ARGUMENT:
    case WELM_INVALID_UTF8:
    case WELM_INVALID_OPTION:
    case WELM_TOO_LONG:
    case WELM_EMPTY_PROMPT:
    case WELM_TOKENIZER: return 400;
    case WELM_QUEUE_FULL: return 429;
    case WELM_INVALID_FILE: // the model's, which was cut short
    case WELM_DEVICE_LOST:
    case WELM_ENGINE_STOPPED: return 503;
    default: return 500;
    }
}

json finish_reason(welm::FinishReason reason) {
    switch (reason) {
    case WELM_FINISH_NONE: return nullptr;
    case WELM_FINISH_STOP:
    case WELM_FINISH_END_OF_TEXT: return "stop";
    case WELM_FINISH_LENGTH: return "length";
    case WELM_FINISH_CANCELLED: return "cancelled";
    case WELM_FINISH_DEADLINE: return "deadline";
    default: return "other";
    }
}

json error_json(const std::string& type, const std::string& message) {
    return {{"error", {{"type", type}, {"message", message}}}};
}

/// A token with its log-probabilities.
json logprobs(const welm::Model& model, const welm::Token& token) {
    json top = json::array();
    for (const welm::Alternative& other : token.alternatives)
        top.push_back({{"id", other.id}, {"text", model.detokenize({other.id})}, {"logprob", other.logprob}});
    json all = {{"id", token.id}, {"text", model.detokenize({token.id})}, {"top", std::move(top)}};
    all["logprob"] = token.logprob ? json(*token.logprob) : json();
    return all;
}

std::string event(const json& data) {
    return "data: " + dump(data) + "\n\n";
}

/// An answer to a client: piece by piece, or whole.
class Answer {
public:
    Answer(const welm::Model& model, const Ask& ask, const http::Client& client)
        : model_(model), client_(client), streamed_(ask.stream), with_logprobs_(ask.options.logprobs.has_value()),
          stream_(model.stream(*ask.prompt, ask.options)) {
        const auto& options = ask.options;
        const std::size_t tokens = options.n * (options.max_tokens + (options.echo ? stream_.prompt_tokens() : 0));
        const std::size_t each = 8 + (with_logprobs_ ? 64 * std::size_t(1 + *options.logprobs) : 0); // usually less
        if (tokens * each > kMostKept && (!streamed_ || options.echo))
            throw Refused(400, "answer_too_long",
                          "n, max_tokens, logprobs, echo: expected an answer of at most " + std::to_string(kMostKept) +
                              " bytes where it is not streamed, or echoed, got " + std::to_string(tokens) +
                              " tokens of " + std::to_string(each));
        choices_.resize(options.n);
    }

    bool streamed() const { return streamed_; }

    /// Waits for the next part and appends it; false at the end, or if the client has gone.
    bool next(std::string& out) {
        try {
            return take(out);
        } catch (const welm::Error& error) {
            const json body = error_json(error.name(), error.what());
            out += streamed_ ? event(body) : dump(body);
            return false;
        } catch (const std::exception& error) {
            std::cerr << "serve: " << error.what() << std::endl; // the connection is closed
            throw;
        }
    }

private:
    /// Appends all pieces that have come.
    bool take(std::string& out) {
        for (std::size_t pieces = 0;; ++pieces) {
            const welm::Waited waited = stream_.next_for(out.empty() ? 50ms : 0ms);
            if (out.empty() && Clock::now() > look_) {
                look_ = Clock::now() + 50ms;
                const auto client = client_.state();
                if (client == http::Client::gone) return false;
                // A comment of server-sent events, which has no effect. If the client has gone, its system answers with
                // a reset.
                if (client == http::Client::quiet && Clock::now() > probe_) {
                    probe_ = Clock::now() + 1s;
                    out += streamed_ ? ": \n\n" : " ";
                }
            }
            if (waited.pending) {
                if (!out.empty()) return true;
                continue;
            }
            if (!waited.piece) {
                end(out);
                return false;
            }
            add(*waited.piece, out);
            if (pieces > 0 && out.size() > kMostUntaken) throw std::runtime_error("a client is slower than its stream");
        }
    }

    void add(const welm::Piece& piece, std::string& out) {
        completion_tokens_ += piece.completion_tokens;
        cached_tokens_ = std::max(cached_tokens_, piece.cached_tokens);
        if (streamed_) {
            json choice = {
                {"index", piece.index}, {"text", piece.text}, {"finish_reason", finish_reason(piece.finish_reason)}};
            if (with_logprobs_)
                for (const welm::Token& token : piece.tokens) choice["logprobs"].push_back(logprobs(model_, token));
            out += event({{"choices", json::array({std::move(choice)})}});
            return;
        }
        Choice& choice = choices_[piece.index];
        choice.text += piece.text;
        choice.finish_reason = piece.finish_reason;
        if (!with_logprobs_) return;
        for (const welm::Token& token : piece.tokens)
            choice.logprobs += (choice.logprobs.empty() ? "" : ",") + dump(logprobs(model_, token));
    }

    void end(std::string& out) {
        json end = {{"seed", stream_.seed()},
                    {"usage",
                     {{"prompt_tokens", stream_.prompt_tokens()},
                      {"completion_tokens", completion_tokens_},
                      {"cached_tokens", cached_tokens_}}}};
        if (streamed_) {
            end["choices"] = json::array();
            out += event(end) + "data: [DONE]\n\n";
            return;
        }
        out += R"({"choices":[)";
        for (std::size_t i = 0; i < choices_.size(); ++i) {
            const Choice choice = std::move(choices_[i]);
            out += i == 0 ? "" : ",";
            out += dump({{"index", i}, {"text", choice.text}, {"finish_reason", finish_reason(choice.finish_reason)}});
            if (!with_logprobs_) continue;
            out.pop_back(); // its brace
            out += R"(,"logprobs":[)";
            out += choice.logprobs;
            out += "]}";
        }
        out += "]," + dump(end).substr(1);
    }

    /// A choice so far. Log-probabilities are kept as text, because JSON values would take many times the memory.
    struct Choice {
        std::string text{}, logprobs{};
        welm::FinishReason finish_reason = WELM_FINISH_NONE;
    };

    const welm::Model& model_;
    const http::Client client_;
    const bool streamed_, with_logprobs_;
    welm::Stream stream_;
    std::vector<Choice> choices_;
    std::size_t completion_tokens_ = 0, cached_tokens_ = 0;
    Clock::time_point look_{}, probe_{};
};

/// Lets a limited number of threads work at a time; of those that wait, the one with the smallest request is next.
/// Parsing a request and tokenizing its prompt takes a core, and memory of many times its size.
class Turns {
public:
    explicit Turns(unsigned n) : free_(n) {}

    template <class F>
    auto with(std::size_t size, const F& work) {
        std::unique_lock lock(mutex_);
        const auto place = waiting_.insert(size);
        changed_.wait(lock, [&] { return free_ > 0 && waiting_.begin() == place; });
        waiting_.erase(place);
        --free_;
        lock.unlock();
        changed_.notify_all();
        const std::shared_ptr<void> end(nullptr, [this](void*) {
            const std::lock_guard again(mutex_);
            ++free_;
            changed_.notify_all();
        });
        return work();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::multiset<std::size_t> waiting_;
    unsigned free_;
};

json stats_json(const welm::Stats& stats) {
    const auto quantiles = [](const welm::Histogram& times) {
        return json{{"p50", welm::quantile_s(times, 0.5)}, {"p99", welm::quantile_s(times, 0.99)}};
    };
    return {
        {"requests", stats.requests},
        {"rejected", stats.rejected},
        {"open", stats.open},
        {"queue_depth", stats.queue_depth},
        {"running", stats.running},
        {"preemptions", stats.preemptions},
        {"steps", stats.steps},
        {"prompt_tokens", stats.prompt_tokens},
        {"prefix_hit_tokens", stats.prefix_hit_tokens},
        {"completion_tokens", stats.completion_tokens},
        {"blocks_total", stats.blocks_total},
        {"blocks_used", stats.blocks_used},
        {"blocks_cached", stats.blocks_cached},
        {"time_to_first_token_s", quantiles(stats.time_to_first_token)},
        {"time_between_tokens_s", quantiles(stats.time_between_tokens)},
    };
}

http::Reply error_reply(unsigned status, const std::string& type, const std::string& message) {
    return {status, dump(error_json(type, message))};
}

/// The reply for an error.
http::Reply error_reply(std::exception_ptr thrown) {
    try {
        std::rethrow_exception(thrown);
    } catch (const welm::Error& error) {
        return error_reply(http_status(error.code()), error.name(), error.what());
    } catch (const Refused& error) {
        return error_reply(error.status, error.type, error.what());
    } catch (const std::invalid_argument& error) {
        return error_reply(400, "invalid_request", error.what());
    } catch (const std::exception& error) {
        return error_reply(500, "internal", error.what());
    }
}

void run(const Arguments& arguments) {
    allow_files(arguments.connections);
    const auto refusal = [](unsigned status, const std::string& reason) { return error_reply(status, "http", reason); };
    http::Server server(arguments.limits(), [](std::exception_ptr thrown) { return error_reply(thrown); }, refusal);
    const std::string url = server.bind(arguments.host, static_cast<int>(arguments.port));

    const welm::CancelToken stopped;
    const Signals signals([&, n = 0]() mutable {
        if (!server.running()) std::_Exit(0); // still loading
        if (n++ == 0) return server.stop();
        stopped.cancel();
        server.end_within(2s);
    });
    const welm::Model model = welm::Model::load(arguments.model);
    Turns turns(std::max(1u, std::thread::hardware_concurrency()));

    // Errors of a request are found before the first byte is written, and are an HTTP status. Only errors of the engine
    // can come later; they are an error in the body.
    server.post("/v1/completions", [&](const http::Request& request) {
        if (request.one_too_many) throw Refused(503, "busy", "as many requests are being answered as may be at once");
        const auto answer = turns.with(request.body.size(), [&] {
            if (stopped.is_cancelled()) throw Refused(503, "stopping", "the service is about to end");
            Ask ask(request.body);
            ask.options.cancel = &stopped;
            ask.options.deadline = std::chrono::seconds(arguments.timeout);
            return std::make_shared<Answer>(model, ask, request.client);
        });
        http::Reply reply;
        if (answer->streamed()) reply.type = "text/event-stream";
        reply.more = [answer](std::string& part) { return answer->next(part); };
        return reply;
    });
    server.get("/health", [&](const http::Request&) {
        model.check_health();
        return http::Reply{200, R"({"status":"ok"})"};
    });
    server.get("/stats", [&](const http::Request&) { return http::Reply{200, dump(stats_json(model.stats()))}; });

    server.start();
    std::cout << url << std::endl;
    server.wait();
}

} // namespace

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);        // the reader of our output may end first
    mallopt(M_MMAP_THRESHOLD, 128 << 10); // large blocks are returned to the system when they are freed
    try {
        const Arguments arguments = parse(argc, argv);
        if (arguments.help) std::cout << usage();
        else run(arguments);
        return 0;
    } catch (const std::invalid_argument& error) {
        std::cerr << "serve: " << error.what() << "\n(--help lists the options)\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "serve: " << error.what() << "\n";
        return 1;
    }
}
