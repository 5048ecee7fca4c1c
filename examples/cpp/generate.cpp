// Continues a prompt: text on stdout as it comes, figures on stderr. Ctrl-C ends the answer; a second Ctrl-C ends the
// program.
//
//     generate --model ../welm-nano 床前明月光，

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>

#include <welm.hpp>

#include "signals.hpp"

namespace {

const char* const usage = R"(usage: generate --model PATH [OPTION]... PROMPT
  --max-tokens N    most tokens generated (64)
  --temperature X   divides the logits; 0 is greedy (0.85)
  --seed N          same seed, same text; otherwise one is drawn, and reported
  --stop TEXT       ends the text; may be given several times
)";

struct Args {
    std::string model;
    std::string prompt;
    welm::GenerateOptions options;
};

template <class T>
T number(const std::string& name, const std::string& text) {
    std::istringstream in(text);
    T value{};
    // C++ streams read "-1" as an unsigned number without an error.
    if (!(in >> value) || !in.eof() || text[0] == '-')
        throw std::invalid_argument(name + ": expected a number, got " + text);
    return value;
}

Args parse(int argc, char** argv) {
    Args args;
    args.options.max_tokens = 64;
    args.options.echo = true;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg.rfind("--", 0) != 0) {
            if (!args.prompt.empty()) throw std::invalid_argument("expected one prompt, got another: " + arg);
            args.prompt = arg;
            continue;
        }
        if (arg == "--help") {
            std::cout << usage;
            std::exit(0);
        }
        if (i + 1 == argc) throw std::invalid_argument(arg + ": expected a value after it");
        const std::string value = argv[++i];
        if (arg == "--model") args.model = value;
        else if (arg == "--max-tokens") args.options.max_tokens = number<std::size_t>(arg, value);
        else if (arg == "--temperature") args.options.temperature = number<float>(arg, value);
        else if (arg == "--seed") args.options.seed = number<std::uint64_t>(arg, value);
        else if (arg == "--stop") args.options.stop.push_back(value);
        else throw std::invalid_argument("unknown option " + arg);
    }
    if (args.model.empty()) throw std::invalid_argument("--model: expected a folder or a GGUF file");
    return args;
}

void run(Args args) {
    const welm::CancelToken cancel;
    args.options.cancel = &cancel;
    const Signals signals([&] {
        if (cancel.is_cancelled()) std::_Exit(130);
        cancel.cancel();
    });

    welm::LoadOptions load;
    load.progress = [&](std::uint64_t, std::uint64_t) { return !cancel.is_cancelled(); };
    const welm::Model model = welm::Model::load(args.model, load);

    using Clock = std::chrono::steady_clock;
    const auto started = Clock::now();
    std::size_t tokens = 0;
    auto reason = WELM_FINISH_NONE;
    welm::Stream stream = model.stream(args.prompt, args.options);
    for (const welm::Piece& piece : stream) {
        std::cout << piece.text << std::flush;
        tokens += piece.completion_tokens;
        reason = piece.finish_reason;
    }
    std::cout << std::endl;
    const std::chrono::duration<double> seconds = Clock::now() - started;
    std::cerr << stream.prompt_tokens() << " prompt tokens, " << tokens << " tokens in " << seconds.count()
              << " s; seed " << stream.seed() << (reason == WELM_FINISH_CANCELLED ? "; cancelled" : "") << "; "
              << model.config().backend << "\n";
}

} // namespace

int main(int argc, char** argv) {
    try {
        run(parse(argc, argv));
        return 0;
    } catch (const std::invalid_argument& error) {
        std::cerr << "generate: " << error.what() << "\n" << usage;
        return 2;
    } catch (const welm::Error& error) {
        std::cerr << "generate: " << error.what() << "\n";
        return error.code() == WELM_LOAD_CANCELLED ? 130 : 1;
    }
}
