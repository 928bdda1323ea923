/* A program in C that uses everything in m40llm.h once, and every error that it can cause. */

#include <m40llm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(int line, const char *what) {
    char why[512];
    m40llm_last_error(why, sizeof why);
    fprintf(stderr, "client.c:%d: %s (last error: %s)\n", line, what, why);
    exit(1);
}

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) die(__LINE__, #condition);                                               \
    } while (0)
#define OK(call) CHECK((call) == M40LLM_STATUS_OK)

/* What an answer is written to. */
struct answer {
    char text[4096];
    size_t bytes;
    int pieces;
    int pieces_most;
};

static uint32_t on_text(void *user, const char *text, size_t bytes) {
    struct answer *answer = user;
    CHECK(answer->bytes + bytes <= sizeof answer->text);
    memcpy(answer->text + answer->bytes, text, bytes);
    answer->bytes += bytes;
    answer->pieces++;
    return answer->pieces_most == 0 || answer->pieces < answer->pieces_most;
}

/* Generates on a session that another thread has. */
static uint32_t on_text_in_use(void *user, const char *text, size_t bytes) {
    (void)text;
    (void)bytes;
    const uint32_t prompt[] = {6, 7};
    m40llm_session *session = *(m40llm_session **)user;
    m40llm_status status =
        m40llm_session_generate(session, prompt, 2, NULL, NULL, NULL, NULL, NULL);
    CHECK(status == M40LLM_STATUS_BUSY);
    return 0;
}

static void *cancel_soon(void *cancel) {
    OK(m40llm_cancel_now(cancel));
    return NULL;
}

static m40llm_model *load(const m40llm_engine *engine, const char *path) {
    m40llm_model_options options;
    m40llm_model_options_init(&options);
    CHECK(options.size == sizeof options);
    options.context = 128;
    m40llm_model *model = NULL;
    CHECK(m40llm_model_load(engine, "/nowhere.gguf", &options, &model) == M40LLM_STATUS_NOT_FOUND);
    CHECK(m40llm_model_load(engine, "/etc/passwd", &options, &model) == M40LLM_STATUS_UNSUPPORTED);
    CHECK(model == NULL);
    options.kv_type = 7;
    CHECK(m40llm_model_load(engine, path, &options, &model) == M40LLM_STATUS_INVALID_ARGUMENT);
    options.kv_type = M40LLM_KV_F16;
    OK(m40llm_model_load(engine, path, &options, &model));
    return model;
}

static m40llm_model_info describe(const m40llm_model *model) {
    m40llm_model_info info;
    m40llm_model_info_init(&info);
    OK(m40llm_model_describe(model, &info));
    CHECK(info.size == sizeof info && info.context == 128 && info.generates == 1);
    CHECK(info.parameters > 0 && info.vocab > 0 && info.embedding > 0);
    /* A caller that knows the first field only. */
    struct {
        size_t size;
        uint64_t parameters;
        unsigned char behind[64];
    } older;
    memset(&older, 0xaa, sizeof older);
    older.size = offsetof(m40llm_model_info, weight_bytes);
    OK(m40llm_model_describe(model, (m40llm_model_info *)(void *)&older));
    CHECK(older.parameters == info.parameters && older.behind[0] == 0xaa);
    return info;
}

static size_t tokenize(const m40llm_model *model, uint32_t *tokens, size_t capacity) {
    const char *messages = "[{\"role\": \"user\", \"content\": \"hello\"}]";
    char prompt[512];
    size_t bytes = 0, count = 0;
    CHECK(m40llm_model_chat(model, "[", prompt, sizeof prompt, &bytes)
          == M40LLM_STATUS_INVALID_ARGUMENT);
    CHECK(m40llm_model_chat(model, messages, prompt, 3, &bytes) == M40LLM_STATUS_BUFFER_TOO_SMALL);
    CHECK(bytes > 3);
    OK(m40llm_model_chat(model, messages, prompt, sizeof prompt, &bytes));
    OK(m40llm_model_tokenize_prompt(model, prompt, bytes, tokens, capacity, &count));
    CHECK(count > 0);
    CHECK(m40llm_model_tokenize_prompt(model, "\xff", 1, tokens, capacity, &count)
          == M40LLM_STATUS_INVALID_ARGUMENT);
    OK(m40llm_model_tokenize_prompt(model, prompt, bytes, tokens, capacity, &count));
    size_t plain = 0;
    uint32_t of_text[64];
    OK(m40llm_model_tokenize_text(model, "hello", 5, of_text, 64, &plain));
    char again[64];
    OK(m40llm_model_detokenize(model, of_text, plain, again, sizeof again, &bytes));
    CHECK(bytes >= 5 && memcmp(again + bytes - 5, "hello", 5) == 0);
    return count;
}

