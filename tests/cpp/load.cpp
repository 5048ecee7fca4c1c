// Puts the HTTP service of examples/cpp under load, and compares every answer with the right one.
//
//     load --model PATH --port PORT --pid PID [--seconds 60] [--connections 32] [--batch 8]
//
// There are rounds with one connection, and rounds with many connections. In the latter, every third request hangs up
// early: on a stream after some events, otherwise while it waits. Answers are compared with those of a model in this
// process, which is freed before the first round. At the end no request may be open, no cache block used, and no memory
// lost. With many connections, a step must have chosen --batch tokens or more on average. Speeds are printed only: they
// depend on what else this machine does.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iterator>
#include <sstream>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include <httplib.h>
#include <nlohmann/json.hpp>
#include <welm.hpp>

namespace {

using json = nlohmann::json;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

struct Args {
    std::string model;
    int port = 0;
    std::string pid;
    double seconds = 60;
    std::size_t connections = 32;
    double batch = 8;
};

/// A request, and the right answer to it.
struct Case {
    std::string body;
    bool stream = false;
    std::vector<std::string> texts;
};

/// The answers are computed together, which is faster; the rounds with one connection compare them with those alone.
std::vector<Case> cases(const std::string& path) {
    const char* const openings[] = {"床前明月光，", "春眠不觉晓，", "《秋思》\n", "白日依山尽，黄河入海流。"};
    const welm::Model model = welm::Model::load(path);
    std::vector<Case> all;
    std::vector<std::future<welm::Generation>> answers;
    for (unsigned i = 0; i < 48; ++i) {
        welm::GenerateOptions options;
        options.max_tokens = 24 + i % 25;
        options.temperature = i % 3 ? 1.0f : 0.0f;
        options.n = i % 8 == 7 ? 2 : 1;
        options.seed = i;
        if (i % 6 == 5) options.stop = {"。\n"};
        const std::string prompt = openings[i % 4];
        answers.push_back(std::async(std::launch::async, [&, prompt, options] { return model.generate(prompt, options); }));
        Case request;
        request.stream = i % 2 == 0;
        request.body = json{{"prompt", prompt},
                            {"max_tokens", options.max_tokens},
                            {"temperature", options.temperature},
                            {"n", options.n},
                            {"seed", i},
                            {"stop", options.stop},
                            {"stream", request.stream}}
                           .dump();
        all.push_back(std::move(request));
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
        const welm::Generation answer = answers[i].get();
        for (const welm::Choice& choice : answer.choices()) all[i].texts.emplace_back(choice.text);
    }
    return all;
}

/// The answer of the service.
struct Answer {
    bool whole = false;
    std::vector<std::string> texts;
    std::size_t tokens = 0;
};

void add(Answer& answer, const json& body) {
    for (const json& choice : body.at("choices")) {
        const auto index = choice.at("index").get<std::size_t>();
        if (answer.texts.size() <= index) answer.texts.resize(index + 1);
        answer.texts[index] += choice.at("text").get<std::string>();
    }
    if (body.contains("usage")) answer.tokens = body["usage"]["completion_tokens"].get<std::size_t>();
}

/// Sends a request, and hangs up after this many events, if that is not 0. Throws for an unexpected answer.
Answer ask(httplib::Client& client, const Case& request, std::size_t hang_up_after) {
    Answer answer;
    std::string pending;
    std::size_t events = 0;
    httplib::Request http;
    http.method = "POST";
    http.path = "/v1/completions";
    http.body = request.body;
    http.set_header("Content-Type", "application/json");
    http.content_receiver = [&](const char* data, std::size_t size, std::uint64_t, std::uint64_t) {
        pending.append(data, size);
        if (!request.stream) return true;
        for (std::size_t end; (end = pending.find("\n\n")) != std::string::npos; pending.erase(0, end + 2)) {
            const std::string event = pending.substr(0, end);
            if (event == "data: [DONE]") answer.whole = true;
            else add(answer, json::parse(event.substr(6)));
            if (++events == hang_up_after) return false;
        }
        return true;
    };
    const httplib::Result result = client.send(http);
    if (!result) {
        if (hang_up_after > 0) return {};
        throw std::runtime_error("no answer: " + httplib::to_string(result.error()));
    }
    if (result->status != 200) throw std::runtime_error("status " + std::to_string(result->status) + ": " + pending);
    if (!request.stream) {
        add(answer, json::parse(pending));
        answer.whole = true;
    }
    if (!answer.whole) throw std::runtime_error("the answer broke off: " + pending);
    return answer;
}

/// Figures of a round, or of several.
struct Figures {
    double seconds = 0, service_cpu = 0, client_cpu = 0;
    std::size_t whole = 0, hung_up = 0, tokens = 0;

