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
 * - Handles are opaque. What a function calls the caller's is freed with the welm_..._free of its type, once; freeing
 *   NULL does nothing. What belongs to a handle is gone when that is freed.
 * - Texts are UTF-8. Where one is taken with a length in bytes, WELM_NUL_TERMINATED may stand for it. A NUL stands
 *   after each text that is returned, but a text may hold NULs of its own. NULL is an empty text of length 0.
 * - Structs that begin with struct_size may grow in later versions: set it, by their init function or by hand, to the
 *   sizeof that your compiler knows. What a newer library adds is then at its default; what an older library does
 *   not know must be 0. Structs that functions return by pointer may grow, too: copy fields, not structs.
 * - Callbacks must not throw, nor longjmp out.
 * - No fault inside the library unwinds into the program or ends it: it is WELM_PANIC.
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
 * Changes whenever a program that was compiled with an older header would no longer run as it did.
 */
#define WELM_ABI_VERSION 1

/**
 * Buckets of a histogram.
 */
#define WELM_HISTOGRAM_BUCKETS 23

/**
 * What a function returns. Those from 16 on are the engine's own errors.
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
   * An argument is NULL that must not be.
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
   * A fault inside the library, caught; the message says which. Please report it.
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
   * A tensor is absent, or has another shape or element type than the configuration asks for.
   */
  WELM_TENSOR = 19,
  /**
   * The tokenizer cannot be built, is absent, or failed on a text.
   */
  WELM_TOKENIZER = 20,
  /**
   * An option is outside its domain.
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
   * The request was turned away because too many are waiting.
   */
  WELM_QUEUE_FULL = 24,
  /**
   * The model, or the answer to a request, does not fit in memory; the message has the numbers.
   */
  WELM_OUT_OF_MEMORY = 25,
  /**
   * The device, instruction set or thread that was asked for is not there.
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
   * The model has no chat template, or it cannot be read, is not valid, or ended with an error of its own.
   */
  WELM_CHAT_TEMPLATE = 31,
  /**
   * The model gave logits that are not finite numbers: its weights, or the device, are at fault. Only this request ends.
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
   * For a reason that has no number of its own yet.
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
   * Faults.
   */
  WELM_LOG_ERROR = 1,
  /**
   * What should be looked at.
   */
  WELM_LOG_WARN = 2,
  /**
   * What happens seldom: a model was loaded, and where it runs.
   */
  WELM_LOG_INFO = 3,
  /**
   * What helps to find a fault.
   */
  WELM_LOG_DEBUG = 4,
  /**
   * Everything.
   */
  WELM_LOG_TRACE = 5,
} welm_log_level;

/**
 * Ends requests from outside: every one whose options held it. Any number of threads may use it at once.
 */
typedef struct welm_cancel_token welm_cancel_token;

/**
 * An error with its message. Functions that can fail take a `welm_error **` last; where that is not NULL, and
 * the status not `WELM_OK`, `WELM_END` or `WELM_PENDING`, a new error is written there, which the caller frees. What it held
 * before is neither looked at nor freed.
 *
 * An error never changes, so that any number of threads may read it at once.
 */
typedef struct welm_error welm_error;

/**
 * The answer to a request. It never changes, so that any number of threads may read it at once; what its functions
 * return lives as long as it does.
 */
typedef struct welm_generation welm_generation;

/**
 * Logits after some tokens of a prompt. They never change, so that any number of threads may read them at once.
 */
typedef struct welm_logits welm_logits;

/**
 * A loaded model. Any number of threads may use one handle at once: their requests are computed together.
 *
 * The engine behind it ends when the last handle and the last stream are freed; freeing a handle while streams of
 * it are open is safe. Only the call that frees a handle must be the last one with it.
 */
typedef struct welm_model welm_model;

/**
 * The scores of several continuations, in their order. They never change, so that any number of threads may read
 * them at once.
 */
typedef struct welm_scores welm_scores;

/**
 * An answer that is under way. One thread at a time may ask for its pieces; any thread may cancel it meanwhile.
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
 * Told while weights are read, on the thread that loads: bytes that are ready, and bytes in all. Returning `false`
 * ends the loading with `WELM_LOAD_CANCELLED`. It must not throw, nor `longjmp` out.
 */
typedef bool (*welm_progress_callback)(void *data, uint64_t done_bytes, uint64_t total_bytes);

