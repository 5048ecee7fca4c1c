/*
 * welm: an embeddable engine for decoder-only language models.
 *
 * This file is made by cbindgen from welm-capi/src; see welm-capi/cbindgen.toml.
 *
 *     welm_error *error = NULL;
 *     welm_model *model = NULL;
 *     welm_generation *answer = NULL;
 *     if (welm_model_load("my-model", NULL, &model, &error) == WELM_OK &&
 *         welm_model_generate(model, welm_prompt_text("Once", WELM_NUL_TERMINATED), NULL, &answer, &error) == WELM_OK)
 *         puts(welm_generation_choice(answer, 0)->text);
 *     else
 *         fputs(welm_error_message(error), stderr);
 *     welm_generation_free(answer);
 *     welm_model_free(model);
 *     welm_error_free(error);
 *
 * What holds for every function:
 *
 * - It returns a welm_status if it can fail. Outputs are written only with WELM_OK, and a welm_error only with a
 *   status that is an error: not WELM_OK, WELM_END or WELM_PENDING. Functions that only look something up return it,
 *   and 0, false or NULL for a NULL handle.
 * - A function with a welm_error argument may return WELM_NULL_POINTER, WELM_INVALID_ARGUMENT, WELM_INVALID_UTF8 or
 *   WELM_PANIC. The comments call these the general errors.
 * - Handles are opaque. If a comment says that an object is the caller's, the caller frees it once, with the
 *   welm_..._free of its type; freeing NULL does nothing. If it says that an object belongs to a handle, it is freed
 *   with the handle.
 * - Texts are UTF-8. A length is in bytes, or WELM_NUL_TERMINATED for a text that ends at its first NUL. Each returned
 *   text has a NUL after it, but may also contain NULs. NULL with length 0 is an empty text.
 * - Structs that begin with struct_size may grow in later versions. Set it, by their init function or by hand, to the
 *   sizeof that your compiler knows. What a newer library adds is then at its default; what an older library does
 *   not know must be 0. Structs that functions return by pointer may grow, too: copy fields, not structs.
 * - Callbacks must not throw, and must not longjmp out.
 * - A fault inside the library is WELM_PANIC. It does not unwind into the program, and does not end it.
 */

#ifndef WELM_H
#define WELM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As a length: the text ends at its NUL. */
#define WELM_NUL_TERMINATED SIZE_MAX


/**
 * Version of the library that this header belongs to, first number.
 */
#define WELM_VERSION_MAJOR 0

/**
 * Second number.
 */
#define WELM_VERSION_MINOR 1

/**
 * Third number.
 */
#define WELM_VERSION_PATCH 0

/**
 * Changes whenever a program that was compiled with an older header would no longer work.
 */
#define WELM_ABI_VERSION 1

/**
 * Buckets of a histogram.
 */
#define WELM_HISTOGRAM_BUCKETS 23

/**
 * What a function returns. Values from 16 on are errors of the engine.
 */
typedef enum {
  /**
   * Done; the outputs are written.
   */
  WELM_OK = 0,
  /**
   * The stream has ended; no error.
   */
  WELM_END = 1,
  /**
   * An argument is NULL that must not be NULL.
   */
  WELM_NULL_POINTER = 2,
  /**
   * An argument is impossible; the message names it.
   */
  WELM_INVALID_ARGUMENT = 3,
  /**
   * A text is not UTF-8; the message says from which byte on.
   */
  WELM_INVALID_UTF8 = 4,
  /**
   * There is no such token.
   */
  WELM_NOT_FOUND = 5,
  /**
   * A fault inside the library, which was caught; the message says which. Please report it.
   */
  WELM_PANIC = 6,
  /**
   * An error that has no status of its own yet; the message says which.
   */
  WELM_OTHER = 7,
  /**
   * There is no piece yet; no error.
   */
  WELM_PENDING = 8,
  /**
   * A file could not be opened, read, mapped or written.
   */
  WELM_IO = 16,
  /**
   * A file was read, but its content is damaged or not of the format it should be.
   */
  WELM_INVALID_FILE = 17,
  /**
   * The model's configuration asks for something that is unknown or not supported.
   */
  WELM_CONFIG = 18,
  /**
   * A tensor is missing, or has another shape or element type than the configuration asks for.
   */
  WELM_TENSOR = 19,
  /**
   * The tokenizer cannot be built, is missing, or failed on a text.
   */
  WELM_TOKENIZER = 20,
  /**
   * An option has a value that is not allowed.
   */
  WELM_INVALID_OPTION = 21,
  /**
   * Prompt and `max_tokens` together do not fit the model's context or the KV cache.
   */
  WELM_TOO_LONG = 22,
  /**
   * The prompt has no token, and the model has no token to start an empty text with.
   */
  WELM_EMPTY_PROMPT = 23,
  /**
   * The request was refused because too many are waiting.
   */
  WELM_QUEUE_FULL = 24,
  /**
   * The model, or the answer to a request, does not fit in memory; the message has the numbers.
   */
  WELM_OUT_OF_MEMORY = 25,
  /**
   * The device, instruction set or thread that was asked for is not available.
   */
  WELM_UNAVAILABLE = 26,
  /**
   * The device failed in a step; the requests of that step end with this, later ones are served.
   */
  WELM_DEVICE = 27,
  /**
   * The device's context is lost; the model cannot serve any more.
   */
  WELM_DEVICE_LOST = 28,
  /**
   * The engine stopped after an internal fault; the model cannot serve any more.
   */
  WELM_ENGINE_STOPPED = 29,
  /**
   * The progress callback asked to stop.
   */
  WELM_LOAD_CANCELLED = 30,
  /**
   * The model has no chat template, or the template cannot be read, is not valid, or raised an error.
   */
  WELM_CHAT_TEMPLATE = 31,
  /**
   * The model gave logits that are not finite numbers: its weights, or the device, are at fault; or a key or value is
   * above 65,504 in a cache of f16. Only this request ends.
   */
  WELM_NOT_FINITE = 32,
  /**
   * The process was forked after the model was loaded; its engine is in the parent only. Freeing is allowed.
   */
  WELM_FORKED = 33,
  /**
   * A scoring was cancelled, or its deadline passed, before all scores were there.
   */
  WELM_INTERRUPTED = 34,
} welm_status;

/**
 * Why a sequence ended.
 */
typedef enum {
  /**
   * It has not ended.
   */
  WELM_FINISH_NONE = 0,
  /**
   * A stop string was generated, or one of `stop_token_ids`.
   */
  WELM_FINISH_STOP = 1,
  /**
   * The model ended the text.
   */
  WELM_FINISH_END_OF_TEXT = 2,
  /**
   * `max_tokens` were generated.
   */
  WELM_FINISH_LENGTH = 3,
  /**
   * The request was cancelled.
   */
  WELM_FINISH_CANCELLED = 4,
  /**
   * The deadline passed.
   */
  WELM_FINISH_DEADLINE = 5,
  /**
   * Any other reason.
   */
  WELM_FINISH_OTHER = 6,
} welm_finish_reason;

/**
 * How important a message is.
 */
typedef enum {
  /**
   * Nothing.
   */
  WELM_LOG_OFF = 0,
  /**
   * Errors.
   */
  WELM_LOG_ERROR = 1,
  /**
   * Things that somebody should look at.
   */
  WELM_LOG_WARN = 2,
  /**
   * Rare events, for instance that a model was loaded, and where it runs.
   */
  WELM_LOG_INFO = 3,
  /**
   * Details that help to find an error.
   */
  WELM_LOG_DEBUG = 4,
  /**
   * Everything.
   */
  WELM_LOG_TRACE = 5,
} welm_log_level;

