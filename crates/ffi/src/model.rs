//! Models: loading them, their tokens and templates, and vectors of texts.
#![expect(unsafe_code, reason = "functions have names for C")]

use std::ffi::c_char;
use std::mem;
use std::path::Path;

use ::engine::{
    CancelToken, EmbedText, KvType, Model, ModelOptions, Pooling, Special, TemplateInput,
};

use crate::boundary::{Caller, Failure, Versioned, call, free, init, m40llm_status};
use crate::engine::m40llm_engine;

/// Keys and values are kept as 16-bit floats.
pub const M40LLM_KV_F16: u32 = 0;
/// Keys and values are kept as 8-bit numbers: little more than half of the memory, answers differ a little.
pub const M40LLM_KV_INT8: u32 = 1;

/// A text's vector is made as the model's file says, else of the mean.
pub const M40LLM_POOLING_DEFAULT: u32 = 0;
/// Of the mean of all tokens.
pub const M40LLM_POOLING_MEAN: u32 = 1;
/// Of the first token.
pub const M40LLM_POOLING_CLS: u32 = 2;
/// Of the last token.
pub const M40LLM_POOLING_LAST: u32 = 3;

/// How to load a model.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct m40llm_model_options {
    /// sizeof(m40llm_model_options).
    pub size: usize,
    /// Tokens of context; 0, the default, for the trained context, at most 8192.
    pub context: u32,
    /// M40LLM_KV_*; 16-bit floats by default.
    pub kv_type: u32,
}

impl Default for m40llm_model_options {
    fn default() -> Self {
        Self { size: mem::size_of::<Self>(), context: 0, kv_type: M40LLM_KV_F16 }
    }
}

// SAFETY: plain numbers, the first its size.
unsafe impl Versioned for m40llm_model_options {}

/// What is known of a model.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct m40llm_model_info {
    /// sizeof(m40llm_model_info), set by the caller.
    pub size: usize,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// Bytes of weights in the file.
    pub weight_bytes: u64,
    /// Bytes of KV cache per token of context.
    pub kv_bytes_per_token: u64,
    /// Tokens of context served.
    pub context: u32,
    /// Tokens of context trained for.
    pub context_trained: u32,
    /// Transformer blocks.
    pub layers: u32,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Floats of a text's vector.
    pub embedding: u32,
    /// 1 if it generates text, 0 if it only makes vectors.
    pub generates: u32,
}

impl Default for m40llm_model_info {
    fn default() -> Self {
        Self {
            size: mem::size_of::<Self>(),
            parameters: 0,
            weight_bytes: 0,
            kv_bytes_per_token: 0,
            context: 0,
            context_trained: 0,
            layers: 0,
            vocab: 0,
            embedding: 0,
            generates: 0,
        }
    }
}

// SAFETY: plain numbers, the first its size.
unsafe impl Versioned for m40llm_model_info {}

/// A loaded model.
#[derive(Debug)]
pub struct m40llm_model(pub(crate) Model);

/// Fills in the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_options_init(options: *mut m40llm_model_options) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { init(options) };
}

/// Loads the GGUF file at `path`; of a split model any of its files. `options` may be NULL for the defaults.
/// The file must not be changed while the model is loaded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_load(
    engine: *const m40llm_engine,
    path: *const c_char,
    options: *const m40llm_model_options,
    model: *mut *mut m40llm_model,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let engine = caller.borrow(engine, "engine")?;
            let path = Path::new(caller.text(path, "path")?);
            let options = model_options(caller, options)?;
            caller.hand_out(model, || Ok(m40llm_model(engine.0.load(path, &options)?)))
        })
    }
}

/// Frees a model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_free(model: *mut m40llm_model) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { free(model) };
}

fn model_options(
    caller: Caller,
    from: *const m40llm_model_options,
) -> Result<ModelOptions, Failure> {
    let m40llm_model_options { context, kv_type, .. } = caller.options(from)?;
    let kv_type = match kv_type {
        M40LLM_KV_F16 => KvType::F16,
        M40LLM_KV_INT8 => KvType::Int8,
        other => return Err(Failure::argument("kv_type", format!("{other} is none"))),
    };
    let context = (context > 0).then_some(context);
    Ok(ModelOptions { context, kv_type, ..ModelOptions::default() })
}

/// Fills in the defaults: its size, and nothing known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_info_init(info: *mut m40llm_model_info) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { init(info) };
}

/// Says what is known of a model. `info->size` is set before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_describe(
    model: *const m40llm_model,
    info: *mut m40llm_model_info,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let of = caller.borrow(model, "model")?.0.info();
            let known = m40llm_model_info {
                size: mem::size_of::<m40llm_model_info>(),
                parameters: of.parameters,
                weight_bytes: of.weight_bytes,
                kv_bytes_per_token: of.kv_bytes_per_token,
                context: of.context,
                context_trained: of.context_trained,
                layers: of.layers,
                vocab: of.vocab,
                embedding: of.embedding,
                generates: of.generates.into(),
            };
            caller.tell(known, info, "info")
        })
    }
}