/**
 * How a model is loaded. `welm_load_options_init` sets the defaults, which are right for most programs.
 *
 * Texts are UTF-8, NUL-terminated, and need to live only while the function runs that takes them; NULL is their
 * default. So is 0, of the numbers.
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
   * The log says which it is.
   */
  const char *device;
  /**
   * Element type of the weights in memory; auto is never less exact than the file (auto, f32, bf16 or int8;
   * default: auto).
   */
  const char *dtype;
  /**
   * Element type of the cached keys and values; on CUDA it has to be bf16 (f32 or bf16; default: bf16).
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
   * The error is `WELM_INVALID_FILE`, for all requests of the model. For that a handler of SIGBUS is installed, once in
   * a process. Faults outside of welm's maps go to the handler that was there before. It costs nothing until there is a
   * fault. Linux only.
   */
  bool guard_mapped_files;
  /**
   * Whether a model may have tensors that nothing reads, such as heads for other tasks (default: false).
   */
  bool allow_unread_tensors;
  /**
   * Zeros.
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
   * Weights that are read from the mapped file where they lie; the system can drop and reread them.
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
   * Activations, logits and whatever else a step needs.
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
 * What a model is. It belongs to the handle that it came from.
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
   * Width of the feed-forward half.
   */
  size_t hidden_dim;
  /**
   * Most tokens of a sequence that the model was made for; `welm_model_memory` has what this handle allows.
   */
  size_t max_context;
  /**
   * Tokens that end a text, `n_eos` of them.
   */
  const uint32_t *eos_token_ids;
  /**
   * Tokens that end a text.
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
 * A prompt, as text or as tokens; see `welm_prompt_text` and `welm_prompt_tokens`. It is passed by value, and what
 * it points to needs to live only while the function runs that takes it.
 */
typedef struct {
  /**
   * The text, in UTF-8, where `tokens` is NULL.
   */
  const char *text;
  /**
   * The tokens.
   */
  const uint32_t *tokens;
  /**
   * Bytes of the text, or `WELM_NUL_TERMINATED`; number of tokens.
   */
  size_t len;
} welm_prompt;

/**
 * What is added to the logit of one token.
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
 * What it points to needs to live only while the function runs that takes it.
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
   * There are `n_logit_bias` of them. They are added before the penalties; those of a token that is here several times
   * add up.
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
   * There are `n_stop` of them, in UTF-8. One may spell special tokens, which texts leave out: `<|im_end|>` ends a
   * sequence at that token.
   */
  const char *const *stop;
  /**
   * Bytes of each stop string; NULL where all are NUL-terminated.
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
   * It counts where `has_seed` is set.
   */
  uint64_t seed;
  /**
   * How many of the likeliest tokens are reported at each place, with log-probabilities (at most 100; default:
   * none is reported).
   *
   * -1 reports nothing, 0 the log-probability of the chosen token alone.
   */
  int32_t logprobs;
  /**
   * Whether `seed` counts.
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
   * Time after which the request ends with what it has, counted from submission (default: never).
   *
   * In milliseconds; 0 is never.
   */
  uint64_t deadline_ms;
  /**
   * Token that ends the request from another thread (default: none).
   *
   * The request holds a share of it: the token may be freed at once.
   */
  const welm_cancel_token *cancel;
  /**
   * Tokens that end a sequence as the model's own end tokens do (at most 256; default: none).
   *
   * There are `n_stop_token_ids` of them. The sequence ends with `WELM_FINISH_STOP`, with `ignore_eos`, too. They are
   * part of neither text nor tokens.
   */
  const uint32_t *stop_token_ids;
  /**
   * Number of these tokens.
   */
  size_t n_stop_token_ids;
  /**
   * Shares computed beginnings of prompts only with requests of the same salt (1 to 256 bytes; default: shared by
   * all that have none).
   *
   * In UTF-8. A secret for each tenant keeps tenants from finding out each other's prompts by time or by
   * `cached_tokens`.
   */
  const char *cache_salt;
  /**
   * Bytes of the salt, or `WELM_NUL_TERMINATED`, the default.
   */
  size_t cache_salt_len;
} welm_generate_options;

/**
 * One of the likeliest tokens at a place.
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
   * The likeliest tokens at this place, likeliest first; as many as were asked for.
   */
  const welm_alternative *alternatives;
  /**
   * Number of them.
   */
  size_t n_alternatives;
  /**
   * False where none was asked for, and for the first token of an echoed prompt, which nothing precedes.
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
   * Text that follows what came before, in UTF-8, with a NUL after it; may be empty while a character or a stop
   * string is undecided.
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
   * On the last piece of a sequence why it ended; otherwise `WELM_FINISH_NONE`.
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
   * On the last piece: the token that ended the sequence by itself, if `has_end_token`; see `welm_choice`.
   */
  uint32_t end_token;
  /**
   * Whether such a token ended it.
   */
  bool has_end_token;
} welm_piece;

/**
 * Takes the pieces of an answer as they come; returning `false` ends the request. `piece` and what it points to
 * live until the callback returns. It must not throw, nor `longjmp` out.
 */
typedef bool (*welm_piece_callback)(void *data, const welm_piece *piece);

/**
 * One generated sequence.
 */
