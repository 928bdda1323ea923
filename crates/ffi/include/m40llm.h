/*
 * libm40llm: the engine of m40d for programs in C, and in all languages that call C.
 *
 * - A function that can fail returns a status, and says more in m40llm_last_error(), for the thread that
 *   called it. What it hands out it writes through its last pointers, and only when it succeeds.
 * - Structs begin with their size, which an _init function sets: programs that were compiled for an older,
 *   shorter version of a struct keep working.
 * - Handles are made by _new or _load and freed by _free, which takes NULL too. A model may be freed while
 *   sessions of it live; memory goes with the last of them.
 * - Handles may be used by several threads at a time; a session generates one answer at a time.
 *
 * Link with -lm40llm. A libm40llm of another M40LLM_ABI_VERSION does not fit this header.
 */


#ifndef M40LLM_H
#define M40LLM_H

/* Made of crates/ffi/src by `make reference`: change that. */

#include <stddef.h>
#include <stdint.h>

// Changes when a program that was compiled before would no longer work.
#define M40LLM_ABI_VERSION 1

// Models run on the CPU.
#define M40LLM_DEVICE_CPU 0

// Models run on the first NVIDIA GPU. The CPU never stands in for it.
#define M40LLM_DEVICE_GPU 1

// Keys and values are kept as 16-bit floats.
#define M40LLM_KV_F16 0

// Keys and values are kept as 8-bit numbers: little more than half of the memory, answers differ a little.
#define M40LLM_KV_INT8 1

// A text's vector is made as the model's file says, else of the mean.
#define M40LLM_POOLING_DEFAULT 0

// Of the mean of all tokens.
#define M40LLM_POOLING_MEAN 1

// Of the first token.
#define M40LLM_POOLING_CLS 2

// Of the last token.
#define M40LLM_POOLING_LAST 3

// The model ended its answer, or a stop text came.
#define M40LLM_FINISH_STOP 0

// There were as many tokens as were asked for, or as the context holds.
#define M40LLM_FINISH_LENGTH 1

// It was ended by `m40llm_cancel_now` or by what `on_text` returned.
#define M40LLM_FINISH_CANCELLED 2

// What came of a call. Numbers are never given another meaning.
typedef enum {
  // It was done.
  M40LLM_STATUS_OK = 0,
  // An argument is NULL that must not be, no UTF-8, out of its range, or does not fit the model.
  M40LLM_STATUS_INVALID_ARGUMENT = 1,
  // There is no such file.
  M40LLM_STATUS_NOT_FOUND = 2,
  // The file is no model that this version runs, or the model cannot do what is asked.
  M40LLM_STATUS_UNSUPPORTED = 3,
  // There is not enough memory for it now.
  M40LLM_STATUS_NO_ROOM = 4,
  // The GPU, its driver or its kernels cannot be used.
  M40LLM_STATUS_GPU = 5,
  // The buffer is too small; what it takes was written.
  M40LLM_STATUS_BUFFER_TOO_SMALL = 6,
  // The session is generating already.
  M40LLM_STATUS_BUSY = 7,
  // It was cancelled before there was a result.
  M40LLM_STATUS_CANCELLED = 8,
  // A file cannot be read.
  M40LLM_STATUS_IO = 9,
  // A bug of the library.
  M40LLM_STATUS_INTERNAL = 10,
} m40llm_status;

// Ends a generation from another thread. It is for one: it stays as it is.
typedef struct m40llm_cancel m40llm_cancel;

// Loads models.
typedef struct m40llm_engine m40llm_engine;

// A loaded model.
typedef struct m40llm_model m40llm_model;

// One conversation with a model.
typedef struct m40llm_session m40llm_session;

// What computes, and what it may have.
typedef struct {
  // sizeof(m40llm_engine_options).
  size_t size;
  // M40LLM_DEVICE_*; the CPU by default.
  uint32_t device;
  // CPU threads; 0, the default, for as many as the process may use.
  uint32_t threads;
  // Bytes of the GPU's memory to take for models; 0, the default, for all that is free but 512 MiB.
  uint64_t vram_bytes;
} m40llm_engine_options;

