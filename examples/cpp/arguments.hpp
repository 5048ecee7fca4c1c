// The command line of serve: its options in one table, which parse and --help read.

#ifndef ARGUMENTS_HPP
#define ARGUMENTS_HPP

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>

#include <sys/resource.h>

#include "http.hpp"

struct Arguments {
    std::string model;
    std::string host = "127.0.0.1";
    std::uint64_t port = 8080, connections = 128, max_body = 1 << 20, timeout = 300, client_timeout = 10;
    bool help = false;

    http::Limits limits() const {
        return {connections, max_body, std::chrono::seconds(client_timeout), std::chrono::seconds(timeout)};
    }
};

/// An option that is a whole number.
struct Number {
    const char* name;
    std::uint64_t Arguments::*value;
    std::uint64_t least, most;
    const char* meaning;
};

constexpr Number kNumbers[] = {
    {"--port", &Arguments::port, 0, 65'535, "0 takes any that is free"},
    {"--connections", &Arguments::connections, 1, 10'000, "at once; a thread each"},
    {"--max-body", &Arguments::max_body, 1'024, 1 << 30, "bytes of a request"},
    {"--timeout", &Arguments::timeout, 1, 86'400, "seconds for an answer"},
    {"--client-timeout", &Arguments::client_timeout, 1, 3'600,
     "seconds for a client to send a request, or to take a part of an answer"},
};

inline std::string usage() {
    std::string text = "usage: serve --model PATH [--host ADDRESS]";
    for (const Number& number : kNumbers) text += std::string(" [") + number.name + " N]";
    text += "\n\n  --model PATH           a folder or a GGUF file\n  --host ADDRESS         to listen at (127.0.0.1)\n";
    for (const Number& number : kNumbers)
        text += "  " + (number.name + std::string(" N                      ")).substr(0, 23) + number.meaning + " (" +
                std::to_string(Arguments().*number.value) + ")\n";
    return text;
}

inline Arguments parse(int argc, char** argv) {
    Arguments arguments;
    std::set<std::string> seen;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--help" || name == "-h") {
            arguments.help = true;
            return arguments;
        }
        const Number* number = nullptr;
        for (const Number& one : kNumbers)
            if (name == one.name) number = &one;
        if (!number && name != "--model" && name != "--host") throw std::invalid_argument("unknown option " + name);
        if (i + 1 == argc) throw std::invalid_argument(name + ": expected a value after it, got none");
        if (!seen.insert(name).second) throw std::invalid_argument(name + ": expected one value, got several");
        const std::string value = argv[i + 1];
        if (name == "--model") arguments.model = value;
        else if (name == "--host") arguments.host = value;
        else {
            std::uint64_t& n = arguments.*number->value;
            const char* const end = value.data() + value.size();
            const auto read = std::from_chars(value.data(), end, n);
            if (read.ec != std::errc() || read.ptr != end || n < number->least || n > number->most)
                throw std::invalid_argument(name + ": expected a whole number from " + std::to_string(number->least) +
                                            " to " + std::to_string(number->most) + ", got " + value);
        }
    }
    if (arguments.model.empty()) throw std::invalid_argument("--model: expected a folder or a GGUF file, got none");
    return arguments;
}

/// Lets this process have as many files open as it needs for its connections.
inline void allow_files(std::uint64_t connections) {
    constexpr std::uint64_t others = 64; // of the model, and what the library opens while it runs
    const std::uint64_t needed = connections + Connections::spare + others;
    rlimit files = {};
    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_max < needed)
        throw std::invalid_argument(
            "--connections: expected at most " +
            std::to_string(files.rlim_max - std::min<rlim_t>(files.rlim_max, needed - connections)) +
            ", since this process may have " + std::to_string(files.rlim_max) + " files open, got " +
            std::to_string(connections));
    files.rlim_cur = std::max<rlim_t>(files.rlim_cur, needed);
    setrlimit(RLIMIT_NOFILE, &files);
}

#endif