/**
 * Ends requests from another thread: all requests that have it in their options. Any number of threads may use it at
 * once.
 */
typedef struct welm_cancel_token welm_cancel_token;

/**
 * An error with its message. The last argument of functions that can fail is a `welm_error **`. If it is not NULL and
 * the status is an error, a new error is written there, which the caller frees. The old value is neither read nor
 * freed.
 *
 * An error never changes, so that any number of threads may read it at once.
 */
typedef struct welm_error welm_error;

/**
 * The answer to a request. It never changes, so that any number of threads may read it at once. What its functions
 * return is valid until it is freed.
 */
typedef struct welm_generation welm_generation;

/**
 * Logits after some tokens of a prompt. They never change, so that any number of threads may read them at once.
 */
typedef struct welm_logits welm_logits;

/**
 * A loaded model. Any number of threads may use one handle at once: their requests are computed together.
 *
 * The engine ends when the last handle and the last stream are freed. Freeing a handle while streams of it are open is
 * safe, but no other call may use the handle then or later.
 */
typedef struct welm_model welm_model;

/**
 * The scores of several continuations, in their order. They never change, so that any number of threads may read
 * them at once.
 */
typedef struct welm_scores welm_scores;

/**
 * An answer that is being generated. One thread at a time may ask for its pieces; any thread may cancel it meanwhile.
 */
typedef struct welm_stream welm_stream;

/**
 * A text that a function returned. It never changes, so that any number of threads may read it at once.
 */
typedef struct welm_string welm_string;

/**
 * Tokens that a function returned. They never change, so that any number of threads may read them at once.
 */
typedef struct welm_tokens welm_tokens;

/**
 * Called while weights are read, on the thread that loads, with the bytes that are ready and the bytes in all.
 * Returning `false` ends the loading with `WELM_LOAD_CANCELLED`. It must not throw, and must not `longjmp` out.
 */
typedef bool (*welm_progress_callback)(void *data, uint64_t done_bytes, uint64_t total_bytes);

/**
 * How a model is loaded. `welm_load_options_init` sets the defaults, which are right for most programs.
 *
 * Texts are UTF-8, NUL-terminated, and need to live only until the function that takes them returns. A text that is
 * NULL, or a number that is 0, means the default.
 */
typedef struct {
  /**
   * `sizeof(welm_load_options)`.
   */
  size_t struct_size;
  /**
   * Where the model runs; auto is the first CUDA device that can run it, else the CPU (auto, cpu, cuda or cuda:N;
   * default: auto).
   *
   * The log says which device was chosen.
   */
  const char *device;
  /**
   * Element type of the weights in memory; auto is never less exact than the file (auto, f32, bf16 or int8;
   * default: auto).
   */
  const char *dtype;
  /**
   * Element type of the cached keys and values; auto is f16 on the CPU and bf16 on CUDA, which has no other (auto,
   * f32, bf16 or f16; default: auto).
   */
  const char *cache_dtype;
  /**
   * Precision of activations where they are multiplied by int8 or four-bit weights (auto, int8, int8_rotated or
   * int16; default: auto).
   */
  const char *activations;
  /**
   * Instruction set to use at most, such as avx2 or neon (default: what WELM_ISA says, or else the best that the
   * machine has).
   *
   * "scalar"; on x86-64 "avx2", "avxvnni" or "avx512vnni"; on AArch64 "neon" or "neondot".
   */
  const char *isa;
  /**
   * Compute threads (1 to 1024; default: as many as CPU affinity and cgroup quota allow).
   */
  size_t threads;
  /**
   * Most tokens of one sequence (1 to 16777216; default: the limit of the model).
   */
  size_t context_tokens;
  /**
   * Tokens that the KV cache holds, over all sequences (1 to 4294967296; default: eight full contexts, but no more
   * than 32768).
   */
  size_t cache_tokens;
  /**
   * Most prompt tokens computed in one step, so that other requests wait at most one step for a long prompt (1 to
   * 65536; default: 256 on the CPU, up to 2048 on CUDA).
   */
  size_t chunk_tokens;
  /**
   * Most sequences that run at once (1 to 4096; default: 64).
   */
  size_t max_running;
  /**
   * Most sequences that wait; a request beyond them is refused (1 to 1048576; default: 1024).
   *
   * The refusal is `WELM_QUEUE_FULL`.
   */
  size_t queue_limit;
  /**
   * Most bytes that weights, KV cache and scratch may take together (default: what the machine has available).
   */
  uint64_t memory_limit;
  /**
   * Whether beginnings that prompts have in common are computed once and shared (default: true).
   */
  bool prefix_cache;
  /**
   * Whether weights are copied out of the mapped file into memory of the process (default: false).
   *
   * The file may then be changed, and several sequences at once are faster. Loading takes as long as reading the file.
   */
  bool copy_weights;
  /**
   * Called while weights are read or quantised, with the bytes that are ready and the bytes in all (default:
   * none).
   */
  welm_progress_callback progress;
  /**
   * Given to `progress`.
   */
  void *progress_data;
  /**
   * Whether a mapped file that is truncated while in use is an error instead of the end of the process (default:
   * true).
   *
   * The error is `WELM_INVALID_FILE`, for all requests of the model. A handler of SIGBUS is installed for this, once
   * in a process. Faults outside of welm's maps go to the handler that was there before. It costs nothing until
   * there is a fault. Linux only.
   */
  bool guard_mapped_files;
  /**
   * Whether a model may have tensors that nothing reads, such as heads for other tasks (default: false).
   */
  bool allow_unread_tensors;
  /**
   * Must be zeros.
   */
  uint8_t reserved[6];
} welm_load_options;

/**
 * Memory that a model takes. Set `struct_size` before the call that fills it.
 */
typedef struct {
  /**
   * `sizeof(welm_estimate)`.
   */
  size_t struct_size;
  /**
   * Weights that are used directly from the mapped file; the system can drop them from memory and read them again.
   */
  uint64_t mapped_bytes;
  /**
   * Weights that are converted or quantised into memory.
   */
  uint64_t converted_bytes;
  /**
   * The KV cache.
   */
  uint64_t cache_bytes;
  /**
   * Activations, logits and all else that a step needs; on the CPU also the tokenizer and the queues of requests.
   */
  uint64_t scratch_bytes;
  /**
   * Everything together.
   */
  uint64_t total_bytes;
  /**
   * Most tokens of one sequence.
   */
  size_t context_tokens;
  /**
   * Tokens that the KV cache holds, over all sequences.
   */
  size_t cache_tokens;
} welm_estimate;

/**
 * Settings of a model. It belongs to the handle that it came from.
 */
typedef struct {
  /**
   * Family as the file spells it: "welm", "gpt_neox", "llama"; NUL-terminated.
   */
  const char *family;
  /**
   * Where the model runs: device, threads, instruction set; NUL-terminated.
   */
  const char *backend;
  /**
   * Number of weights.
   */
  uint64_t n_params;
  /**
   * Rows of the embedding, and length of the logits.
   */
  size_t vocab_size;
  /**
   * Width of the residual stream.
   */
  size_t dim;
  /**
   * Layers.
   */
  size_t n_layers;
  /**
   * Query heads.
   */
  size_t n_heads;
  /**
   * Key and value heads.
   */
  size_t n_kv_heads;
  /**
   * Width of a head.
   */
  size_t head_dim;
  /**
   * Width of the hidden layer of the feed-forward network.
   */
  size_t hidden_dim;
  /**
   * Most tokens of a sequence that the model was made for; `welm_model_memory` says how many this handle allows.
   */
  size_t max_context;
  /**
   * Tokens that end a text.
   */
  const uint32_t *eos_token_ids;
  /**
   * Number of `eos_token_ids`.
   */
  size_t n_eos;
  /**
   * The token that starts a text, if `has_bos`.
   */
  uint32_t bos_token_id;
  /**
   * Whether a token starts a text.
   */
  bool has_bos;
  /**
   * Whether the model has a tokenizer; without one it takes and returns tokens only.
   */
  bool has_tokenizer;
} welm_config;

