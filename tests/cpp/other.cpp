// A second file of the same program: the header may be included in several files.

#include <welm.hpp>

std::string other_file(const welm::Model& model, std::string_view prompt);

std::string other_file(const welm::Model& model, std::string_view prompt) {
    return std::string(model.generate(prompt).text());
}
