// A small HTTP service: one model, a request per thread, answers whole or streamed.
//
//     serve --model ../welm-nano --port 8080
//     curl localhost:8080/v1/completions -d '{"prompt": "床前明月光，", "max_tokens": 24, "stream": true}'
//
// A request whose client has gone is cancelled. SIGTERM and Ctrl-C end the service when the running requests have
// ended; a second one cancels them.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <httplib.h>
#include <nlohmann/json.hpp>
#include <welm.hpp>

#include "signals.hpp"

namespace {

using json = nlohmann::json;
using namespace std::chrono_literals;

int http_status(welm::Status status) {
    switch (status) {
    case WELM_INVALID_ARGUMENT:
    case WELM_INVALID_UTF8:
    case WELM_INVALID_OPTION:
    case WELM_TOO_LONG:
    case WELM_EMPTY_PROMPT:
    case WELM_TOKENIZER: return 400;
    case WELM_QUEUE_FULL: return 429;
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

/// Whether a JSON value can be a `T` without loss.
template <class T>
bool fits(const json& value) {
    if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
    else if constexpr (std::is_integral_v<T>)
        return value.is_number_unsigned() && value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<T>::max()};
    else if constexpr (std::is_floating_point_v<T>) return value.is_number();
    else return value.is_string();
}

template <class T>
T get(const std::string& name, const json& value) {
    if (fits<T>(value)) return value.get<T>();
    std::string expected = "a text";
    if constexpr (std::is_same_v<T, bool>) expected = "true or false";
    else if constexpr (std::is_integral_v<T>)
        expected = "a whole number from 0 to " + std::to_string(std::numeric_limits<T>::max());
    else if constexpr (std::is_floating_point_v<T>) expected = "a number";
    throw std::invalid_argument(name + ": expected " + expected + ", got " + value.dump());
}

/// What a client asks for.
struct Ask {
    std::string prompt;
    bool stream = false;
    welm::GenerateOptions options;

    explicit Ask(const std::string& body) {
        const json fields = json::parse(body);
        if (!fields.is_object()) throw std::invalid_argument("expected a JSON object");
        if (!fields.contains("prompt")) throw std::invalid_argument("prompt: expected a text, got none");
        for (const auto& [name, value] : fields.items()) {
            if (value.is_null()) continue;
            if (name == "prompt") prompt = get<std::string>(name, value);
            else if (name == "stream") stream = get<bool>(name, value);
            else if (name == "max_tokens") options.max_tokens = get<std::size_t>(name, value);
            else if (name == "temperature") options.temperature = get<float>(name, value);
            else if (name == "top_p") options.top_p = get<float>(name, value);
            else if (name == "top_k") options.top_k = get<std::size_t>(name, value);
            else if (name == "min_p") options.min_p = get<float>(name, value);
            else if (name == "repetition_penalty") options.repetition_penalty = get<float>(name, value);
            else if (name == "frequency_penalty") options.frequency_penalty = get<float>(name, value);
            else if (name == "presence_penalty") options.presence_penalty = get<float>(name, value);
            else if (name == "n") options.n = get<std::size_t>(name, value);
            else if (name == "seed") options.seed = get<std::uint64_t>(name, value);
            else if (name == "logprobs") options.logprobs = get<std::int32_t>(name, value);
            else if (name == "echo") options.echo = get<bool>(name, value);
            else if (name == "stop" && value.is_array())
                for (const json& stop : value) options.stop.push_back(get<std::string>(name, stop));
            else if (name == "stop") options.stop = {get<std::string>(name, value)};
            else throw std::invalid_argument("unknown field " + name);
        }
    }
};

/// Tokens with their log-probabilities.
json logprobs(const welm::Model& model, const welm::View<welm::Token>& tokens) {
    json all = json::array();
    for (const welm::Token& token : tokens) {
        json top = json::array();
        for (const welm::Alternative& other : token.alternatives)
            top.push_back({{"id", other.id}, {"text", model.detokenize({other.id})}, {"logprob", other.logprob}});
        all.push_back({{"id", token.id}, {"text", model.detokenize({token.id})}, {"top", std::move(top)}});
        all.back()["logprob"] = token.logprob ? json(*token.logprob) : json();
    }
    return all;
}

bool write(httplib::DataSink& sink, const std::string& text) {
    return sink.write(text.data(), text.size());
}

bool write_event(httplib::DataSink& sink, const json& event) {
    return write(sink, "data: " + event.dump() + "\n\n");
}

/// Writes an answer: the pieces as they come, or all of them together. False when the client has gone, also while there
/// is nothing to write.
bool answer(const welm::Model& model, const Ask& ask, welm::Stream& stream, httplib::DataSink& sink) {
    json choices = json::array();
    for (std::size_t i = 0; i < ask.options.n; ++i)
        choices.push_back({{"index", i}, {"text", ""}, {"finish_reason", nullptr}});
    std::size_t completion_tokens = 0, cached_tokens = 0;
    for (;;) {
        const welm::Waited waited = stream.next_for(50ms);
        if (!sink.is_writable()) return false; // httplib only tells when asked
        if (waited.pending) continue;
        if (!waited.piece) break;
        const welm::Piece& piece = *waited.piece;
        json choice = {{"index", piece.index}, {"text", piece.text}, {"finish_reason", finish_reason(piece.finish_reason)}};
        if (ask.options.logprobs) choice["logprobs"] = logprobs(model, piece.tokens);
        completion_tokens += piece.completion_tokens;
        cached_tokens = std::max(cached_tokens, piece.cached_tokens);
        if (ask.stream) {
            if (!write_event(sink, {{"choices", json::array({std::move(choice)})}})) return false;
            continue;
        }
        json& whole = choices[piece.index];
        whole["text"].get_ref<std::string&>() += piece.text;
        whole["finish_reason"] = choice["finish_reason"];
        for (json& token : choice["logprobs"]) whole["logprobs"].push_back(std::move(token));
    }
    json end = {{"seed", stream.seed()},
                {"usage",
                 {{"prompt_tokens", stream.prompt_tokens()},
                  {"completion_tokens", completion_tokens},
                  {"cached_tokens", cached_tokens}}}};
    end["choices"] = ask.stream ? json::array() : std::move(choices);
    return ask.stream ? write_event(sink, end) && write(sink, "data: [DONE]\n\n") : write(sink, end.dump());
}

/// A request for text. What can be wrong with it shows before the first byte is written, as an HTTP status; only a
/// fault of the engine may come later, as an error in the body.
void completions(const welm::Model& model, const welm::CancelToken& stopped, std::chrono::seconds timeout,
                 const httplib::Request& request, httplib::Response& response) {
    auto ask = std::make_shared<Ask>(request.body);
    ask->options.cancel = &stopped;
    ask->options.deadline = timeout;
    auto stream = std::make_shared<welm::Stream>(model.stream(ask->prompt, ask->options));
    const auto provider = [&model, ask, stream](std::size_t, httplib::DataSink& sink) {
        bool connected = false;
        try {
            connected = answer(model, *ask, *stream, sink);
        } catch (const welm::Error& error) {
            const json body = error_json(error.name(), error.what());
            connected = ask->stream ? write_event(sink, body) : write(sink, body.dump());
        } catch (const std::exception& error) {
            std::cerr << "serve: " << error.what() << std::endl; // the connection is closed
        }
        if (connected) sink.done();
        return connected;
    };
    response.set_chunked_content_provider(ask->stream ? "text/event-stream" : "application/json", provider);
}

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

/// Answers with what went wrong.
void handle_exception(httplib::Response& response, std::exception_ptr thrown) {
    int status = 500;
    json body;
    try {
        std::rethrow_exception(thrown);
    } catch (const welm::Error& error) {
        status = http_status(error.code());
        body = error_json(error.name(), error.what());
    } catch (const std::invalid_argument& error) {
        status = 400;
        body = error_json("invalid_request", error.what());
    } catch (const json::exception& error) {
        status = 400;
        body = error_json("invalid_request", error.what());
    } catch (const std::exception& error) {
        body = error_json("internal", error.what());
    }
    response.status = status;
    response.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace), "application/json");
}