static void generate(const m40llm_model *model, const uint32_t *prompt, size_t count) {
    m40llm_session *session = NULL;
    CHECK(m40llm_session_new(NULL, &session) == M40LLM_STATUS_INVALID_ARGUMENT);
    OK(m40llm_session_new(model, &session));
    m40llm_generate_params params;
    m40llm_generate_params_init(&params);
    params.max_tokens = 8;
    params.temperature = 0;
    params.ignore_eos = 1;
    struct answer first = {0}, second = {0};
    m40llm_completion completion;
    m40llm_completion_init(&completion);
    OK(m40llm_session_generate(session, prompt, count, &params, NULL, on_text, &first, &completion));
    CHECK(completion.completion_tokens == 8 && completion.finish == M40LLM_FINISH_LENGTH);
    CHECK(completion.prompt_tokens == count && completion.cached_tokens == 0);
    OK(m40llm_session_generate(session, prompt, count, &params, NULL, on_text, &second, &completion));
    CHECK(completion.cached_tokens == count - 1);
    CHECK(first.bytes == second.bytes && memcmp(first.text, second.text, first.bytes) == 0);

    params.temperature = -1;
    CHECK(m40llm_session_generate(session, prompt, count, &params, NULL, NULL, NULL, NULL)
          == M40LLM_STATUS_INVALID_ARGUMENT);
    params.temperature = 0;
    const uint32_t foreign[] = {4000000000u};
    CHECK(m40llm_session_generate(session, foreign, 1, &params, NULL, NULL, NULL, NULL)
          == M40LLM_STATUS_INVALID_ARGUMENT);

    /* It ends when it is told to, or was. */
    struct answer one = {.pieces_most = 1};
    OK(m40llm_session_generate(session, prompt, count, &params, NULL, on_text, &one, &completion));
    CHECK(one.pieces == 1 && completion.finish == M40LLM_FINISH_CANCELLED);
    m40llm_cancel *cancel = NULL;
    OK(m40llm_cancel_new(&cancel));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, cancel_soon, cancel) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    OK(m40llm_session_generate(session, prompt, count, &params, cancel, NULL, NULL, &completion));
    CHECK(completion.completion_tokens == 0 && completion.finish == M40LLM_FINISH_CANCELLED);
    m40llm_cancel_free(cancel);
    OK(m40llm_session_generate(session, prompt, count, &params, NULL, on_text_in_use, &session, NULL));

    /* JSON, and texts that end the answer. */
    const char *stop[] = {"zzzz", "yyyy"};
    params.stop = stop;
    params.stop_count = 2;
    params.max_tokens = 60;
    params.ignore_eos = 0;
    params.json_schema = "{\"type\": \"boolean\"}";
    struct answer json = {0};
    OK(m40llm_session_generate(session, prompt, count, &params, NULL, on_text, &json, &completion));
    CHECK((json.bytes == 4 && memcmp(json.text, "true", 4) == 0)
          || (json.bytes == 5 && memcmp(json.text, "false", 5) == 0));
    params.json_schema = "{";
    CHECK(m40llm_session_generate(session, prompt, count, &params, NULL, NULL, NULL, NULL)
          == M40LLM_STATUS_INVALID_ARGUMENT);
    m40llm_session_free(session);
}

static void embed(const m40llm_model *model, size_t width) {
    const uint32_t tokens[] = {6, 7, 8, 9};
    const size_t lengths[] = {3, 1};
    float *vectors = calloc(2 * width, sizeof *vectors);
    size_t count = 0;
    OK(m40llm_model_embed(model, tokens, lengths, 2, M40LLM_POOLING_DEFAULT, vectors, 2 * width,
                          &count));
    CHECK(count == 2 * width && vectors[0] != 0 && vectors[width] != 0);
    CHECK(m40llm_model_embed(model, tokens, lengths, 2, M40LLM_POOLING_LAST, vectors, width, &count)
          == M40LLM_STATUS_BUFFER_TOO_SMALL);
    CHECK(count == 2 * width);
    CHECK(m40llm_model_embed(model, tokens, lengths, 2, 9, vectors, 2 * width, &count)
          == M40LLM_STATUS_INVALID_ARGUMENT);
    free(vectors);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(m40llm_abi_version() == M40LLM_ABI_VERSION);
    char version[8];
    CHECK(m40llm_version(version, sizeof version) > 7 && version[7] == 0);
    CHECK(m40llm_version(NULL, 0) > 7);

    m40llm_engine_options options;
    m40llm_engine_options_init(&options);
    m40llm_engine *engine = NULL;
    options.device = 9;
    CHECK(m40llm_engine_new(&options, &engine) == M40LLM_STATUS_INVALID_ARGUMENT);
    char why[128];
    CHECK(m40llm_last_error(why, sizeof why) > 0 && strstr(why, "device") != NULL);
    options.device = M40LLM_DEVICE_CPU;
    options.size = 0;
    CHECK(m40llm_engine_new(&options, &engine) == M40LLM_STATUS_INVALID_ARGUMENT);
    CHECK(m40llm_engine_new(NULL, NULL) == M40LLM_STATUS_INVALID_ARGUMENT);
    OK(m40llm_engine_new(NULL, &engine));

    m40llm_model *model = load(engine, argv[1]);
    m40llm_engine_free(engine);
    m40llm_model_info info = describe(model);
    uint32_t prompt[128];
    size_t count = tokenize(model, prompt, 128);
    generate(model, prompt, count);
    embed(model, info.embedding);
    /* A session outlives what it was made of. */
    m40llm_session *session = NULL;
    OK(m40llm_session_new(model, &session));
    m40llm_model_free(model);
    OK(m40llm_session_generate(session, prompt, count, NULL, NULL, NULL, NULL, NULL));
    m40llm_session_free(session);
    m40llm_model_free(NULL);
    puts("ok");
    return 0;
}
