// A second file of the same program: everything in the header may be in several.

#include <welm.hpp>

std::string other_file(const welm::Model& model, std::string_view prompt);

std::string other_file(const welm::Model& model, std::string_view prompt) {
    return std::string(model.generate(prompt).text());
}