// How to load a model.
typedef struct {
  // sizeof(m40llm_model_options).
  size_t size;
  // Tokens of context; 0, the default, for the trained context, at most 8192.
  uint32_t context;
  // M40LLM_KV_*; 16-bit floats by default.
  uint32_t kv_type;
} m40llm_model_options;

// What is known of a model.
typedef struct {
  // sizeof(m40llm_model_info), set by the caller.
  size_t size;
  // Weights, counted one by one.
  uint64_t parameters;
  // Bytes of weights in the file.
  uint64_t weight_bytes;
  // Bytes of KV cache per token of context.
  uint64_t kv_bytes_per_token;
  // Tokens of context served.
  uint32_t context;
  // Tokens of context trained for.
  uint32_t context_trained;
  // Transformer blocks.
  uint32_t layers;
  // Tokens of the vocabulary.
  uint32_t vocab;
  // Floats of a text's vector.
  uint32_t embedding;
  // 1 if it generates text, 0 if it only makes vectors.
  uint32_t generates;
} m40llm_model_info;

// What to generate and when to stop.
typedef struct {
  // sizeof(m40llm_generate_params).
  size_t size;
  // Most tokens to generate; 0, the default, for as many as the context holds.
  uint32_t max_tokens;
  // 0 takes the likeliest token. Default: 0.8.
  float temperature;
  // Keep so many of the likeliest tokens; 0 keeps all. Default: 40.
  uint32_t top_k;
  // Keep the likeliest tokens until their probability reaches this. Default: 0.95.
  float top_p;
  // Keep tokens at least this times as likely as the likeliest. Default: 0.05.
  float min_p;
  // Logits of tokens seen lately are divided by this if positive, else multiplied. Default: 1.
  float repeat_penalty;
  // Taken once from the logit of each token seen lately. Default: 0.
  float presence_penalty;
  // Taken from a token's logit for each time it was seen lately. Default: 0.
  float frequency_penalty;
  // Fixes the draws where `seeded` is 1.
  uint64_t seed;
  // Whether `seed` is used. Default: 0, a new seed each time.
  uint32_t seeded;
  // Go on when the model ends its answer, as benchmarks do. Default: 0.
  uint32_t ignore_eos;
  // `stop_count` texts that end the answer and are not part of it.
  const char *const *stop;
  // How many. Default: 0.
  size_t stop_count;
  // A JSON schema that the answer has to meet. Default: NULL, any text.
  const char *json_schema;
} m40llm_generate_params;

// How a generation went.
typedef struct {
  // sizeof(m40llm_completion), set by the caller.
  size_t size;
  // M40LLM_FINISH_*.
  uint32_t finish;
  // Tokens of the prompt.
  uint32_t prompt_tokens;
  // Those of them that were not computed, as the session or another one had them.
  uint32_t cached_tokens;
  // Tokens generated.
  uint32_t completion_tokens;
  // From the start to the first token, seconds.
  double prompt_seconds;
  // From the first token to the last, seconds.
  double decode_seconds;
} m40llm_completion;

// Takes a piece of an answer: `bytes` bytes of whole UTF-8 characters without a NUL, and what was given as
// `user`. The answer ends if it returns 0. It is called by the thread that generates.
typedef uint32_t (*m40llm_on_text)(void *user, const char *text, size_t bytes);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the interface: `M40LLM_ABI_VERSION` of the library, to be compared with that of the header.
uint32_t m40llm_abi_version(void);

// Copies the version of the library, and of its GPU kernels, to `buffer` of `capacity` bytes, with a NUL;
// its end is left out if it does not fit. Returns its length in bytes without the NUL.
size_t m40llm_version(char *buffer,
                      size_t capacity);

// Copies why the last call of this thread failed that did, in the same way: what happened and what to do,
// for people.
size_t m40llm_last_error(char *buffer,
                         size_t capacity);

// Fills in the defaults.
void m40llm_engine_options_init(m40llm_engine_options *options);

// Makes an engine. A GPU is opened and its memory taken here. `options` may be NULL for the defaults.
m40llm_status m40llm_engine_new(const m40llm_engine_options *options,
                                m40llm_engine **engine);

// Frees an engine. Models that it loaded stay.
void m40llm_engine_free(m40llm_engine *engine);

// Fills in the defaults.
void m40llm_model_options_init(m40llm_model_options *options);