typedef struct {
  /**
   * The text, in UTF-8, with a NUL after it; with `echo`, after the prompt.
   */
  const char *text;
  /**
   * Bytes of the text.
   */
  size_t text_len;
  /**
   * Its tokens; with `echo`, after the prompt's.
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
   * The token that ended it by itself, if `has_end_token`: an end token of the model, or one of `stop_token_ids`. It is
   * no part of text and tokens.
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
   * The continuation's tokens with theirs.
   */
  const welm_token *tokens;
  /**
   * Number of them.
   */
  size_t n_tokens;
} welm_score;

/**
 * One message of a conversation. What it points to needs to live only while the function runs that takes it.
 */
typedef struct {
  /**
   * Who speaks: "system", "user" or "assistant", and whatever else the template knows; UTF-8, NUL-terminated.
   */
  const char *role;
  /**
   * What is said, in UTF-8.
   */
  const char *content;
  /**
   * Bytes of it, or `WELM_NUL_TERMINATED`.
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
   * Requests taken into the queue.
   */
  uint64_t requests;
  /**
   * Requests turned away because the queue was full.
   */
  uint64_t rejected;
  /**
   * Requests that are not finished.
   */
  uint64_t open;
  /**
   * Sequences that wait for their first admission.
   */
  size_t queue_depth;
  /**
   * Sequences in the current step.
   */
  size_t running;
  /**
   * Sequences that gave their memory back to others and were computed again.
   */
  uint64_t preemptions;
  /**
   * Steps of the engine.
   */
  uint64_t steps;
  /**
   * Prompt tokens computed or found.
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
   * Blocks that sequences hold.
   */
  size_t blocks_used;
  /**
   * Blocks that none holds but a prefix may hit.
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
 * Takes a message: where it comes from, and what it says, with its values after it, `model loaded path=...`. Texts
 * are UTF-8, NUL-terminated, and live until the callback returns. It must not throw, nor `longjmp` out.
 *
 * It is called on the thread that logs, also on several at once. What is logged while it runs, on its thread, is
 * dropped, and so is what models that it loads log as long as they live. So it may call other functions of this library,
 * except `welm_log_set_callback`. That thread may be the model's own, when a step has failed or the model ends: what is
 * logged as a warning or about an end must not be answered by a request to the same model.
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
 * The `WELM_ABI_VERSION` of the library that runs; a program that loads it by itself compares the two.
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
 * What happened, in one line: which file, option or argument, what was expected and what came.
 *
 * - ownership: belongs to `error`, and lives as long.
 * - threads: any number at once on one error.
 * - NULL: an empty text for a NULL `error`; never returns NULL.
 * - encoding: UTF-8, NUL-terminated.
 */
const char *welm_error_message(const welm_error *error);

/**
 * Frees an error.
 *
 * - ownership: takes `error`; its message goes with it.
 * - threads: once, when nobody reads it any more.
 * - NULL: does nothing.
 */
void welm_error_free(welm_error *error);

/**
 * A status as the header spells it: `WELM_QUEUE_FULL`; `unknown status` for any other number.
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
 * - ownership: belongs to `string`, and lives as long.
 * - threads: any number at once on one string.
 * - NULL: returned for a NULL `string`, with the length 0. `len` may be NULL.
 * - encoding: UTF-8; `*len` bytes, and a NUL after them. A text may hold NULs of its own.
 */
const char *welm_string_data(const welm_string *string, size_t *len);

/**
 * Frees a string.
 *
 * - ownership: takes `string`; its text goes with it.
 * - threads: once, when nobody reads it any more.
 * - NULL: does nothing.
 */
void welm_string_free(welm_string *string);

/**
 * Sets every option to its default, and `struct_size` to the size given: `sizeof(welm_load_options)`.
 *
 * - ownership: nothing to free.
 * - threads: any, each with a struct of its own.
 * - NULL: `options` must not be.
 * - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, and nothing is written.
 */
welm_status welm_load_options_init(welm_load_options *options, size_t struct_size);

/**
 * Loads a Hugging Face folder, an int8 folder of `welm_quantize`, or a GGUF file, and starts its engine.
 *
 * Files are mapped: they must not be changed while the model lives (`guard_mapped_files`). A folder without tokenizer gives a model that
 * takes and returns tokens only.
 *
 * - ownership: `*model` is the caller's, to be freed with `welm_model_free`. Nothing of `options` is kept.
 * - threads: any, also several at once.
 * - NULL: `path` and `model` must not be; `options` may be, for the defaults; `error` may be.
 * - encoding: `path` is NUL-terminated; on Unix any bytes that name a file, elsewhere UTF-8.
 * - errors: `WELM_IO`, `WELM_INVALID_FILE`, `WELM_CONFIG`, `WELM_TENSOR`, `WELM_TOKENIZER` for files that are
 *   absent, damaged or not supported; `WELM_OUT_OF_MEMORY` before anything is read, if it cannot fit;
 *   `WELM_INVALID_OPTION`, `WELM_UNAVAILABLE`, `WELM_LOAD_CANCELLED`; those of any function: `WELM_NULL_POINTER`,
 *   `WELM_INVALID_ARGUMENT`, `WELM_INVALID_UTF8`, `WELM_PANIC`.
 */
welm_status welm_model_load(const char *path,
                            const welm_load_options *options,
                            welm_model **model,
                            welm_error **error);

/**
 * Memory that `welm_model_load` with these options would take, from the headers of the files: the device's with
 * the device "cuda", which need not be there, otherwise the CPU's.
 *
 * - ownership: nothing to free.
 * - threads: any, also several at once.
 * - NULL: `path` and `estimate` must not be; `options` may be, for the defaults; `error` may be.
 * - encoding: `path` as for `welm_model_load`.
 * - errors: as `welm_model_load`, without the ones about memory.
 */
welm_status welm_model_estimate(const char *path,
                                const welm_load_options *options,
                                welm_estimate *estimate,
                                welm_error **error);

/**
 * Writes an int8 folder from the Hugging Face folder `from`. `to` is made, or is an empty folder, or one that this
 * function wrote before, whose place the new one takes in one step (Linux): whoever loads it finds the old model or the
 * new one, whole. `progress` is called after each matrix and may stop it; nothing unfinished is left then.
 *
 * - ownership: nothing to free.
 * - threads: any, also several at once.
 * - NULL: `from` and `to` must not be; `progress`, its `data` and `error` may be.
 * - encoding: paths as for `welm_model_load`.
 * - errors: those of files of `welm_model_load`; `WELM_IO` if `to` cannot be written; `WELM_INVALID_OPTION` if it is
 *   an empty text, or holds what is not to be replaced; `WELM_LOAD_CANCELLED`.
 */
welm_status welm_quantize(const char *from,
                          const char *to,
                          welm_progress_callback progress,
                          void *data,
                          welm_error **error);

/**
 * Another handle of the same engine, for a part of a program that is to free its own. Costs nothing.
 *
 * - ownership: the result is the caller's, to be freed with `welm_model_free`.
 * - threads: any number at once on one model.
 * - NULL: returned for a NULL `model`.
 */
welm_model *welm_model_clone(const welm_model *model);

/**
 * Frees a handle. With the last one, and when no stream is open, the engine ends and its memory is given back.
 *
 * - ownership: takes `model`; streams, answers and other handles live on.
 * - threads: once, when no other call with this handle is under way.
 * - NULL: does nothing.
 */
void welm_model_free(welm_model *model);

/**
 * Shape and settings of a model, and where it runs.
 *
 * - ownership: belongs to `model`, and lives as long.
 * - threads: any number at once on one model.
 * - NULL: returned for a NULL `model`.
 */
const welm_config *welm_model_config(const welm_model *model);

/**
 * The memory that a model takes. Set `memory->struct_size` before.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: `model` and `memory` must not be; `error` may be.
 * - errors: those of any function.
 */
welm_status welm_model_memory(const welm_model *model, welm_estimate *memory, welm_error **error);

/**
 * A prompt of text. The model tokenizes it, and puts the token that starts a text in front where its tokenizer does.
 *
 * - ownership: only points to `text`.
 * - threads: any, at any time.
 * - NULL: `text` may be, if `len` is 0.
 * - encoding: UTF-8, of `len` bytes or, with `WELM_NUL_TERMINATED`, up to its NUL; looked at by the function that
 *   takes the prompt.
 */
welm_prompt welm_prompt_text(const char *text,
                             size_t len);

/**
 * A prompt of tokens; nothing is added to them.
 *
 * - ownership: only points to `tokens`.
 * - threads: any, at any time.
 * - NULL: `tokens` may be, if `n_tokens` is 0.
 */
welm_prompt welm_prompt_tokens(const uint32_t *tokens, size_t n_tokens);

/**
 * Sets every option to its default, and `struct_size` to the size given: `sizeof(welm_generate_options)`.
 *
 * - ownership: nothing to free.
 * - threads: any, each with a struct of its own.
 * - NULL: `options` must not be.
 * - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, and nothing is written.
 */
welm_status welm_generate_options_init(welm_generate_options *options, size_t struct_size);

/**
 * A token that is not cancelled.
 *
 * - ownership: the result is the caller's, to be freed with `welm_cancel_token_free`.
 * - threads: any, at any time.
 * - NULL: returned only after a fault inside the library.
 */
welm_cancel_token *welm_cancel_token_new(void);

/**
 * Asks every request that holds this token to stop, within one step. It stays cancelled.
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
 * Frees a token. Requests that hold it run on.
 *
 * - ownership: takes `token`.
 * - threads: once, when no other call with this token is under way.
 * - NULL: does nothing.
 */
void welm_cancel_token_free(welm_cancel_token *token);

/**
 * Continues a prompt; returns when all `n` sequences have ended.
 *
 * Cancelling and deadlines are no errors: the sequences end with that reason and what they have.
 *
 * - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of prompt and
 *   options is kept.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: `model` and `generation` must not be; `options` may be, for the defaults; `error` may be.
 * - encoding: of prompt and stop strings UTF-8.
 * - errors: `WELM_INVALID_OPTION`, `WELM_TOO_LONG`, `WELM_EMPTY_PROMPT`, `WELM_TOKENIZER`; `WELM_QUEUE_FULL` if
 *   too many wait; `WELM_NOT_FINITE`, `WELM_DEVICE`, `WELM_DEVICE_LOST`, `WELM_ENGINE_STOPPED` for faults; those of
 *   any function: `WELM_NULL_POINTER`, `WELM_INVALID_ARGUMENT`, `WELM_INVALID_UTF8`, `WELM_PANIC`.
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
 * - NULL: `model` and `callback` must not be; `options`, `data` and `error` may be.
 * - encoding: of prompt and stop strings UTF-8.
 * - errors: as `welm_model_generate`; pieces may have come before.
 */
welm_status welm_model_generate_with(const welm_model *model,
                                     welm_prompt prompt,
                                     const welm_generate_options *options,
                                     welm_piece_callback callback,
                                     void *data,
                                     welm_error **error);

/**
 * How many sequences an answer has: the `n` of its options.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one answer.
 * - NULL: 0 for a NULL `generation`.
 */
size_t welm_generation_n_choices(const welm_generation *generation);

/**
 * One of the sequences, from 0.
 *
 * - ownership: belongs to `generation`, and lives as long.
 * - threads: any number at once on one answer.
 * - NULL: returned for a NULL `generation`, and where there is no such sequence.
 * - encoding: of its text UTF-8; `text_len` bytes, and a NUL after them.
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
 * - ownership: belongs to `generation`, and lives as long.
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
 * - ownership: takes `generation`; all that its functions returned goes with it.
 * - threads: once, when nobody reads it any more.
 * - NULL: does nothing.
 */
void welm_generation_free(welm_generation *generation);

/**
 * As `welm_model_generate`, piece by piece, at the caller's pace: what is not asked for yet waits in memory.
 *
 * - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of prompt and options is
 *   kept. `model` may be freed while the stream lives.
 * - threads: any number at once on one model.
 * - NULL: `model` and `stream` must not be; `options` may be, for the defaults; `error` may be.
 * - encoding: of prompt and stop strings UTF-8.
 * - errors: as `welm_model_generate`; those of the engine come from `welm_stream_next`.
 */
welm_status welm_model_stream(const welm_model *model,
                              welm_prompt prompt,
                              const welm_generate_options *options,
                              welm_stream **stream,
                              welm_error **error);

/**
 * Waits for the next piece. `WELM_END` says that all sequences have ended, with nothing written and no error.
 *
 * The texts of one sequence's pieces make its final text; none ends inside a character, and none shows a stop
 * string or its beginning.
 *
 * - ownership: `*piece` belongs to `stream`, and lives until the next piece or `welm_stream_free`.
 * - threads: one at a time on one stream; a second one is refused with `WELM_INVALID_ARGUMENT`.
 * - NULL: `stream` and `piece` must not be; `error` may be.
 * - encoding: of its text UTF-8; `text_len` bytes, and a NUL after them.
 * - errors: `WELM_DEVICE`, `WELM_DEVICE_LOST`, `WELM_ENGINE_STOPPED` for faults, after which the stream has ended;
 *   those of any function.
 */
welm_status welm_stream_next(const welm_stream *stream,
                             const welm_piece **piece,
                             welm_error **error);

/**
 * As `welm_stream_next`, but waits no longer than `timeout_ms` milliseconds: `WELM_PENDING` says that no piece came,
 * with nothing written and no error. So one thread can look at something else meanwhile: whether a client has hung
 * up, or at another stream.
 *
 * - ownership: `*piece` belongs to `stream`, as that of `welm_stream_next`.
 * - threads: one at a time on one stream, of both functions together.
 * - NULL: `stream` and `piece` must not be; `error` may be.
 * - encoding: of its text UTF-8; `text_len` bytes, and a NUL after them.
 * - errors: as `welm_stream_next`.
 */
welm_status welm_stream_next_timeout(const welm_stream *stream,
                                     uint64_t timeout_ms,
                                     const welm_piece **piece,
                                     welm_error **error);

/**
 * Ends the request; pieces that are under way still come, then the last ones, with `WELM_FINISH_CANCELLED`.
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
 * Frees a stream, and ends its request if that is under way.
 *
 * - ownership: takes `stream`; its last piece goes with it.
 * - threads: once, when no other call with this stream is under way.
 * - NULL: does nothing.
 */
void welm_stream_free(welm_stream *stream);

/**
 * Log-likelihoods of given continuations of a prompt.
 *
 * A continuation's tokens are those of prompt and continuation together, after the longest beginning that they
 * share with the prompt's own, and each of them has a probability. If nothing is shared, since the prompt is empty or
 * the two meet inside its only token, the context is the token that starts a text, or else the first end token. An empty
 * continuation has no tokens, and the logarithm 0 of a certainty. Memory is bounded however many continuations there
 * are.
 *
 * - ownership: `*scores` is the caller's, to be freed with `welm_scores_free`. Nothing of the texts is kept.
 * - threads: any number at once on one model.
 * - NULL: `model` and `scores` must not be; `prompt` may be, if `prompt_len` is 0, `continuations`, if `n` is 0;
 *   `lens` may be, where all continuations are NUL-terminated; `error` may be.
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
 * Sets every option to its default, and `struct_size` to the size given: `sizeof(welm_score_options)`.
 *
 * - ownership: nothing to free.
 * - threads: any, each with a struct of its own.
 * - NULL: `options` must not be.
 * - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, and nothing is written.
 */
welm_status welm_score_options_init(welm_score_options *options, size_t struct_size);

/**
 * Log-likelihoods of many continuations, each after its own prompt: the same bits as `welm_model_score` gives for each.
 *
 * Pairs are computed together, some dozens at a time. Equal beginnings are computed once if the prefix cache is on; give
 * pairs of the same prompt one after another. Tokens are taken as they are: where one of the two is tokens, nothing is
 * merged where they meet. Memory is bounded however many pairs there are.
 *
 * - ownership: `*scores` is the caller's, to be freed with `welm_scores_free`. Nothing of prompts, continuations and
 *   options is kept.
 * - threads: any number at once on one model.
 * - NULL: `model` and `scores` must not be; `prompts` and `continuations` may be, if `n` is 0; `options` may be, for the
 *   defaults; `error` may be.
 * - encoding: of texts UTF-8.
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
 * The score of a continuation, from 0.
 *
 * - ownership: belongs to `scores`, and lives as long.
 * - threads: any number at once on the same scores.
 * - NULL: returned for NULL `scores`, and where there is no such continuation.
 */
const welm_score *welm_scores_get(const welm_scores *scores, size_t index);

/**
 * Frees scores.
 *
 * - ownership: takes `scores`; all that its functions returned goes with it.
 * - threads: once, when nobody reads them any more.
 * - NULL: does nothing.
 */
void welm_scores_free(welm_scores *scores);

/**
 * Logits after each token of a prompt from position `from` on. For measuring; a caller bounds the memory by the
 * positions it asks for.
 *
 * - ownership: `*logits` is the caller's, to be freed with `welm_logits_free`. Nothing of the prompt is kept.
 * - threads: any number at once on one model.
 * - NULL: `model` and `logits` must not be; `error` may be.
 * - encoding: of the prompt UTF-8.
 * - errors: as `welm_model_generate`; `WELM_INVALID_OPTION` if `from` is after the prompt.
 */
welm_status welm_model_logits(const welm_model *model,
                              welm_prompt prompt,
                              size_t from,
                              welm_logits **logits,
                              welm_error **error);

/**
 * The values, one row after another: `*rows`, one for each token, of `*cols`, the model's `vocab_size`.
 *
 * - ownership: belongs to `logits`, and lives as long.
 * - threads: any number at once on the same logits.
 * - NULL: returned for NULL `logits`, with 0 rows and columns. `rows` and `cols` may be.
 */
const float *welm_logits_data(const welm_logits *logits, size_t *rows, size_t *cols);

/**
 * Frees logits.
 *
 * - ownership: takes `logits`; their values go with them.
 * - threads: once, when nobody reads them any more.
 * - NULL: does nothing.
 */
void welm_logits_free(welm_logits *logits);

/**
 * The tokens of a text, without any that would be added in front of a prompt. With `parse_special`, special tokens
 * that are written in the text, `<|endoftext|>`, are special; otherwise they are text.
 *
 * - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the text is kept.
 * - threads: any number at once on one model.
 * - NULL: `model` and `tokens` must not be; `text` may be, if `len` is 0; `error` may be.
 * - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: `WELM_TOKENIZER` if the model has no tokenizer, or that fails; those of any function.
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
 * - ownership: belongs to `tokens`, and lives as long.
 * - threads: any number at once on the same tokens.
 * - NULL: returned for NULL `tokens`, with the length 0. `len` may be NULL.
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
 * The text of tokens; bytes that are no UTF-8 become U+FFFD, special tokens nothing. Empty for a model without
 * tokenizer.
 *
 * - ownership: `*text` is the caller's, to be freed with `welm_string_free`. Nothing of the tokens is kept.
 * - threads: any number at once on one model.
 * - NULL: `model` and `text` must not be; `tokens` may be, if `n_tokens` is 0; `error` may be.
 * - encoding: of the text UTF-8.
 * - errors: those of any function.
 */
welm_status welm_model_detokenize(const welm_model *model,
                                  const uint32_t *tokens,
                                  size_t n_tokens,
                                  welm_string **text,
                                  welm_error **error);

/**
 * The bytes that a token stands for, `*len` of them; none for a special one, or one that there is not.
 *
 * - ownership: belongs to `model`, and lives as long.
 * - threads: any number at once on one model.
 * - NULL: returned for a NULL `model`, with the length 0. `len` may be NULL.
 * - encoding: any bytes, perhaps a part of a character; no NUL after them.
 */
const uint8_t *welm_model_token_bytes(const welm_model *model, uint32_t token, size_t *len);

/**
 * The id of a token as the vocabulary spells it, special ones included.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: `model` and `id` must not be; `token` may be, if `len` is 0; `error` may be.
 * - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
 * - errors: `WELM_NOT_FOUND` if there is no such token; those of any function.
 */
welm_status welm_model_token_id(const welm_model *model,
                                const char *token,
                                size_t len,
                                uint32_t *id,
                                welm_error **error);

/**
 * Whether a token is a control token, which is no part of a text.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: `false` for a NULL `model`.
 */
bool welm_model_is_special(const welm_model *model, uint32_t token);

/**
 * Whether a model comes with a chat template. One that is not valid shows only when it is used.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model.
 * - NULL: `false` for a NULL `model`.
 */
bool welm_model_has_chat_template(const welm_model *model);

/**
 * The text of a conversation, by the model's own template. With `add_generation_prompt` it ends where the
 * assistant's answer begins.
 *
 * The template is a program of the model's author. It runs with bounds on steps, memory and depth, and sees nothing
 * but the messages, the special tokens and the time.
 *
 * - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the messages is kept.
 * - threads: any number at once on one model.
 * - NULL: `model` and `prompt` must not be, nor the texts of a message; `messages` may be, if `n` is 0; `error` may
 *   be.
 * - encoding: UTF-8.
 * - errors: `WELM_CHAT_TEMPLATE` if the model has none, or it fails; `WELM_IO`, `WELM_INVALID_FILE` if its file cannot
 *   be read; `WELM_INVALID_OPTION` without a message; those of any function.
 */
welm_status welm_model_chat_prompt(const welm_model *model,
                                   const welm_message *messages,
                                   size_t n,
                                   bool add_generation_prompt,
                                   welm_string **prompt,
                                   welm_error **error);

/**
 * The tokens of what `welm_model_chat_prompt` gives, to be continued by way of `welm_prompt_tokens`: special tokens
 * are parsed, and none is put in front, since the template names the one that starts a text.
 *
 * Special tokens that are written in a message, such as `<|im_end|>`, are parsed too: who may write a message can
 * end it and begin another one in any role. Where messages are not trusted, look for such texts before.
 *
 * - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the messages is kept.
 * - threads: any number at once on one model.
 * - NULL: `model` and `tokens` must not be, nor the texts of a message; `messages` may be, if `n` is 0; `error` may
 *   be.
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
 * As `welm_model_chat_prompt`, of a JSON object: messages with all the keys that a template may ask for, and what
 * else transformers' `apply_chat_template` takes.
 *
 * ```json
 * {"messages": [{"role": "user", "content": "Hello"},
 *               {"role": "assistant", "content": null, "tool_calls": [{"type": "function", ...}]}],
 *  "tools": [{"type": "function", ...}], "enable_thinking": false}
 * ```
 *
 * - `messages`: objects with any keys; those that are null are as if they were not there.
 * - `add_generation_prompt`: `true` unless it is given, or a message is to be continued.
 * - `continue_final_message`: `true`, or the key of the last message that the model is to go on with.
 * - `tools`, `documents`: lists of objects; templates see `none` without them. With tools, the model's template named
 *   `tool_use` is taken if it has one.
 * - `chat_template`: the name of one of several templates that the model has, or the source of another one.
 * - All other keys are variables of the template.
 *
 * - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the request is kept.
 * - threads: any number at once on one model.
 * - NULL: `model`, `request` and `prompt` must not be; `error` may be.
 * - encoding: UTF-8; `len` bytes, or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_chat_prompt`; `WELM_INVALID_OPTION` for what is no JSON, or has a wrong value, which the
 *   message names.
 */
welm_status welm_model_chat_prompt_json(const welm_model *model,
                                        const char *request,
                                        size_t len,
                                        welm_string **prompt,
                                        welm_error **error);

/**
 * The tokens of what `welm_model_chat_prompt_json` gives, as `welm_model_chat_tokens` makes them.
 *
 * - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the request is kept.
 * - threads: any number at once on one model.
 * - NULL: `model`, `request` and `tokens` must not be; `error` may be.
 * - encoding: UTF-8; `len` bytes, or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_chat_prompt_json`, and `WELM_TOKENIZER`.
 */
welm_status welm_model_chat_tokens_json(const welm_model *model,
                                        const char *request,
                                        size_t len,
                                        welm_tokens **tokens,
                                        welm_error **error);

/**
 * The model's answer to a conversation, by its own chat template; returns when all `n` sequences of the options have
 * ended.
 *
 * It is what `welm_model_generate` gives for the tokens of `welm_model_chat_tokens`, with the beginning of the
 * answer, and ends at the model's end tokens, of which a chat model has one for the end of a turn. With `echo` the
 * text begins with that of `welm_model_chat_prompt`. Special tokens that are written in a message are parsed; see
 * `welm_model_chat_tokens`.
 *
 * - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of messages and
 *   options is kept.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: `model` and `generation` must not be, nor the texts of a message; `messages` may be, if `n` is 0;
 *   `options` may be, for the defaults; `error` may be.
 * - encoding: of messages and stop strings UTF-8.
 * - errors: as `welm_model_generate` and `welm_model_chat_prompt`.
 */
welm_status welm_model_chat(const welm_model *model,
                            const welm_message *messages,
                            size_t n,
                            const welm_generate_options *options,
                            welm_generation **generation,
                            welm_error **error);

/**
 * As `welm_model_chat`, of a JSON object as for `welm_model_chat_prompt_json`: with tools, documents, and what else
 * templates ask for.
 *
 * - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of the request and
 *   options is kept.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: `model`, `request` and `generation` must not be; `options` may be, for the defaults; `error` may be.
 * - encoding: UTF-8; of the request `len` bytes, or `WELM_NUL_TERMINATED`.
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
 *   kept. `model` may be freed while the stream lives.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: `model` and `stream` must not be, nor the texts of a message; `messages` may be, if `n` is 0;
 *   `options` may be, for the defaults; `error` may be.
 * - encoding: of messages and stop strings UTF-8.
 * - errors: as `welm_model_chat`; those of the engine come from `welm_stream_next`.
 */
welm_status welm_model_chat_stream(const welm_model *model,
                                   const welm_message *messages,
                                   size_t n,
                                   const welm_generate_options *options,
                                   welm_stream **stream,
                                   welm_error **error);

/**
 * As `welm_model_chat_stream`, of a JSON object as for `welm_model_chat_prompt_json`.
 *
 * - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of the request and options
 *   is kept. `model` may be freed while the stream lives.
 * - threads: any number at once on one model; their requests are computed together.
 * - NULL: `model`, `request` and `stream` must not be; `options` may be, for the defaults; `error` may be.
 * - encoding: UTF-8; of the request `len` bytes, or `WELM_NUL_TERMINATED`.
 * - errors: as `welm_model_chat_json`; those of the engine come from `welm_stream_next`.
 */
welm_status welm_model_chat_stream_json(const welm_model *model,
                                        const char *request,
                                        size_t len,
                                        const welm_generate_options *options,
                                        welm_stream **stream,
                                        welm_error **error);

/**
 * Counters of the engine, at this moment. Set `stats->struct_size` before.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one model; requests do not wait for it.
 * - NULL: `model` and `stats` must not be; `error` may be.
 * - errors: those of any function.
 */
welm_status welm_model_stats(const welm_model *model, welm_stats *stats, welm_error **error);

/**
 * Upper bound, in seconds, of the bucket in which the share `q` (0 to 1) of the observations is reached; 0 when
 * there are none.
 *
 * - ownership: nothing to free.
 * - threads: any number at once on one histogram.
 * - NULL: 0 for a NULL `histogram`.
 */
double welm_histogram_quantile_s(const welm_histogram *histogram,
                                 double q);

/**
 * Sets the one callback that the log goes to, in place of the one before; with NULL, the log goes nowhere. When the
 * function returns, the callback before is not running and is never called again.
 *
 * A library that is linked statically into a Rust program that has set a global `tracing` subscriber cannot take its
 * place: that is `WELM_UNAVAILABLE`, and messages go where those of the program go.
 *
 * - ownership: `data` stays the caller's; it has to live until another callback is set.
 * - threads: any, at any time, but not from inside a callback, which is `WELM_INVALID_ARGUMENT`.
 * - NULL: `callback`, `data` and `error` may be.
 * - errors: `WELM_INVALID_ARGUMENT` if `max_level` is no `welm_log_level`; `WELM_UNAVAILABLE`; those of any
 *   function.
 */
welm_status welm_log_set_callback(int32_t max_level,
                                  welm_log_callback callback,
                                  void *data,
                                  welm_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WELM_H */
