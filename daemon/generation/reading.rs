//! What a model reads, without an answer: its tokenizer and its chat template, asked by themselves.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{AskError, Chat, Input, Question};
use crate::models::{Loaded, Models, Ticket};

/// What a conversation becomes for a model.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// The prompt of a conversation.
pub(crate) async fn prompt(
    models: &Models,
    ticket: Ticket,
    chat: Chat,
) -> Result<Prompt, AskError> {
    let mut question = Question { input: Input::Chat(chat), ..Question::default() };
    if let Some(definition) = models.definition(Some(ticket.model())) {
        question.complete(&definition);
    }
    let prompt = move |loaded: &Loaded| {
        let Input::Chat(chat) = &question.input else { return Err(AskError::Internal) };
        let text = chat.text(loaded)?;
        let tokens = loaded.model.tokenizer().encode_prompt(&text);
        Ok(Prompt { text, tokens })
    };
    read(ticket, prompt).await?
}

/// Reads something with a model that is in memory: at once where it is, else after its load, on a thread
/// of its own, as a long text takes a while.
pub(crate) async fn read<T: Send + 'static>(
    ticket: Ticket,
    read: impl FnOnce(&Loaded) -> T + Send + 'static,
) -> Result<T, AskError> {
    let loaded = match ticket.loaded() {
        Some(loaded) => loaded,
        None => Arc::clone(&ticket.turn().await?.loaded),
    };
    spawn_blocking(move || read(&loaded)).await.map_err(|error| {
        tracing::error!(%error, "reading a text panicked");
        AskError::Internal
    })
}