/**
 * A prompt, as text or as tokens; see `welm_prompt_text` and `welm_prompt_tokens`. It is passed by value. What it
 * points to needs to live only until the function that takes it returns.
 */
typedef struct {
  /**
   * The text, in UTF-8, if `tokens` is NULL.
   */
  const char *text;
  /**
   * The tokens.
   */
  const uint32_t *tokens;
  /**
   * Bytes of the text, or `WELM_NUL_TERMINATED`; for tokens their number.
   */
  size_t len;
} welm_prompt;

/**
 * A number that is added to the logit of one token.
 */
typedef struct {
  /**
   * The token.
   */
  uint32_t token;
  /**
   * From -100 to 100, or `-INFINITY`, which rules the token out.
   */
  float bias;
} welm_logit_bias;

/**
 * How a prompt is continued. `welm_generate_options_init` sets the defaults.
 *
 * What it points to needs to live only until the function that takes it returns.
 */
typedef struct {
  /**
   * `sizeof(welm_generate_options)`.
   */
  size_t struct_size;
  /**
   * Most tokens generated for each sequence (default: 16).
   */
  size_t max_tokens;
  /**
   * Keeps this many of the likeliest tokens; 0 is off (default: 50).
   */
  size_t top_k;
  /**
   * Sequences returned; the prompt is computed once (1 to 128; default: 1).
   */
  size_t n;
  /**
   * Divides the logits; 0 is greedy: the likeliest token is always taken (0 to 100; default: 0.85).
   */
  float temperature;
  /**
   * Keeps the likeliest tokens whose probabilities add up to this; 0 is greedy, 1 is off (0 to 1; default: 0.95).
   */
  float top_p;
  /**
   * Drops tokens less likely than this share of the likeliest token's probability; 0 is off (0 to 1; default:
   * 0.0).
   */
  float min_p;
  /**
   * Divides positive and multiplies negative logits of tokens that prompt or text contain; 1 is off (0.01 to 100;
   * default: 1.0).
   */
  float repetition_penalty;
  /**
   * Subtracted from a token's logit for each time that the generated text has it; 0 is off (-100 to 100; default:
   * 0.0).
   */
  float frequency_penalty;
  /**
   * Subtracted once from the logits of tokens that the generated text has; 0 is off (-100 to 100; default: 0.0).
   */
  float presence_penalty;
  /**
   * Added to the logits of these tokens; -infinity rules a token out (-100 to 100, or -infinity; default: none).
   *
   * There are `n_logit_bias` of them. They are added before the penalties. If a token is here several times, its
   * biases add up.
   */
  const welm_logit_bias *logit_bias;
  /**
   * Number of biases.
   */
  size_t n_logit_bias;
  /**
   * Strings that end a sequence; they are never part of the text (at most 256, each of 1 to 256 bytes; default:
   * none).
   *
   * There are `n_stop` of them, in UTF-8. A stop string may also name a special token, although texts do not contain
   * these: `<|im_end|>` ends a sequence at that token.
   */
  const char *const *stop;
  /**
   * Bytes of each stop string; NULL if all are NUL-terminated.
   */
  const size_t *stop_lens;
  /**
   * Number of stop strings.
   */
  size_t n_stop;
  /**
   * Seed of the random numbers; the same request with the same seed gives the same text (default: drawn, and
   * reported with the result).
   *
   * It is used only if `has_seed` is set.
   */
  uint64_t seed;
  /**
   * How many of the likeliest tokens are reported at each place, with log-probabilities (at most 100; default:
   * none is reported).
   *
   * -1 reports nothing, 0 only the log-probability of the chosen token.
   */
  int32_t logprobs;
  /**
   * Whether `seed` is used.
   */
  bool has_seed;
  /**
   * Whether the prompt is part of the text, and of the log-probabilities if those are asked for (default: false).
   */
  bool echo;
  /**
   * Whether spellings of special tokens in the prompt become these tokens; otherwise they are ordinary text
   * (default: false).
   */
  bool parse_special;
  /**
   * Whether the model's end tokens are ignored, so that the text goes on up to max_tokens (default: false).
   */
  bool ignore_eos;
  /**
   * Time after which the request ends with what it has, counted from the call (default: never).
   *
   * In milliseconds; 0 is never.
   */
  uint64_t deadline_ms;
  /**
   * Token that ends the request from another thread (default: none).
   *
   * The request keeps a reference: you may free the token while the request runs.
   */
  const welm_cancel_token *cancel;
  /**
   * Tokens that end a sequence as the model's own end tokens do (at most 256; default: none).
   *
   * There are `n_stop_token_ids` of them. The sequence ends with `WELM_FINISH_STOP`, even with `ignore_eos`. They
   * are part of neither text nor tokens.
   */
  const uint32_t *stop_token_ids;
  /**
   * Number of these tokens.
   */
  size_t n_stop_token_ids;
  /**
   * Prefix-cache entries are shared only between requests with the same salt (1 to 256 bytes; default: shared by
   * all that have none).
   *
   * In UTF-8. Give each tenant a secret of its own. Then tenants cannot find out each other's prompts from response
   * times or from `cached_tokens`.
   */
  const char *cache_salt;
  /**
   * Bytes of the salt, or `WELM_NUL_TERMINATED`, the default.
   */
  size_t cache_salt_len;
} welm_generate_options;

/**
 * One of the likeliest tokens at a position.
 */
typedef struct {
  /**
   * The token.
   */
  uint32_t id;
  /**
   * Natural logarithm of its probability.
   */
  float logprob;
} welm_alternative;

/**
 * A token of an answer.
 */
typedef struct {
  /**
   * The token.
   */
  uint32_t id;
  /**
   * Natural logarithm of its probability under the model, before temperature and truncation, if `has_logprob`.
   */
  float logprob;
  /**
   * The likeliest tokens at this position, likeliest first; as many as were asked for.
   */
  const welm_alternative *alternatives;
  /**
   * Number of them.
   */
  size_t n_alternatives;
  /**
   * False if none was asked for, and for the first token of an echoed prompt, which has no token before it.
   */
  bool has_logprob;
} welm_token;

/**
 * A piece of a stream.
 */
typedef struct {
  /**
   * Which of the `n` sequences it belongs to, from 0.
   */
  size_t index;
  /**
   * The next part of the text, in UTF-8, with a NUL after it. It may be empty while a character is incomplete, or
   * while the text could be the beginning of a stop string.
   */
  const char *text;
  /**
   * Bytes of the text.
   */
  size_t text_len;
  /**
   * Tokens generated since the last piece; with `echo`, the first piece has the prompt's.
   */
  const welm_token *tokens;
  /**
   * Number of them.
   */
  size_t n_tokens;
  /**
   * On the last piece of a sequence: why it ended. Otherwise `WELM_FINISH_NONE`.
   */
  welm_finish_reason finish_reason;
  /**
   * On the last piece: tokens generated, the end token not counted.
   */
  size_t completion_tokens;
  /**
   * On the last piece: prompt tokens that were found in the prefix cache.
   */
  size_t cached_tokens;
  /**
   * On the last piece: the token that ended the sequence, if `has_end_token`; see `welm_choice`.
   */
  uint32_t end_token;
  /**
   * Whether such a token ended it.
   */
  bool has_end_token;
} welm_piece;