// Loads the GGUF file at `path`; of a split model any of its files. `options` may be NULL for the defaults.
// The file must not be changed while the model is loaded.
m40llm_status m40llm_model_load(const m40llm_engine *engine,
                                const char *path,
                                const m40llm_model_options *options,
                                m40llm_model **model);

// Frees a model.
void m40llm_model_free(m40llm_model *model);

// Fills in the defaults: its size, and nothing known.
void m40llm_model_info_init(m40llm_model_info *info);

// Says what is known of a model. `info->size` is set before.
m40llm_status m40llm_model_describe(const m40llm_model *model, m40llm_model_info *info);

// Writes a conversation as the model's chat template has it, ready for its answer. `messages` is a JSON
// array of `{"role": ..., "content": ...}`. `prompt` has room for `capacity` bytes; `bytes` is how many
// there are, without a NUL: `M40LLM_STATUS_BUFFER_TOO_SMALL` if they do not fit.
m40llm_status m40llm_model_chat(const m40llm_model *model,
                                const char *messages,
                                char *prompt,
                                size_t capacity,
                                size_t *bytes);

// Makes tokens of `bytes` bytes of UTF-8 for a prompt: as they are written in it, tokens that control the
// model included, and what begins a text before them unless it is there. `tokens` has room for `capacity`;
// `count` is how many there are: `M40LLM_STATUS_BUFFER_TOO_SMALL` if they do not fit.
m40llm_status m40llm_model_tokenize_prompt(const m40llm_model *model,
                                           const char *prompt,
                                           size_t bytes,
                                           uint32_t *tokens,
                                           size_t capacity,
                                           size_t *count);

// Makes tokens of text that somebody wrote, for a vector: no token is read from it, and those that mark its
// beginning and end are added.
m40llm_status m40llm_model_tokenize_text(const m40llm_model *model,
                                         const char *text,
                                         size_t bytes,
                                         uint32_t *tokens,
                                         size_t capacity,
                                         size_t *count);

// Writes tokens as text, those that control the model left out. `text` has room for `capacity` bytes;
// `bytes` is how many there are, without a NUL: `M40LLM_STATUS_BUFFER_TOO_SMALL` if they do not fit.
m40llm_status m40llm_model_detokenize(const m40llm_model *model,
                                      const uint32_t *tokens,
                                      size_t count,
                                      char *text,
                                      size_t capacity,
                                      size_t *bytes);

// Makes a vector of each of `texts` texts, of `lengths[i]` tokens each, all of which are in `tokens` one
// behind the other. `vectors` has room for `capacity` floats; `count` is how many there are: `texts` times
// the model's `embedding`. They come from the model's last norm, so they may have any length.
m40llm_status m40llm_model_embed(const m40llm_model *model,
                                 const uint32_t *tokens,
                                 const size_t *lengths,
                                 size_t texts,
                                 uint32_t pooling,
                                 float *vectors,
                                 size_t capacity,
                                 size_t *count);

// Begins a conversation.
m40llm_status m40llm_session_new(const m40llm_model *model, m40llm_session **session);

// Frees a session, which must not be generating.
void m40llm_session_free(m40llm_session *session);

// Makes something that ends generations.
m40llm_status m40llm_cancel_new(m40llm_cancel **cancel);

// Ends the generation that it was given to, now or when it begins.
m40llm_status m40llm_cancel_now(const m40llm_cancel *cancel);

// Frees it, which no generation may have any more.
void m40llm_cancel_free(m40llm_cancel *cancel);

// Fills in the defaults.
void m40llm_generate_params_init(m40llm_generate_params *params);

// Fills in the defaults: its size, and nothing done.
void m40llm_completion_init(m40llm_completion *completion);

// Continues a prompt of `count` tokens and blocks until the end. What the prompt shares with what the
// session has computed is not computed again, so each turn of a conversation gives the whole of it. `params`,
// `cancel`, `on_text` and `completion` may be NULL; `completion->size` is set before.
m40llm_status m40llm_session_generate(const m40llm_session *session,
                                      const uint32_t *prompt,
                                      size_t count,
                                      const m40llm_generate_params *params,
                                      const m40llm_cancel *cancel,
                                      m40llm_on_text on_text,
                                      void *user,
                                      m40llm_completion *completion);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* M40LLM_H */
