//! Sessions: conversations, and what is generated in them.
#![expect(unsafe_code, reason = "functions have names for C, and call back")]

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, TryLockError};
use std::{mem, ptr};

use ::engine::{
    CancelToken, Chunk, Completion, FinishReason, GenerateParams, Grammar, Model, SamplingParams,
    Session,
};

use crate::boundary::{Caller, Failure, Versioned, call, free, init, m40llm_status};
use crate::model::m40llm_model;

/// The model ended its answer, or a stop text came.
pub const M40LLM_FINISH_STOP: u32 = 0;
/// There were as many tokens as were asked for, or as the context holds.
pub const M40LLM_FINISH_LENGTH: u32 = 1;
/// It was ended by `m40llm_cancel_now` or by what `on_text` returned.
pub const M40LLM_FINISH_CANCELLED: u32 = 2;

/// What to generate and when to stop.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct m40llm_generate_params {
    /// sizeof(m40llm_generate_params).
    pub size: usize,
    /// Most tokens to generate; 0, the default, for as many as the context holds.
    pub max_tokens: u32,
    /// 0 takes the likeliest token. Default: 0.8.
    pub temperature: f32,
    /// Keep so many of the likeliest tokens; 0 keeps all. Default: 40.
    pub top_k: u32,
    /// Keep the likeliest tokens until their probability reaches this. Default: 0.95.
    pub top_p: f32,
    /// Keep tokens at least this times as likely as the likeliest. Default: 0.05.
    pub min_p: f32,
    /// Logits of tokens seen lately are divided by this if positive, else multiplied. Default: 1.
    pub repeat_penalty: f32,
    /// Taken once from the logit of each token seen lately. Default: 0.
    pub presence_penalty: f32,
    /// Taken from a token's logit for each time it was seen lately. Default: 0.
    pub frequency_penalty: f32,
    /// Fixes the draws where `seeded` is 1.
    pub seed: u64,
    /// Whether `seed` is used. Default: 0, a new seed each time.
    pub seeded: u32,
    /// Go on when the model ends its answer, as benchmarks do. Default: 0.
    pub ignore_eos: u32,
    /// `stop_count` texts that end the answer and are not part of it.
    pub stop: *const *const c_char,
    /// How many. Default: 0.
    pub stop_count: usize,
    /// A JSON schema that the answer has to meet. Default: NULL, any text.
    pub json_schema: *const c_char,
}

impl Default for m40llm_generate_params {
    fn default() -> Self {
        let sampling = SamplingParams::default();
        Self {
            size: mem::size_of::<Self>(),
            max_tokens: 0,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repeat_penalty: sampling.repeat_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: 0,
            seeded: 0,
            ignore_eos: 0,
            stop: ptr::null(),
            stop_count: 0,
            json_schema: ptr::null(),
        }
    }
}

// SAFETY: plain numbers and pointers, the first its size.
unsafe impl Versioned for m40llm_generate_params {}

/// How a generation went.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct m40llm_completion {
    /// sizeof(m40llm_completion), set by the caller.
    pub size: usize,
    /// M40LLM_FINISH_*.
    pub finish: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them that were not computed, as the session or another one had them.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// From the start to the first token, seconds.
    pub prompt_seconds: f64,
    /// From the first token to the last, seconds.
    pub decode_seconds: f64,
}

impl Default for m40llm_completion {
    fn default() -> Self {
        Self {
            size: mem::size_of::<Self>(),
            finish: M40LLM_FINISH_STOP,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            prompt_seconds: 0.0,
            decode_seconds: 0.0,
        }
    }
}

// SAFETY: plain numbers, the first its size.
unsafe impl Versioned for m40llm_completion {}

/// One conversation with a model.
#[derive(Debug)]
pub struct m40llm_session {
    model: Model,
    session: Mutex<Session>,
}

/// Ends a generation from another thread. It is for one: it stays as it is.
#[derive(Debug)]
pub struct m40llm_cancel(CancelToken);

/// Takes a piece of an answer: `bytes` bytes of whole UTF-8 characters without a NUL, and what was given as
/// `user`. The answer ends if it returns 0. It is called by the thread that generates.
pub type m40llm_on_text =
    Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char, bytes: usize) -> u32>;

/// Begins a conversation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_session_new(
    model: *const m40llm_model,
    session: *mut *mut m40llm_session,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            let model = caller.borrow(model, "model")?.0.clone();
            let begun = Mutex::new(model.session());
            caller.hand_out(session, || Ok(m40llm_session { model, session: begun }))
        })
    }
}