/**
 * Takes the pieces of an answer as they come; returning `false` ends the request. `piece` and what it points to are
 * valid until the callback returns. It must not throw, and must not `longjmp` out.
 */
typedef bool (*welm_piece_callback)(void *data, const welm_piece *piece);

/**
 * One generated sequence.
 */
typedef struct {
  /**
   * The text, in UTF-8, with a NUL after it; with `echo`, the prompt is in front of it.
   */
  const char *text;
  /**
   * Bytes of the text.
   */
  size_t text_len;
  /**
   * Its tokens; with `echo`, those of the prompt are in front of them.
   */
  const welm_token *tokens;
  /**
   * Number of them.
   */
  size_t n_tokens;
  /**
   * Why it ended.
   */
  welm_finish_reason finish_reason;
  /**
   * The token that ended the sequence, if `has_end_token`: an end token of the model, or one of `stop_token_ids`. It
   * is not part of text and tokens.
   */
  uint32_t end_token;
  /**
   * Whether such a token ended it.
   */
  bool has_end_token;
} welm_choice;

/**
 * Tokens that a request used.
 */
typedef struct {
  /**
   * Tokens of the prompt.
   */
  size_t prompt_tokens;
  /**
   * Tokens generated, over all sequences.
   */
  size_t completion_tokens;
  /**
   * Prompt tokens whose keys and values came from the prefix cache.
   */
  size_t cached_tokens;
} welm_usage;

/**
 * How pairs are scored. `welm_score_options_init` sets the defaults.
 */
typedef struct {
  /**
   * `sizeof(welm_score_options)`.
   */
  size_t struct_size;
  /**
   * Time after which the scoring ends without a result, counted from the call (default: never).
   *
   * In milliseconds; 0 is never. The scoring ends with `WELM_INTERRUPTED`.
   */
  uint64_t deadline_ms;
  /**
   * Token that ends the scoring from another thread (default: none).
   *
   * The scoring ends with `WELM_INTERRUPTED`. The token has to live until the function returns.
   */
  const welm_cancel_token *cancel;
  /**
   * How many of the likeliest tokens are reported at each place of a continuation, with log-probabilities (at most
   * 100; default: 0).
   */
  size_t logprobs;
  /**
   * Prefix-cache entries are shared only between requests with the same salt (1 to 256 bytes; default: shared by
   * all that have none).
   *
   * UTF-8; NULL is none. As the `cache_salt` of requests. It changes no score.
   */
  const char *cache_salt;
  /**
   * Length of `cache_salt` in bytes, or `WELM_NUL_TERMINATED`, which is the default.
   */
  size_t cache_salt_len;
} welm_score_options;

/**
 * The log-likelihood of a given continuation.
 */
typedef struct {
  /**
   * Sum of the tokens' log-probabilities, natural logarithm.
   */
  double logprob;
  /**
   * The continuation's tokens, each with its log-probability.
   */
  const welm_token *tokens;
  /**
   * Number of them.
   */
  size_t n_tokens;
} welm_score;

/**
 * One message of a conversation. What it points to needs to live only until the function that takes it returns.
 */
typedef struct {
  /**
   * Who speaks: "system", "user", "assistant", or another role that the template knows; UTF-8, NUL-terminated.
   */
  const char *role;
  /**
   * The message's text, in UTF-8.
   */
  const char *content;
  /**
   * Bytes of the text, or `WELM_NUL_TERMINATED`.
   */
  size_t content_len;
} welm_message;

/**
 * Times in buckets whose upper bounds double.
 */
typedef struct {
  /**
   * Upper bound of each bucket, in seconds, from 0.1 ms on; infinite for the last.
   */
  double bounds_s[WELM_HISTOGRAM_BUCKETS];
  /**
   * Observations in each bucket.
   */
  uint64_t counts[WELM_HISTOGRAM_BUCKETS];
  /**
   * Sum of the observations, in seconds.
   */
  double sum_s;
} welm_histogram;

/**
 * Counters of an engine. Set `struct_size` before the call that fills it.
 */
typedef struct {
  /**
   * `sizeof(welm_stats)`.
   */
  size_t struct_size;
  /**
   * Requests accepted into the queue.
   */
  uint64_t requests;
  /**
   * Requests refused because the queue was full.
   */
  uint64_t rejected;
  /**
   * Requests that are not finished.
   */
  uint64_t open;
  /**
   * Sequences that wait in the queue and have not started.
   */
  size_t queue_depth;
  /**
   * Sequences in the current step.
   */
  size_t running;
  /**
   * How often a sequence lost its part of the KV cache to others, and was computed again.
   */
  uint64_t preemptions;
  /**
   * Steps of the engine.
   */
  uint64_t steps;
  /**
   * Prompt tokens, computed or found in the prefix cache.
   */
  uint64_t prompt_tokens;
  /**
   * Prompt tokens found in the prefix cache.
   */
  uint64_t prefix_hit_tokens;
  /**
   * Tokens generated.
   */
  uint64_t completion_tokens;
  /**
   * Blocks of the KV cache.
   */
  size_t blocks_total;
  /**
   * Blocks that sequences use.
   */
  size_t blocks_used;
  /**
   * Blocks that no sequence uses, kept because a later prompt may begin with the same tokens.
   */
  size_t blocks_cached;
  /**
   * From submission to the first token of each sequence.
   */
  welm_histogram time_to_first_token;
  /**
   * Between two tokens of a sequence.
   */
  welm_histogram time_between_tokens;
} welm_stats;

/**
 * Takes a message. `target` says where it comes from. `message` is its text, with its values at the end:
 * `model loaded path=...`. Both are UTF-8, NUL-terminated, and valid until the callback returns. It must not throw,
 * and must not `longjmp` out.
 *
 * It is called on the thread that logs, perhaps on several threads at once. Messages that are logged on its thread
 * while it runs are dropped, and so are all messages of models that it loads. So it may call other functions of this
 * library, except `welm_log_set_callback`. The thread may be the model's own, when a step has failed or the model
 * ends: a callback must not answer a warning, or a message about an end, with a request to the same model.
 */
typedef void (*welm_log_callback)(void *data, welm_log_level level, const char *target, const char *message);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that runs, as text: `0.1.0`.
 *
 * - ownership: a constant; never freed.
 * - threads: any, at any time.
 * - NULL: never returned.
 * - encoding: ASCII, NUL-terminated.
 */
const char *welm_version(void);

/**
 * The `WELM_ABI_VERSION` of the library that runs. A program that loads the library itself (`dlopen`) should compare
 * the two.
 *
 * - ownership: nothing to free.
 * - threads: any, at any time.
 * - NULL: takes no pointer.
 */
uint32_t welm_abi_version(void);

/**
 * The status that came with this error.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one error.
 * - NULL: `WELM_OK` for a NULL `error`.
 */
welm_status welm_error_code(const welm_error *error);

/**
 * What happened, in one line: which file, option or argument, what was expected and what was found.
 *
 * - ownership: belongs to `error`; valid until `error` is freed.
 * - threads: any number at once on one error.
 * - NULL: an empty text for a NULL `error`; never returns NULL.
 * - encoding: UTF-8, NUL-terminated.
 */
const char *welm_error_message(const welm_error *error);

/**
 * Frees an error.
 *
 * - ownership: takes `error`, and frees its message, too.
 * - threads: once, when nobody reads it any more.
 * - NULL: does nothing.
 */
void welm_error_free(welm_error *error);

/**
 * The name of a status as in this header, such as `WELM_QUEUE_FULL`; `unknown status` for any other number.
 *
 * - ownership: a constant; never freed.
 * - threads: any, at any time.
 * - NULL: never returned.
 * - encoding: ASCII, NUL-terminated.
 */
