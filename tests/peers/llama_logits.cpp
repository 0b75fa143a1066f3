// Writes the logits of a text, window by window, as llama.cpp computes them.
//
//     llama_logits MODEL TEXT OUT --window N --max-tokens N --threads N --flash-attention 0|1
//
// The windows are those of `bessemer eval`: the text is tokenised once, without special tokens, cut after --max-tokens and
// into windows of --window tokens, the first of them BOS where the vocabulary asks for it; all but the last token of a window are input, ROWS at a time. OUT gets binary32 logits,
// a row of the vocabulary's size for each input; stdout gets the windows as JSON.

#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr int ROWS = 64;

[[noreturn]] void fail(const std::string & what) {
    std::cerr << "llama_logits: " << what << "\n";
    std::exit(1);
}

std::vector<llama_token> tokenise(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> tokens(text.size() + 1);
    const int count = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), tokens.data(),
                                     static_cast<int>(tokens.size()), /*add_special=*/false, /*parse_special=*/false);
    if (count < 0) {
        fail("the text has more tokens than bytes");
    }
    tokens.resize(count);
    return tokens;
}

void print(const std::vector<std::vector<llama_token>> & windows, int vocabulary) {
    std::cout << "{\"vocabulary\": " << vocabulary << ", \"windows\": [";
    for (size_t w = 0; w < windows.size(); w++) {
        std::cout << (w ? ", [" : "[");
        for (size_t i = 0; i < windows[w].size(); i++) {
            std::cout << (i ? ", " : "") << windows[w][i];
        }
        std::cout << "]";
    }
    std::cout << "]}\n";
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 12) {
        fail("expected MODEL TEXT OUT and four options");
    }
    std::map<std::string, int> options;
    for (int i = 4; i + 1 < argc; i += 2) {
        options[argv[i]] = std::atoi(argv[i + 1]);
    }
    const int window = options["--window"];
    if (window < 2) {
        fail("--window is below 2");
    }

    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            std::fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fail(std::string("cannot load ") + argv[1]);
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = window;
    params.n_batch = params.n_ubatch = ROWS;
    params.n_threads = params.n_threads_batch = options["--threads"];
    params.flash_attn_type =
        options["--flash-attention"] ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) {
        fail("cannot make a context");
    }

    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int vocabulary = llama_vocab_n_tokens(vocab);
    const std::vector<llama_token> begin(llama_vocab_get_add_bos(vocab) ? 1 : 0, llama_vocab_bos(vocab));
    std::ifstream file(argv[2], std::ios::binary);
    if (!file) {
        fail(std::string("cannot read ") + argv[2]);
    }
    std::vector<llama_token> tokens =
        tokenise(vocab, std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()));
    if (const size_t most = options["--max-tokens"]; tokens.size() > most) {
        tokens.resize(most);
    }
    std::vector<std::vector<llama_token>> windows;
    for (size_t at = 0, body = window - begin.size(); at < tokens.size(); at += body) {
        windows.push_back(begin);
        windows.back().insert(windows.back().end(), tokens.begin() + at, tokens.begin() + std::min(tokens.size(), at + body));
    }

    std::ofstream out(argv[3], std::ios::binary);
    llama_batch batch = llama_batch_init(ROWS, 0, 1);
    for (const auto & window_tokens : windows) {
        llama_memory_clear(llama_get_memory(context), true);
        const int inputs = static_cast<int>(window_tokens.size()) - 1;
        for (int at = 0; at < inputs; at += batch.n_tokens) {
            batch.n_tokens = std::min(ROWS, inputs - at);
            for (int i = 0; i < batch.n_tokens; i++) {
                batch.token[i] = window_tokens[at + i];
                batch.pos[i] = at + i;
                batch.n_seq_id[i] = 1;
                batch.seq_id[i][0] = 0;
                batch.logits[i] = 1;
            }
            if (llama_decode(context, batch) != 0) {
                fail("llama_decode failed");
            }
            for (int i = 0; i < batch.n_tokens; i++) {
                const float * row = llama_get_logits_ith(context, i);
                out.write(reinterpret_cast<const char *>(row), sizeof(float) * vocabulary);
            }
        }
    }
    out.close();
    if (!out) {
        fail(std::string("cannot write ") + argv[3]);
    }
    print(windows, vocabulary);
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