/// Frees a session, which must not be generating.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_session_free(session: *mut m40llm_session) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { free(session) };
}

/// Makes something that ends generations.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_cancel_new(cancel: *mut *mut m40llm_cancel) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { call(|caller| caller.hand_out(cancel, || Ok(m40llm_cancel(CancelToken::new())))) }
}

/// Ends the generation that it was given to, now or when it begins.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_cancel_now(cancel: *const m40llm_cancel) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            caller.borrow(cancel, "cancel")?.0.cancel();
            Ok(())
        })
    }
}

/// Frees it, which no generation may have any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_cancel_free(cancel: *mut m40llm_cancel) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { free(cancel) };
}

/// Fills in the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_generate_params_init(params: *mut m40llm_generate_params) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { init(params) };
}

/// Fills in the defaults: its size, and nothing done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_completion_init(completion: *mut m40llm_completion) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { init(completion) };
}

/// Continues a prompt of `count` tokens and blocks until the end. What the prompt shares with what the
/// session has computed is not computed again, so each turn of a conversation gives the whole of it. `params`,
/// `cancel`, `on_text` and `completion` may be NULL; `completion->size` is set before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_session_generate(
    session: *const m40llm_session,
    prompt: *const u32,
    count: usize,
    params: *const m40llm_generate_params,
    cancel: *const m40llm_cancel,
    on_text: m40llm_on_text,
    user: *mut c_void,
    completion: *mut m40llm_completion,
) -> m40llm_status {
    let generate = |caller: Caller| {
        let m40llm_session { model, session } = caller.borrow(session, "session")?;
        let prompt = caller.array(prompt, count, "prompt")?;
        let params = generate_params(caller, model, params)?;
        let mut session = match session.try_lock() {
            Ok(session) => session,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Failure::Busy),
        };
        let cancel = match cancel.is_null() {
            true => CancelToken::new(),
            false => caller.borrow(cancel, "cancel")?.0.clone(),
        };
        let mut enough = false;
        let done = session.generate(prompt, &params, &cancel, &mut |Chunk { text, .. }| {
            let Some(on_text) = on_text.filter(|_| !enough && !text.is_empty()) else { return };
            // SAFETY: the caller's function, as its type says, during the call that it was given to.
            let goes_on = unsafe { on_text(user, text.as_ptr().cast(), text.len()) };
            if goes_on == 0 {
                enough = true;
                cancel.cancel();
            }
        })?;
        if completion.is_null() {
            Ok(())
        } else {
            caller.tell(told(&done), completion, "completion")
        }
    };
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { call(generate) }
}

fn told(done: &Completion) -> m40llm_completion {
    m40llm_completion {
        size: mem::size_of::<m40llm_completion>(),
        finish: match done.finish {
            FinishReason::Stop => M40LLM_FINISH_STOP,
            FinishReason::Length => M40LLM_FINISH_LENGTH,
            FinishReason::Cancelled | FinishReason::Deadline => M40LLM_FINISH_CANCELLED,
        },
        prompt_tokens: done.prompt_tokens,
        cached_tokens: done.cached_tokens,
        completion_tokens: done.completion_tokens,
        prompt_seconds: done.prompt_time.as_secs_f64(),
        decode_seconds: done.decode_time.as_secs_f64(),
    }
}

fn generate_params(
    caller: Caller,
    model: &Model,
    from: *const m40llm_generate_params,
) -> Result<GenerateParams, Failure> {
    let from = caller.options(from)?;
    let stop = caller.array(from.stop, from.stop_count, "stop")?;
    let stop = stop.iter().map(|stop| caller.text(*stop, "stop").map(str::to_owned));
    let constraint = match from.json_schema.is_null() {
        true => None,
        false => {
            let schema = serde_json::from_str(caller.text(from.json_schema, "json_schema")?)
                .map_err(|error| Failure::argument("json_schema", error))?;
            Some(model.grammar(&Grammar::JsonSchema(schema))?)
        }
    };
    Ok(GenerateParams {
        sampling: SamplingParams {
            temperature: from.temperature,
            top_k: from.top_k,
            top_p: from.top_p,
            min_p: from.min_p,
            repeat_penalty: from.repeat_penalty,
            presence_penalty: from.presence_penalty,
            frequency_penalty: from.frequency_penalty,
            seed: (from.seeded != 0).then_some(from.seed),
            ..SamplingParams::default()
        },
        max_tokens: (from.max_tokens > 0).then_some(from.max_tokens),
        stop: stop.collect::<Result<_, _>>()?,
        constraint,
        ignore_eos: from.ignore_eos != 0,
        ..GenerateParams::default()
    })
}