const char *welm_status_name(int32_t status);

/**
 * The text itself.
 *
 * - ownership: belongs to `string`; valid until `string` is freed.
 * - threads: any number at once on one string.
 * - NULL: returned for a NULL `string`, with the length 0; allowed for `len`.
 * - encoding: UTF-8: `*len` bytes, then a NUL. A text may contain NULs, too.
 */
const char *welm_string_data(const welm_string *string, size_t *len);

/**
 * Frees a string.
 *
 * - ownership: takes `string`, and frees its text, too.
 * - threads: once, when nobody reads it any more.
 * - NULL: does nothing.
 */
void welm_string_free(welm_string *string);

/**
 * Sets every option to its default, and `struct_size` to the argument, which is `sizeof(welm_load_options)`.
 *
 * - ownership: nothing to free.
 * - threads: any, each with a struct of its own.
 * - NULL: not allowed for `options`.
 * - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, then nothing is written.
 */
welm_status welm_load_options_init(welm_load_options *options, size_t struct_size);

/**
 * Loads a Hugging Face folder, an int8 folder of `welm_quantize`, or a GGUF file, and starts its engine.
 *
 * Files are mapped: they must not be changed until the model is freed (see `guard_mapped_files`). A folder without a
 * tokenizer gives a model that takes and returns tokens only.
 *
 * - ownership: `*model` is the caller's, to be freed with `welm_model_free`. Nothing of `options` is kept.
 * - threads: any, also several at once.
 * - NULL: not allowed for `path` and `model`; allowed for `options`, for the defaults; allowed for `error`.
 * - encoding: `path` is NUL-terminated. On Unix it may be any bytes that name a file, on other systems it is UTF-8.
 * - errors: `WELM_IO`, `WELM_INVALID_FILE`, `WELM_CONFIG`, `WELM_TENSOR`, `WELM_TOKENIZER` for files that are
 *   missing, damaged or not supported; `WELM_OUT_OF_MEMORY` if the model does not fit, before weights are read;
 *   `WELM_INVALID_OPTION`, `WELM_UNAVAILABLE`, `WELM_LOAD_CANCELLED`; the general errors.
 */
welm_status welm_model_load(const char *path,
                            const welm_load_options *options,
                            welm_model **model,
                            welm_error **error);

/**
 * Memory that `welm_model_load` with these options would take, computed from the headers of the files and, on the CPU,
 * from the tokenizer. With the device "cuda" it is memory of the device, which need not be there; otherwise it is memory
 * of the CPU.
 *
 * - ownership: nothing to free.
 * - threads: any, also several at once.
 * - NULL: not allowed for `path` and `estimate`; allowed for `options`, for the defaults; allowed for `error`.
 * - encoding: `path` as for `welm_model_load`.
 * - errors: as `welm_model_load`, without those about memory.
 */
welm_status welm_model_estimate(const char *path,
                                const welm_load_options *options,
                                welm_estimate *estimate,
                                welm_error **error);

/**
 * Writes an int8 folder from the Hugging Face folder `from`. `to` is a new folder, an empty one, or one that this
 * function wrote before. Such a folder is replaced in one step (Linux): a program that loads it meanwhile gets either
 * the old model or the new one. `progress` is called after each matrix and may stop the work; then no unfinished files
 * are left.
 *
 * - ownership: nothing to free.
 * - threads: any, also several at once.
 * - NULL: not allowed for `from` and `to`; allowed for `progress`, its `data` and `error`.
 * - encoding: paths as for `welm_model_load`.
 * - errors: those of `welm_model_load` about files; `WELM_IO` if `to` cannot be written; `WELM_INVALID_OPTION` if `to`
 *   is an empty text, or has files that this function did not write; `WELM_LOAD_CANCELLED`.
 */
welm_status welm_quantize(const char *from,
                          const char *to,
                          welm_progress_callback progress,
                          void *data,
                          welm_error **error);

/**
 * Another handle of the same engine, for a part of a program that frees its own handle. The model is not copied.
 *
 * - ownership: the result is the caller's, to be freed with `welm_model_free`.
 * - threads: any number at once on one model.
 * - NULL: returned for a NULL `model`.
 */
welm_model *welm_model_clone(const welm_model *model);

/**
 * Frees a handle. When the last handle and all streams are freed, the engine ends and its memory is freed.
 *
 * - ownership: takes `model`; streams, answers and other handles stay valid.
 * - threads: once, when no other call with this handle is running.
 * - NULL: does nothing.
 */
void welm_model_free(welm_model *model);

/**
 * Shapes and settings of a model, and where it runs.
 *
 * - ownership: belongs to `model`; valid until `model` is freed.
 * - threads: any number at once on one model.
 * - NULL: returned for a NULL `model`.
 */
const welm_config *welm_model_config(const welm_model *model);

/**
 * The memory that a model takes. Set `memory->struct_size` before.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `memory`; allowed for `error`.
 * - errors: only the general errors.
 */
welm_status welm_model_memory(const welm_model *model, welm_estimate *memory, welm_error **error);

/**
 * A prompt of text. The model tokenizes it, and adds the token that starts a text if its tokenizer does so.
 *
 * - ownership: only points to `text`.
 * - threads: any, at any time.
 * - NULL: allowed for `text` if `len` is 0.
 * - encoding: UTF-8, of `len` bytes or, with `WELM_NUL_TERMINATED`, up to its NUL; checked by the function that takes
 *   the prompt.
 */
welm_prompt welm_prompt_text(const char *text,
                             size_t len);

/**
 * A prompt of tokens; nothing is added to them.
 *
 * - ownership: only points to `tokens`.
 * - threads: any, at any time.
 * - NULL: allowed for `tokens` if `n_tokens` is 0.
 */
welm_prompt welm_prompt_tokens(const uint32_t *tokens, size_t n_tokens);

/**
 * Sets every option to its default, and `struct_size` to the argument, which is `sizeof(welm_generate_options)`.
 *
 * - ownership: nothing to free.
 * - threads: any, each with a struct of its own.
 * - NULL: not allowed for `options`.
 * - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, then nothing is written.
 */
welm_status welm_generate_options_init(welm_generate_options *options,
                                       size_t struct_size);

/**
 * Makes a token that is not cancelled.
 *
 * - ownership: the result is the caller's, to be freed with `welm_cancel_token_free`.
 * - threads: any, at any time.
 * - NULL: returned only for a fault inside the library.
 */
welm_cancel_token *welm_cancel_token_new(void);

/**
 * Asks every request that has this token to stop, within one step. It stays cancelled.
 *
 * - ownership: nothing changes.
 * - threads: any number at once on one token.
 * - NULL: does nothing.
 */
void welm_cancel_token_cancel(const welm_cancel_token *token);

/**
 * Whether a token was cancelled.
 *
 * - ownership: nothing changes.
 * - threads: any number at once on one token.
 * - NULL: `false` for a NULL `token`.
 */
bool welm_cancel_token_is_cancelled(const welm_cancel_token *token);

/**
 * Frees a token. Requests that have it go on.
 *
 * - ownership: takes `token`.
 * - threads: once, when no other call with this token is running.
 * - NULL: does nothing.
 */
void welm_cancel_token_free(welm_cancel_token *token);

