// Code that the C++ tests share. Every failure ends the program and prints its line.

#ifndef CHECK_HPP
#define CHECK_HPP

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);   \
            std::exit(1);                                                                   \
        }                                                                                   \
    } while (false)

/// A prompt with the result of greedy decoding, from tests/fixtures.
struct Golden {
    std::string prompt;
    std::vector<std::uint32_t> ids;
    std::string text;
};

/// Arguments in threes, after the first `skip`: prompt, ids with spaces between them, text.
inline std::vector<Golden> goldens(int argc, char** argv, int skip) {
    std::vector<Golden> all;
    for (int i = skip; i + 2 < argc; i += 3) {
        Golden golden{argv[i], {}, argv[i + 2]};
        std::istringstream ids(argv[i + 1]);
        for (std::uint32_t id; ids >> id;) golden.ids.push_back(id);
        all.push_back(golden);
    }
    CHECK(!all.empty());
    return all;
}

#endif