    double speed() const { return double(tokens) / seconds; }
    void operator+=(const Figures& other) {
        seconds += other.seconds;
        service_cpu += other.service_cpu;
        client_cpu += other.client_cpu;
        whole += other.whole;
        hung_up += other.hung_up;
        tokens += other.tokens;
    }
    void print(const char* name) const {
        std::printf("%s: %.1f s, %zu answers, %zu hung up, %.0f tokens/s; CPU: service %.2f, client %.2f\n", name,
                    seconds, whole, hung_up, speed(), service_cpu / seconds, client_cpu / seconds);
    }
};

/// Seconds of CPU that a process has used.
double cpu_seconds(const std::string& pid) {
    std::ifstream in("/proc/" + pid + "/stat");
    std::string text((std::istreambuf_iterator<char>(in)), {});
    std::istringstream fields(text.substr(text.rfind(')') + 2));
    std::vector<std::string> all((std::istream_iterator<std::string>(fields)), {});
    return (std::stod(all.at(11)) + std::stod(all.at(12))) / double(sysconf(_SC_CLK_TCK));
}

/// Resident memory of a process without that of mapped files, in MiB.
double rss_mib(const std::string& pid) {
    std::ifstream in("/proc/" + pid + "/status");
    for (std::string name; in >> name;) {
        double kib = 0;
        if (name == "RssAnon:" && in >> kib) return kib / 1024;
    }
    throw std::runtime_error("no process " + pid);
}

Figures round(const Args& args, const std::vector<Case>& all, std::size_t connections, bool hang_up, double seconds) {
    std::atomic<std::size_t> next{0}, whole{0}, hung_up{0}, tokens{0};
    std::atomic<bool> failed{false};
    const std::string self = std::to_string(getpid());
    Figures figures;
    figures.service_cpu = -cpu_seconds(args.pid);
    figures.client_cpu = -cpu_seconds(self);
    const auto start = Clock::now();
    const auto end = start + std::chrono::duration<double>(seconds);
    const auto work = [&] {
        httplib::Client patient("127.0.0.1", args.port);
        patient.set_keep_alive(true);
        patient.set_tcp_nodelay(true);
        patient.set_read_timeout(60);
        while (Clock::now() < end && !failed) {
            const std::size_t i = next++;
            const Case& request = all[i * 7 % all.size()];
            const bool early = hang_up && i % 3 == 0;
            try {
                Answer answer;
                if (early && !request.stream) {
                    httplib::Client hasty("127.0.0.1", args.port);
                    hasty.set_read_timeout(0, time_t(1000 + i % 10 * 1000)); // us
                    answer = ask(hasty, request, 1);
                } else {
                    answer = ask(patient, request, early ? 1 + i % 12 : 0);
                }
                if (!answer.whole) {
                    ++hung_up;
                    continue;
                }
                if (answer.texts != request.texts) throw std::runtime_error("a wrong answer to " + request.body);
                ++whole;
                tokens += answer.tokens;
            } catch (const std::exception& error) {
                if (!failed.exchange(true)) std::fprintf(stderr, "load: %s\n", error.what());
            }
        }
    };
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < connections; ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    if (failed) throw std::runtime_error("a request failed");
    figures.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    figures.service_cpu += cpu_seconds(args.pid);
    figures.client_cpu += cpu_seconds(self);
    figures.whole = whole;
    figures.hung_up = hung_up;
    figures.tokens = tokens;
    return figures;
}

/// Waits until the service is at rest, and returns its stats.
json at_rest(const Args& args) {
    httplib::Client client("127.0.0.1", args.port);
    for (const auto until = Clock::now() + 20s;;) {
        const auto response = client.Get("/stats");
        if (!response || response->status != 200) throw std::runtime_error("no stats");
        json stats = json::parse(response->body);
        if (stats["open"] == 0 && stats["blocks_used"] == 0) return stats;
        if (Clock::now() > until) throw std::runtime_error("requests or blocks are left: " + stats.dump());
        std::this_thread::sleep_for(20ms);
    }
}

void run(const Args& args) {
    const std::vector<Case> all = cases(args.model);
    const int rounds = args.seconds < 30 ? 2 : 6;
    const double share = args.seconds / rounds;
    round(args, all, args.connections, true, std::max(1.0, share / 2)); // allocates what is kept for ever
    at_rest(args);
    const double before = rss_mib(args.pid);
    Figures alone, together;
    double tokens = 0, steps = 0;
    json stats;
    for (int i = 0; i < rounds; ++i) {
        const Figures one = round(args, all, 1, false, std::max(1.0, share / 4));
        const json start = at_rest(args);
        const Figures many = round(args, all, args.connections, true, share);
        stats = at_rest(args);
        tokens += stats["completion_tokens"].get<double>() - start["completion_tokens"].get<double>();
        steps += stats["steps"].get<double>() - start["steps"].get<double>();
        std::printf("round %d: %.0f and %.0f tokens/s; %.1f MiB\n", i + 1, one.speed(), many.speed(), rss_mib(args.pid));
        std::fflush(stdout);
        alone += one;
        together += many;
    }
    const double after = rss_mib(args.pid);
    alone.print("one connection");
    together.print("many connections");
    std::printf("%.1f tokens a step with many connections; memory %.1f MiB, then %.1f MiB; %s\n", tokens / steps, before,
                after, stats.dump().c_str());
    if (together.hung_up * 10 < (together.hung_up + together.whole) * 2) throw std::runtime_error("few hung up");
    if (after > before + 8) throw std::runtime_error("the service's memory has grown");
    if (tokens < args.batch * steps) throw std::runtime_error("expected more tokens a step: " + std::to_string(args.batch));
}

Args parse(int argc, char** argv) {
    std::map<std::string, std::string> given;
    for (int i = 1; i + 1 < argc; i += 2) given[argv[i]] = argv[i + 1];
    Args args;
    for (const auto& [name, value] : given) {
        if (name == "--model") args.model = value;
        else if (name == "--port") args.port = std::stoi(value);
        else if (name == "--pid") args.pid = value;
        else if (name == "--seconds") args.seconds = std::stod(value);
        else if (name == "--connections") args.connections = std::stoul(value);
        else if (name == "--batch") args.batch = std::stod(value);
        else throw std::invalid_argument("unknown option " + name);
    }
    return args;
}

} // namespace

int main(int argc, char** argv) {
    try {
        run(parse(argc, argv));
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "load: %s\n", error.what());
        return 1;
    }
}