/**
 * Continues a prompt; returns when all `n` sequences have ended.
 *
 * Cancelling and deadlines are no errors: the sequences end with that reason and with the text so far.
 *
 * - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of prompt and
 *   options is kept.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: not allowed for `model` and `generation`; allowed for `options`, for the defaults; allowed for `error`.
 * - encoding: prompt and stop strings are UTF-8.
 * - errors: `WELM_INVALID_OPTION`, `WELM_TOO_LONG`, `WELM_EMPTY_PROMPT`, `WELM_TOKENIZER`; `WELM_QUEUE_FULL` if
 *   too many wait; `WELM_FORKED` in a forked child; `WELM_NOT_FINITE`, `WELM_DEVICE` for faults of this request;
 *   `WELM_DEVICE_LOST`, `WELM_INVALID_FILE` (a mapped file was cut short), `WELM_ENGINE_STOPPED` for faults after which no
 *   request has an answer; the general errors.
 */
welm_status welm_model_generate(const welm_model *model,
                                welm_prompt prompt,
                                const welm_generate_options *options,
                                welm_generation **generation,
                                welm_error **error);

/**
 * As `welm_model_generate`, piece by piece, on the calling thread; returns when all sequences have ended, or when
 * `callback` returns `false`, which is no error. See `welm_stream_next` for what a piece is.
 *
 * - ownership: nothing to free. Nothing of prompt and options is kept.
 * - threads: any number at once on one model. `callback` runs on the thread of this call, and may use the model.
 * - NULL: not allowed for `model` and `callback`; allowed for `options`, `data` and `error`.
 * - encoding: prompt and stop strings are UTF-8.
 * - errors: as `welm_model_generate`; `callback` may have got pieces before.
 */
welm_status welm_model_generate_with(const welm_model *model,
                                     welm_prompt prompt,
                                     const welm_generate_options *options,
                                     welm_piece_callback callback,
                                     void *data,
                                     welm_error **error);

/**
 * How many sequences an answer has: the `n` of the request's options.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one answer.
 * - NULL: 0 for a NULL `generation`.
 */
size_t welm_generation_n_choices(const welm_generation *generation);

/**
 * One of the sequences, counted from 0.
 *
 * - ownership: belongs to `generation`; valid until `generation` is freed.
 * - threads: any number at once on one answer.
 * - NULL: returned for a NULL `generation`, and if there is no such sequence.
 * - encoding: its text is UTF-8: `text_len` bytes, then a NUL.
 */
const welm_choice *welm_generation_choice(const welm_generation *generation, size_t index);

/**
 * Why the first sequence ended.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one answer.
 * - NULL: `WELM_FINISH_NONE` for a NULL `generation`.
 */
welm_finish_reason welm_generation_finish_reason(const welm_generation *generation);

/**
 * The tokens that a request used.
 *
 * - ownership: belongs to `generation`; valid until `generation` is freed.
 * - threads: any number at once on one answer.
 * - NULL: returned for a NULL `generation`.
 */
const welm_usage *welm_generation_usage(const welm_generation *generation);

/**
 * The seed that was used; the same request with this seed gives the same bits.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one answer.
 * - NULL: 0 for a NULL `generation`.
 */
uint64_t welm_generation_seed(const welm_generation *generation);

/**
 * Frees an answer.
 *
 * - ownership: takes `generation`, and frees all that its functions returned, too.
 * - threads: once, when nobody reads it any more.
 * - NULL: does nothing.
 */
void welm_generation_free(welm_generation *generation);

/**
 * As `welm_model_generate`, but the caller asks for one piece after another. Pieces that it has not asked for yet wait
 * in memory.
 *
 * - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of prompt and options is
 *   kept. `model` may be freed before the stream.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `stream`; allowed for `options`, for the defaults; allowed for `error`.
 * - encoding: prompt and stop strings are UTF-8.
 * - errors: as `welm_model_generate`; those of the engine come from `welm_stream_next`.
 */
welm_status welm_model_stream(const welm_model *model,
                              welm_prompt prompt,
                              const welm_generate_options *options,
                              welm_stream **stream,
                              welm_error **error);

/**
 * Waits for the next piece. `WELM_END` means that all sequences have ended; then nothing is written, and it is no
 * error.
 *
 * The texts of one sequence's pieces, one after another, are its final text. None ends inside a character, and none
 * has any part of the stop string that ended the sequence.
 *
 * - ownership: `*piece` belongs to `stream`; valid until the next piece or `welm_stream_free`.
 * - threads: one at a time on one stream; a second one is refused with `WELM_INVALID_ARGUMENT`.
 * - NULL: not allowed for `stream` and `piece`; allowed for `error`.
 * - encoding: its text is UTF-8: `text_len` bytes, then a NUL.
 * - errors: `WELM_NOT_FINITE`, `WELM_DEVICE`, `WELM_DEVICE_LOST`, `WELM_ENGINE_STOPPED`, `WELM_OUT_OF_MEMORY`, and with
 *   `guard_mapped_files` `WELM_INVALID_FILE` for faults, after which the stream has ended; the general errors.
 */
welm_status welm_stream_next(const welm_stream *stream,
                             const welm_piece **piece,
                             welm_error **error);

/**
 * As `welm_stream_next`, but waits no longer than `timeout_ms` milliseconds. `WELM_PENDING` means that no piece came;
 * then nothing is written, and it is no error. So a thread can look at other things meanwhile: whether a client has
 * hung up, or at another stream.
 *
 * - ownership: `*piece` belongs to `stream`, as that of `welm_stream_next`.
 * - threads: one at a time on one stream, in either of these two functions.
 * - NULL: not allowed for `stream` and `piece`; allowed for `error`.
 * - encoding: its text is UTF-8: `text_len` bytes, then a NUL.
 * - errors: as `welm_stream_next`.
 */
welm_status welm_stream_next_timeout(const welm_stream *stream,
                                     uint64_t timeout_ms,
                                     const welm_piece **piece,
                                     welm_error **error);

/**
 * Ends the request. Pieces that are already generated still come, then the last ones, with `WELM_FINISH_CANCELLED`.
 *
 * - ownership: nothing changes; the stream is still to be freed.
 * - threads: any number at once on one stream, also while another waits in `welm_stream_next`.
 * - NULL: does nothing.
 */
void welm_stream_cancel(const welm_stream *stream);

/**
 * The seed that is used; the same request with this seed gives the same bits.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one stream.
 * - NULL: 0 for a NULL `stream`.
 */
uint64_t welm_stream_seed(const welm_stream *stream);

/**
 * Tokens of the prompt.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one stream.
 * - NULL: 0 for a NULL `stream`.
 */
size_t welm_stream_prompt_tokens(const welm_stream *stream);

/**
 * Frees a stream, and ends its request if that is still running.
 *
 * - ownership: takes `stream`, and frees its last piece, too.
 * - threads: once, when no other call with this stream is running.
 * - NULL: does nothing.
 */
void welm_stream_free(welm_stream *stream);

/**
 * Log-likelihoods of given continuations of a prompt.
 *
 * Prompt and continuation are tokenized together. The longest beginning that these tokens have in common with those of
 * the prompt alone is the context; the tokens after it are scored. If there is no such beginning, because the prompt
 * is empty or its only token merged with the continuation, the context is the token that starts a text, or else the
 * first end token. An empty continuation has no tokens, and log-probability 0. Memory is bounded, however many
 * continuations there are.
 *
 * - ownership: `*scores` is the caller's, to be freed with `welm_scores_free`. Nothing of the texts is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `scores`; allowed for `prompt` if `prompt_len` is 0, `continuations`, if `n`
 *   is 0; `lens` may be, where all continuations are NUL-terminated; allowed for `error`.
 * - encoding: UTF-8; `prompt_len` and each of `lens` in bytes, or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_generate`; `WELM_INVALID_OPTION` for a continuation that is not empty and has no tokens, or
 *   for which there is no context.
 */
welm_status welm_model_score(const welm_model *model,
                             const char *prompt,
                             size_t prompt_len,
                             const char *const *continuations,
                             const size_t *lens,
                             size_t n,
                             welm_scores **scores,
                             welm_error **error);

