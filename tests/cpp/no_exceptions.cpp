// Tests the header without exceptions: compiled with -fno-exceptions -fno-rtti.
//
//     no_exceptions MODEL (PROMPT IDS TEXT)...

#include <welm.hpp>

#include "check.hpp"

#if defined(__cpp_exceptions)
#error "this is to be compiled without exceptions"
#endif

int main(int argc, char** argv) {
    CHECK(argc > 1);
    const welm::Result<welm::Model> none = welm::Model::try_load("/no/such/model");
    CHECK(!none && none.error().code() == WELM_IO);
    CHECK(std::string(none.error().what()).find("/no/such/model") != std::string::npos);

    const welm::Result<welm::Model> model = welm::Model::try_load(argv[1]);
    CHECK(model);
    for (const Golden& golden : goldens(argc, argv, 2)) {
        welm::GenerateOptions options;
        options.temperature = 0;
        options.max_tokens = golden.ids.size();
        const auto answer = model->try_generate(golden.prompt, options);
        CHECK(answer && answer->text() == golden.text);

        std::string text;
        auto stream = model->try_stream(golden.prompt, options);
        CHECK(stream);
        for (auto piece = stream->try_next(); piece && *piece; piece = stream->try_next()) text += (*piece)->text;
        CHECK(text == golden.text);

        text.clear();
        CHECK(model->try_generate_with(golden.prompt, options, [&](const welm::Piece& piece) { text += piece.text; }));
        CHECK(text == golden.text);

        options.temperature = -1;
        CHECK(model->try_generate(golden.prompt, options).error().code() == WELM_INVALID_OPTION);
    }
    return 0;
}
