// Parses a client's request, which is JSON, with a streaming parser. Only the known fields are stored, so that a body
// takes little more memory than its own size, whatever it contains and however deep it is nested.

#ifndef ASK_HPP
#define ASK_HPP

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include <nlohmann/json.hpp>
#include <welm.hpp>

using json = nlohmann::json;

/// A value as JSON text. It may have bytes from a client; those that are not UTF-8 are replaced.
inline std::string dump(const json& value) {
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

/// The beginning of a client's text, for a message.
inline std::string shortened(const std::string& text, std::size_t most = 200) {
    if (text.size() <= most) return text;
    while (most > 0 && (text[most] & 0xc0) == 0x80) --most; // not within a character
    return text.substr(0, most) + "…";
}

struct Ask {
    std::optional<std::string> prompt;
    bool stream = false;
    welm::GenerateOptions options;

    /// Throws `std::invalid_argument`, which says what is wrong.
    explicit Ask(const std::string& body);

private:
    class Reader;
};

/// The callbacks of the parser.
class Ask::Reader : public nlohmann::json_sax<json> {
public:
    explicit Reader(Ask& ask) : ask_(ask) {}

    bool null() override { return take(nullptr); }
    bool boolean(bool given) override { return take(given); }
    bool number_integer(std::int64_t given) override { return take(given); }
    bool number_unsigned(std::uint64_t given) override { return take(given); }
    bool number_float(double given, const std::string&) override { return take(given); }
    bool string(std::string& given) override { return take(std::move(given)); }
    bool binary(json::binary_t&) override { return false; } // not in JSON

    bool start_object(std::size_t) override {
        if (in_object_) take(json::object()); // an error, because no field is an object
        return in_object_ = true;
    }
    bool key(std::string& name) override {
        if (fields().count(name) == 0) throw std::invalid_argument("unknown field " + shortened(name));
        if (!seen_.insert(name).second) throw std::invalid_argument(name + ": expected one value, got several");
        name_ = name;
        return true;
    }
    bool end_object() override { return true; }
    bool start_array(std::size_t) override {
        if (name_ != "stop" || in_list_) take(json::array());
        return in_list_ = true;
    }
    bool end_array() override {
        in_list_ = false;
        return true;
    }
    bool parse_error(std::size_t, const std::string&, const json::exception& error) override {
        throw std::invalid_argument(shortened(error.what()));
    }

private:
    using Options = welm::GenerateOptions;
    using Set = void (*)(Reader&, json&);

    bool take(json value) {
        if (!in_object_) throw std::invalid_argument("expected a JSON object");
        if (in_list_ || !value.is_null()) fields().at(name_)(*this, value);
        return true;
    }

    /// Whether a JSON value can be a `T` without loss.
    template <class T>
    static bool fits(const json& value) {
        if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
        else if constexpr (std::is_integral_v<T>)
            return value.is_number_unsigned() &&
                   value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<T>::max()};
        else if constexpr (std::is_floating_point_v<T>)
            return value.is_number() && std::abs(value.get<double>()) <= double{std::numeric_limits<T>::max()};
        else return value.is_string();
    }

    template <class T>
    static std::string expected() {
        if constexpr (std::is_same_v<T, bool>) return "true or false";
        else if constexpr (std::is_integral_v<T>)
            return "a whole number from 0 to " + std::to_string(std::numeric_limits<T>::max());
        else if constexpr (std::is_floating_point_v<T>) return "a number from -3.4e38 to 3.4e38";
        else return "a text";
    }

    static std::string quoted(const json& value) {
        if (value.is_array()) return "a list";
        if (value.is_object()) return "an object";
        return dump(value.is_string() ? json(shortened(value.get_ref<const std::string&>())) : value);
    }

    template <class T>
    T get(json& value) const {
        if (!fits<T>(value))
            throw std::invalid_argument(name_ + ": expected " + expected<T>() + ", got " + quoted(value));
        if constexpr (std::is_same_v<T, std::string>) return std::move(value.get_ref<std::string&>());
        else return value.get<T>();
    }

    template <class T>
    void set(T& field, json& value) {
        field = get<T>(value);
    }
    template <class T>
    void set(std::optional<T>& field, json& value) {
        field = get<T>(value);
    }

    template <auto Member>
    static void own(Reader& self, json& value) {
        self.set(self.ask_.*Member, value);
    }
    template <auto Member>
    static void option(Reader& self, json& value) {
        self.set(self.ask_.options.*Member, value);
    }
    static void stop(Reader& self, json& value) { self.ask_.options.stop.push_back(self.get<std::string>(value)); }

    static const std::map<std::string, Set>& fields() {
        static const std::map<std::string, Set> all = {
            {"prompt", own<&Ask::prompt>},
            {"stream", own<&Ask::stream>},
            {"max_tokens", option<&Options::max_tokens>},
            {"temperature", option<&Options::temperature>},
            {"top_p", option<&Options::top_p>},
            {"top_k", option<&Options::top_k>},
            {"min_p", option<&Options::min_p>},
            {"repetition_penalty", option<&Options::repetition_penalty>},
            {"frequency_penalty", option<&Options::frequency_penalty>},
            {"presence_penalty", option<&Options::presence_penalty>},
            {"n", option<&Options::n>},
            {"seed", option<&Options::seed>},
            {"logprobs", option<&Options::logprobs>},
            {"echo", option<&Options::echo>},
            {"stop", stop},
        };
        return all;
    }

    Ask& ask_;
    std::string name_; // of the field whose value comes next
    std::set<std::string> seen_;
    bool in_object_ = false, in_list_ = false;
};

inline Ask::Ask(const std::string& body) {
    Reader reader(*this);
    json::sax_parse(body, &reader);
    if (!prompt) throw std::invalid_argument("prompt: expected a text, got none");
}

#endif