struct Args {
    std::string model;
    std::string host = "127.0.0.1";
    int port = 8080;
    std::size_t connections = 64;      // at once; a thread each
    std::chrono::seconds timeout{300}; // of a request
};

Args parse(int argc, char** argv) {
    Args args;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) throw std::invalid_argument(name + ": expected a value behind it");
        const std::string value = argv[i + 1];
        if (name == "--model") args.model = value;
        else if (name == "--host") args.host = value;
        else if (name == "--port") args.port = std::stoi(value);
        else if (name == "--connections") args.connections = std::stoul(value);
        else if (name == "--timeout") args.timeout = std::chrono::seconds(std::stoi(value));
        else throw std::invalid_argument("unknown option " + name);
    }
    if (args.model.empty()) throw std::invalid_argument("--model: expected a folder or a GGUF file");
    return args;
}

void run(const Args& args) {
    httplib::Server server;
    const welm::CancelToken stopped;
    const Signals signals([&, n = 0]() mutable {
        if (n++ > 0) stopped.cancel();
        else if (server.is_running()) server.stop();
        else std::_Exit(0); // still loading
    });
    const welm::Model model = welm::Model::load(args.model);

    // httplib gives a connection a thread; those beyond wait for one.
    server.new_task_queue = [&] { return new httplib::ThreadPool(args.connections); };
    server.set_keep_alive_max_count(std::numeric_limits<std::size_t>::max());
    server.set_keep_alive_timeout(2);
    int listening = -1;
    server.set_socket_options([&](int socket) {
        const int yes = 1;
        setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        listening = socket;
    });
    server.set_tcp_nodelay(true); // pieces are small, and should not wait for each other
    server.set_payload_max_length(16 << 20);
    server.set_exception_handler([](const httplib::Request&, httplib::Response& response, std::exception_ptr thrown) {
        handle_exception(response, thrown);
    });
    server.set_error_handler([](const httplib::Request&, httplib::Response& response) {
        if (response.body.empty())
            response.set_content(error_json("http", std::to_string(response.status)).dump(), "application/json");
    });
    server.Post("/v1/completions", [&](const httplib::Request& request, httplib::Response& response) {
        completions(model, stopped, args.timeout, request, response);
    });
    server.Get("/health", [](const httplib::Request&, httplib::Response& response) {
        response.set_content(R"({"status":"ok"})", "application/json");
    });
    server.Get("/stats", [&](const httplib::Request&, httplib::Response& response) {
        response.set_content(stats_json(model.stats()).dump(), "application/json");
    });

    int port = args.port;
    if (port == 0) port = server.bind_to_any_port(args.host);
    else if (!server.bind_to_port(args.host, port)) port = -1;
    if (port < 0) throw std::runtime_error("cannot listen on " + args.host + ":" + std::to_string(args.port));
    ::listen(listening, SOMAXCONN); // Debian's httplib lets five clients wait, and drops the others' packets
    std::cout << "http://" << args.host << ":" << port << std::endl;
    server.listen_after_bind();
}

} // namespace

int main(int argc, char** argv) {
    try {
        run(parse(argc, argv));
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "serve: " << error.what() << "\n"
                  << "usage: serve --model PATH [--host HOST] [--port PORT] [--connections N] [--timeout SECONDS]\n";
        return 1;
    }
}
