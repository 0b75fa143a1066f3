//! Rendering a conversation with the checkpoint's own Jinja template.
//!
//! The environment is the one that Hugging Face transformers gives its templates: blocks trimmed, Python's string
//! and dict methods, `raise_exception`, `strftime_now` and a `tojson` that writes what Python's `json.dumps` writes.

mod date;
mod json;

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State};
use serde::Serialize;

use super::TextError;

/// Work that one rendering may do, in minijinja's instructions: far above any conversation, low enough that a
/// template that never ends is an error within seconds.
const FUEL: u64 = 50_000_000;

/// One message of a conversation. Any serialisable type with these fields (and more, such as `tool_calls`) serves
/// as well, see [`ChatInput::new`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage { role: role.into(), content: content.into() }
    }
}

/// What a template is rendered with.
#[derive(Debug, Clone)]
pub struct ChatInput {
    variables: Vec<(String, Value)>,
    now: Option<SystemTime>,
}

impl ChatInput {
    /// A conversation that the assistant is to answer (`add_generation_prompt` is set).
    pub fn new<M: Serialize>(messages: &[M]) -> Self {
        let input = ChatInput { variables: Vec::new(), now: None };
        input.with("messages", messages).with("add_generation_prompt", true)
    }

    /// Whether the prompt ends with the beginning of the assistant's answer.
    pub fn add_generation_prompt(self, add: bool) -> Self {
        self.with("add_generation_prompt", add)
    }

    /// Tools that the model may call, in the form that the template expects (usually a list of JSON schemas).
    pub fn tools<T: Serialize>(self, tools: T) -> Self {
        self.with("tools", tools)
    }

    /// Any other variable that the template reads, such as `enable_thinking`.
    pub fn with<T: Serialize>(mut self, name: &str, value: T) -> Self {
        self.variables.push((name.to_owned(), Value::from(Serde(value))));
        self
    }

    /// The time that `strftime_now` sees; the system's clock (in UTC) without it.
    pub fn now(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }
}

/// A chat template. Cloning shares it; it is compiled when it is first rendered.
///
/// ```
/// use bessemer_runtime::text::{ChatInput, ChatMessage, ChatTemplate};
///
/// let source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]";
/// let template = ChatTemplate::new(source, "<s>", "</s>");
/// let prompt = template.render(&ChatInput::new(&[ChatMessage::new("user", "Hello")]))?;
/// assert_eq!(prompt, "[user] Hello\n[assistant]");
/// # Ok::<(), bessemer_runtime::text::TextError>(())
/// ```
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    source: String,
    bos: String,
    eos: String,
    environment: OnceLock<Result<Environment<'static>, TextError>>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.inner.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// A template and the texts of the tokens that it may write as `bos_token` and `eos_token`.
    pub fn new(source: impl Into<String>, bos: impl Into<String>, eos: impl Into<String>) -> Self {
        let (source, bos, eos) = (source.into(), bos.into(), eos.into());
        ChatTemplate { inner: Arc::new(Inner { source, bos, eos, environment: OnceLock::new() }) }
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// Renders a conversation into the text of a prompt, to be encoded with [`super::Special::Parse`].
    pub fn render(&self, input: &ChatInput) -> Result<String, TextError> {
        let environment = self.inner.environment.get_or_init(|| environment(&self.inner.source));
        let environment = environment.as_ref().map_err(Clone::clone)?;
        let now = input.now.unwrap_or_else(SystemTime::now);
        let strftime_now = Value::from_function(move |format: String| date::strftime(now, &format));
        let tokens = [("bos_token", &self.inner.bos), ("eos_token", &self.inner.eos)];
        let defaults = tokens.map(|(name, text)| (name.to_owned(), Value::from(text.as_str())));
        let variables = defaults.into_iter().chain([("strftime_now".to_owned(), strftime_now)]);
        let context = Value::from_pairs(variables.chain(input.variables.iter().cloned()));
        let template = environment.get_template(NAME).map_err(|e| template_error(&e))?;
        template.render(context).map_err(|e| template_error(&e))
    }
}

const NAME: &str = "chat_template";

fn environment(source: &str) -> Result<Environment<'static>, TextError> {
    let mut environment = Environment::new();
    let mut syntax = environment.syntax().to_builder();
    let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build().map_err(|e| template_error(&e))?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(write_like_python);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|e| template_error(&e))?;
    Ok(environment)
}

/// Python spells these values otherwise than minijinja does.
fn write_like_python(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), minijinja::Error> {
    let text = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(minijinja::Error::from)
}

/// Jinja's undefined has length 0, minijinja's has none.
fn length(value: &Value) -> Result<usize, minijinja::Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let message = || format!("a value of type {} has no length", value.kind());
    value.len().ok_or_else(|| minijinja::Error::new(ErrorKind::InvalidOperation, message()))
}

/// The template's own complaint about the conversation, as it reached us.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn template_error(error: &minijinja::Error) -> TextError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TextError::TemplateRaised { message: message.clone() };
        }
        source = cause.source();
    }
    let detail = error.detail().map(|d| format!(": {d}")).unwrap_or_default();
    TextError::Template { line: error.line().unwrap_or(0), reason: format!("{}{detail}", error.kind()) }
}

/// transformers marks the assistant's words with `{% generation %}` for training; for rendering it is a plain block.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((text, tag_on)) = rest.split_once("{%") {
        let Some((tag, after)) = tag_on.split_once("%}") else { break };
        let word = tag.trim_matches(['-', '+']).trim();
        let plain = match word {
            "generation" => tag.replace(word, "if true"),
            "endgeneration" => tag.replace(word, "endif"),
            _ => tag.to_owned(),
        };
        out.extend([text, "{%", &plain, "%}"]);
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests;