/**
 * Sets every option to its default, and `struct_size` to the argument, which is `sizeof(welm_score_options)`.
 *
 * - ownership: nothing to free.
 * - threads: any, each with a struct of its own.
 * - NULL: not allowed for `options`.
 * - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, then nothing is written.
 */
welm_status welm_score_options_init(welm_score_options *options, size_t struct_size);

/**
 * Log-likelihoods of many continuations, each after its own prompt: the same bits as `welm_model_score` gives for each.
 *
 * Pairs are computed together, some dozens at a time. Equal beginnings are computed once if the prefix cache is on, so
 * give pairs of the same prompt one after another. If prompt or continuation is given as tokens, the two are not
 * tokenized together. Memory is bounded, however many pairs there are.
 *
 * - ownership: `*scores` is the caller's, to be freed with `welm_scores_free`. Nothing of prompts, continuations and
 *   options is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `scores`; allowed for `prompts` and `continuations` if `n` is 0; allowed for
 *   `options`, for the defaults; allowed for `error`.
 * - encoding: texts are UTF-8.
 * - errors: as `welm_model_score`; `WELM_INTERRUPTED` if it was cancelled, or the deadline passed. What was computed until
 *   then is lost.
 */
welm_status welm_model_score_pairs(const welm_model *model,
                                   const welm_prompt *prompts,
                                   const welm_prompt *continuations,
                                   size_t n,
                                   const welm_score_options *options,
                                   welm_scores **scores,
                                   welm_error **error);

/**
 * How many scores there are.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on the same scores.
 * - NULL: 0 for NULL `scores`.
 */
size_t welm_scores_len(const welm_scores *scores);

/**
 * The score of a continuation, counted from 0.
 *
 * - ownership: belongs to `scores`; valid until `scores` is freed.
 * - threads: any number at once on the same scores.
 * - NULL: returned for NULL `scores`, and if there is no such continuation.
 */
const welm_score *welm_scores_get(const welm_scores *scores, size_t index);

/**
 * Frees scores.
 *
 * - ownership: takes `scores`, and frees all that its functions returned, too.
 * - threads: once, when nobody reads them any more.
 * - NULL: does nothing.
 */
void welm_scores_free(welm_scores *scores);

/**
 * Logits after each token of a prompt, from position `from` on. The result has `vocab_size` floats for each of these
 * positions, so ask for no more of them than you need.
 *
 * - ownership: `*logits` is the caller's, to be freed with `welm_logits_free`. Nothing of the prompt is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `logits`; allowed for `error`.
 * - encoding: the prompt is UTF-8.
 * - errors: as `welm_model_generate`; `WELM_INVALID_OPTION` if `from` is after the prompt.
 */
welm_status welm_model_logits(const welm_model *model,
                              welm_prompt prompt,
                              size_t from,
                              welm_logits **logits,
                              welm_error **error);

/**
 * The values, one row after another: `*rows` rows, one for each token, of `*cols` values, the model's `vocab_size`.
 *
 * - ownership: belongs to `logits`; valid until `logits` is freed.
 * - threads: any number at once on the same logits.
 * - NULL: returned for NULL `logits`, with 0 rows and columns; allowed for `rows` and `cols`.
 */
const float *welm_logits_data(const welm_logits *logits,
                              size_t *rows,
                              size_t *cols);

/**
 * Frees logits.
 *
 * - ownership: takes `logits`, and frees their values, too.
 * - threads: once, when nobody reads them any more.
 * - NULL: does nothing.
 */
void welm_logits_free(welm_logits *logits);

/**
 * The tokens of a text, without the token that starts a text. With `parse_special`, spellings of special tokens in the
 * text, such as `<|endoftext|>`, become these tokens; otherwise they are ordinary text.
 *
 * - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the text is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `tokens`; allowed for `text` if `len` is 0; allowed for `error`.
 * - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: `WELM_TOKENIZER` if the model has no tokenizer, or the tokenizer fails; the general errors.
 */
welm_status welm_model_tokenize(const welm_model *model,
                                const char *text,
                                size_t len,
                                bool parse_special,
                                welm_tokens **tokens,
                                welm_error **error);

/**
 * The tokens themselves.
 *
 * - ownership: belongs to `tokens`; valid until `tokens` is freed.
 * - threads: any number at once on the same tokens.
 * - NULL: returned for NULL `tokens`, with the length 0; allowed for `len`.
 */
const uint32_t *welm_tokens_data(const welm_tokens *tokens, size_t *len);

/**
 * Frees tokens.
 *
 * - ownership: takes `tokens`.
 * - threads: once, when nobody reads them any more.
 * - NULL: does nothing.
 */
void welm_tokens_free(welm_tokens *tokens);

/**
 * The text of tokens. Bytes that are not UTF-8 become U+FFFD; special tokens are left out. Empty for a model without a
 * tokenizer.
 *
 * - ownership: `*text` is the caller's, to be freed with `welm_string_free`. Nothing of the tokens is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `text`; allowed for `tokens` if `n_tokens` is 0; allowed for `error`.
 * - encoding: the text is UTF-8.
 * - errors: only the general errors.
 */
welm_status welm_model_detokenize(const welm_model *model,
                                  const uint32_t *tokens,
                                  size_t n_tokens,
                                  welm_string **text,
                                  welm_error **error);

/**
 * The bytes of a token, `*len` of them; none for a special token, or for one that does not exist.
 *
 * - ownership: belongs to `model`; valid until `model` is freed.
 * - threads: any number at once on one model.
 * - NULL: returned for a NULL `model`, with the length 0; allowed for `len`.
 * - encoding: any bytes, perhaps only a part of a character, and no NUL after them.
 */
const uint8_t *welm_model_token_bytes(const welm_model *model, uint32_t token, size_t *len);

/**
 * The id of a token, special or not, from its name in the vocabulary.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `id`; allowed for `token` if `len` is 0; allowed for `error`.
 * - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: `WELM_NOT_FOUND` if there is no such token; the general errors.
 */
welm_status welm_model_token_id(const welm_model *model,
                                const char *token,
                                size_t len,
                                uint32_t *id,
                                welm_error **error);

/**
 * Whether a token is a control token, which is not part of a text.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: `false` for a NULL `model`.
 */
bool welm_model_is_special(const welm_model *model, uint32_t token);

/**
 * Whether a model has a chat template. Whether the template is valid is known only when it is used.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: `false` for a NULL `model`.
 */
bool welm_model_has_chat_template(const welm_model *model);

/**
 * The text of a conversation, made by the model's own chat template. With `add_generation_prompt` it ends where the
 * assistant's answer begins.
 *
 * The template is a program by the author of the model. It runs with limits on steps, memory and depth, and can read
 * only the messages, the special tokens and the time.
 *
 * - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the messages is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `prompt` or the texts of a message; allowed for `messages` if `n` is 0;
 *   allowed for `error`.
 * - encoding: UTF-8.
 * - errors: `WELM_CHAT_TEMPLATE` if the model has none, or it fails; `WELM_IO`, `WELM_INVALID_FILE` if its file
 *   cannot be read; `WELM_INVALID_OPTION` without a message; the general errors.
 */
welm_status welm_model_chat_prompt(const welm_model *model,
                                   const welm_message *messages,
                                   size_t n,
                                   bool add_generation_prompt,
                                   welm_string **prompt,
                                   welm_error **error);