/// Writes a conversation as the model's chat template has it, ready for its answer. `messages` is a JSON
/// array of `{"role": ..., "content": ...}`. `prompt` has room for `capacity` bytes; `bytes` is how many
/// there are, without a NUL: `M40LLM_STATUS_BUFFER_TOO_SMALL` if they do not fit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_chat(
    model: *const m40llm_model,
    messages: *const c_char,
    prompt: *mut c_char,
    capacity: usize,
    bytes: *mut usize,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let model = caller.borrow(model, "model")?;
            let messages = serde_json::from_str(caller.text(messages, "messages")?)
                .map_err(|error| Failure::argument("messages", error))?;
            let text = model.0.chat_template().render(&TemplateInput::new(&messages))?;
            caller.fill(text.as_bytes(), prompt.cast(), capacity, bytes)
        })
    }
}

/// Makes tokens of `bytes` bytes of UTF-8 for a prompt: as they are written in it, tokens that control the
/// model included, and what begins a text before them unless it is there. `tokens` has room for `capacity`;
/// `count` is how many there are: `M40LLM_STATUS_BUFFER_TOO_SMALL` if they do not fit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_tokenize_prompt(
    model: *const m40llm_model,
    prompt: *const c_char,
    bytes: usize,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let tokenizer = caller.borrow(model, "model")?.0.tokenizer();
            caller.fill(
                &tokenizer.encode_prompt(caller.text_of(prompt, bytes, "prompt")?),
                tokens,
                capacity,
                count,
            )
        })
    }
}

/// Makes tokens of text that somebody wrote, for a vector: no token is read from it, and those that mark its
/// beginning and end are added.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_tokenize_text(
    model: *const m40llm_model,
    text: *const c_char,
    bytes: usize,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let tokenizer = caller.borrow(model, "model")?.0.tokenizer();
            let special = Special { add: true, parse: false };
            caller.fill(
                &tokenizer.encode(caller.text_of(text, bytes, "text")?, special),
                tokens,
                capacity,
                count,
            )
        })
    }
}

/// Writes tokens as text, those that control the model left out. `text` has room for `capacity` bytes;
/// `bytes` is how many there are, without a NUL: `M40LLM_STATUS_BUFFER_TOO_SMALL` if they do not fit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_detokenize(
    model: *const m40llm_model,
    tokens: *const u32,
    count: usize,
    text: *mut c_char,
    capacity: usize,
    bytes: *mut usize,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let tokenizer = caller.borrow(model, "model")?.0.tokenizer();
            let found = tokenizer.decode(caller.array(tokens, count, "tokens")?, false);
            caller.fill(found.as_bytes(), text.cast(), capacity, bytes)
        })
    }
}

/// Makes a vector of each of `texts` texts, of `lengths[i]` tokens each, all of which are in `tokens` one
/// behind the other. `vectors` has room for `capacity` floats; `count` is how many there are: `texts` times
/// the model's `embedding`. They come from the model's last norm, so they may have any length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_model_embed(
    model: *const m40llm_model,
    tokens: *const u32,
    lengths: *const usize,
    texts: usize,
    pooling: u32,
    vectors: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let model = &caller.borrow(model, "model")?.0;
            let lengths = caller.array(lengths, texts, "lengths")?;
            let all = lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length));
            let all = all.ok_or_else(|| Failure::argument("lengths", "their sum is too large"))?;
            let mut rest = caller.array(tokens, all, "tokens")?;
            let mut found = vec![];
            for length in lengths {
                let (text, behind) = rest.split_at(*length);
                rest = behind;
                found.push(EmbedText { tokens: text.to_vec(), second: None });
            }
            let needed = texts.saturating_mul(model.info().embedding as usize);
            if needed > capacity {
                caller.put(needed, count, "count")?;
                return Err(Failure::Buffer { needed, capacity });
            }
            let made = model.embed(&found, pooling_of(pooling)?, &CancelToken::new())?;
            caller.fill(&made.concat(), vectors, capacity, count)
        })
    }
}

fn pooling_of(number: u32) -> Result<Option<Pooling>, Failure> {
    match number {
        M40LLM_POOLING_DEFAULT => Ok(None),
        M40LLM_POOLING_MEAN => Ok(Some(Pooling::Mean)),
        M40LLM_POOLING_CLS => Ok(Some(Pooling::Cls)),
        M40LLM_POOLING_LAST => Ok(Some(Pooling::Last)),
        other => Err(Failure::argument("pooling", format!("{other} is none"))),
    }
}