/**
 * The tokens of the text that `welm_model_chat_prompt` gives. Give them to `welm_prompt_tokens` to continue them.
 * Spellings of special tokens become these tokens. None is added in front, because the template writes the token that
 * starts a text.
 *
 * This includes special tokens in the text of a message, such as `<|im_end|>`. So the writer of a message can end it
 * and begin another one in any role. If messages are not trusted, look for such texts first.
 *
 * - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the messages is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model` and `tokens` or the texts of a message; allowed for `messages` if `n` is 0;
 *   allowed for `error`.
 * - encoding: UTF-8.
 * - errors: as `welm_model_chat_prompt`, and `WELM_TOKENIZER`.
 */
welm_status welm_model_chat_tokens(const welm_model *model,
                                   const welm_message *messages,
                                   size_t n,
                                   bool add_generation_prompt,
                                   welm_tokens **tokens,
                                   welm_error **error);

/**
 * As `welm_model_chat_prompt`, for a JSON object. Messages may have all keys that a template reads, and there are the
 * other arguments of `apply_chat_template` in transformers.
 *
 * ```json
 * {"messages": [{"role": "user", "content": "Hello"},
 *               {"role": "assistant", "content": null, "tool_calls": [{"type": "function", ...}]}],
 *  "tools": [{"type": "function", ...}], "enable_thinking": false}
 * ```
 *
 * - `messages`: objects with any keys. A key whose value is null is left out.
 * - `add_generation_prompt`: by default `true`, but `false` with `continue_final_message`.
 * - `continue_final_message`: `true`, or the key of the last message whose text the model continues.
 * - `tools`, `documents`: lists of objects; without them templates get `none`. With tools, the model's template named
 *   `tool_use` is taken if it has one.
 * - `chat_template`: the name of one of the model's templates if it has several, or the source of another one.
 * - All other keys are variables of the template.
 *
 * - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the request is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model`, `request` and `prompt`; allowed for `error`.
 * - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_chat_prompt`; `WELM_INVALID_OPTION` if `request` is not JSON, or has a wrong value; the
 *   message says which.
 */
welm_status welm_model_chat_prompt_json(const welm_model *model,
                                        const char *request,
                                        size_t len,
                                        welm_string **prompt,
                                        welm_error **error);

/**
 * The tokens of the text that `welm_model_chat_prompt_json` gives, made as by `welm_model_chat_tokens`.
 *
 * - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the request is kept.
 * - threads: any number at once on one model.
 * - NULL: not allowed for `model`, `request` and `tokens`; allowed for `error`.
 * - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_chat_prompt_json`, and `WELM_TOKENIZER`.
 */
welm_status welm_model_chat_tokens_json(const welm_model *model,
                                        const char *request,
                                        size_t len,
                                        welm_tokens **tokens,
                                        welm_error **error);

/**
 * The model's answer to a conversation, with the model's own chat template. Returns when all `n` sequences of the
 * options have ended.
 *
 * It is what `welm_model_generate` gives for the tokens of `welm_model_chat_tokens` with `add_generation_prompt`. It
 * ends at the model's end tokens; a chat model has one for the end of a turn. With `echo` the text begins with that of
 * `welm_model_chat_prompt`. Special tokens in the text of a message are parsed; see `welm_model_chat_tokens`.
 *
 * - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of messages and
 *   options is kept.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: not allowed for `model` and `generation` or the texts of a message; allowed for `messages` if `n` is 0;
 *   allowed for `options`, for the defaults; allowed for `error`.
 * - encoding: messages and stop strings are UTF-8.
 * - errors: as `welm_model_generate` and `welm_model_chat_prompt`.
 */
welm_status welm_model_chat(const welm_model *model,
                            const welm_message *messages,
                            size_t n,
                            const welm_generate_options *options,
                            welm_generation **generation,
                            welm_error **error);

/**
 * As `welm_model_chat`, for a JSON object as `welm_model_chat_prompt_json` takes it: with tools, documents, and other
 * variables of the template.
 *
 * - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of the request and
 *   options is kept.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: not allowed for `model`, `request` and `generation`; allowed for `options`, for the defaults; allowed
 *   for `error`.
 * - encoding: the request is UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_generate` and `welm_model_chat_prompt_json`.
 */
welm_status welm_model_chat_json(const welm_model *model,
                                 const char *request,
                                 size_t len,
                                 const welm_generate_options *options,
                                 welm_generation **generation,
                                 welm_error **error);

/**
 * As `welm_model_chat`, piece by piece, as `welm_model_stream` gives them.
 *
 * - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of messages and options is
 *   kept. `model` may be freed before the stream.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: not allowed for `model` and `stream` or the texts of a message; allowed for `messages` if `n` is 0;
 *   allowed for `options`, for the defaults; allowed for `error`.
 * - encoding: messages and stop strings are UTF-8.
 * - errors: as `welm_model_chat`; those of the engine come from `welm_stream_next`.
 */
welm_status welm_model_chat_stream(const welm_model *model,
                                   const welm_message *messages,
                                   size_t n,
                                   const welm_generate_options *options,
                                   welm_stream **stream,
                                   welm_error **error);

/**
 * As `welm_model_chat_stream`, for a JSON object as `welm_model_chat_prompt_json` takes it.
 *
 * - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of the request and options
 *   is kept. `model` may be freed before the stream.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: not allowed for `model`, `request` and `stream`; allowed for `options`, for the defaults; allowed for
 *   `error`.
 * - encoding: the request is UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_chat_json`; those of the engine come from `welm_stream_next`.
 */
welm_status welm_model_chat_stream_json(const welm_model *model,
                                        const char *request,
                                        size_t len,
                                        const welm_generate_options *options,
                                        welm_stream **stream,
                                        welm_error **error);

/**
 * Whether the engine still runs: for the liveness probe of a service. It computes nothing, and returns at once.
 *
 * It looks for no faults. A lost device, or a file that was cut short, is noticed by the next request that computes; from
 * then on this returns the error. An engine that has ended does not come back: load the model again, or start the process
 * again.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model; requests do not wait for it.
 * - NULL: not allowed for `model`; allowed for `error`.
 * - errors: that with which the engine ended: `WELM_DEVICE_LOST`, `WELM_INVALID_FILE` for a mapped file that was cut
 *   short, `WELM_ENGINE_STOPPED` after an internal fault; `WELM_FORKED`; the general errors.
 */
welm_status welm_model_check_health(const welm_model *model,
                                    welm_error **error);

/**
 * Counters of the engine, at this moment. Set `stats->struct_size` before.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model; requests do not wait for it.
 * - NULL: not allowed for `model` and `stats`; allowed for `error`.
 * - errors: only the general errors.
 */
welm_status welm_model_stats(const welm_model *model, welm_stats *stats, welm_error **error);

/**
 * The quantile `q` (0 to 1): the upper bound, in seconds, of the bucket in which this share of the observations is
 * reached; 0 if there are none.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one histogram.
 * - NULL: 0 for a NULL `histogram`.
 */
double welm_histogram_quantile_s(const welm_histogram *histogram,
                                 double q);

/**
 * Sets the callback that gets the log, and replaces the previous one; with NULL, the log goes nowhere. When the
 * function returns, the previous callback is not running and is never called again.
 *
 * If the library is linked statically into a Rust program that has set a global `tracing` subscriber, this function
 * fails with `WELM_UNAVAILABLE`, and messages go to that subscriber.
 *
 * - ownership: `data` stays the caller's; it has to live until another callback is set.
 * - threads: any, at any time, but not from inside a callback: that gives `WELM_INVALID_ARGUMENT`.
 * - NULL: allowed for `callback`, `data` and `error`.
 * - errors: `WELM_INVALID_ARGUMENT` if `max_level` is no `welm_log_level`; `WELM_UNAVAILABLE`; the general
 *   errors.
 */
welm_status welm_log_set_callback(int32_t max_level,
                                  welm_log_callback callback,
                                  void *data,
                                  welm_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WELM_H */
