//! `bessemer run`

use crate::device::DeviceArgs;
use crate::exit::{Code, Failure};
use crate::generate::{self, Answer, Generator, Timings};
use crate::model::{Model, ModelArgs};
use crate::size::Size;
use crate::{interrupt, json};
use bessemer_runtime::sample::{Sampler, SamplerConfig};
use bessemer_runtime::text::{ChatInput, ChatMessage, ChatTemplate, Special, Tokenizer};
use bessemer_runtime::{Finish, KvElem, Worker, WorkerOptions};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value as Json;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bessemer run model.engine                                   chat in the terminal
  bessemer run model.engine -p 'What is a crucible?'          one answer
  bessemer run model.gguf --raw -p 'The capital of' -n 20     continue a text, no chat template
  git diff | bessemer run model.engine -p - --system 'Write a commit message for this change.'
  bessemer run model.engine -p 'Tell me a story' --temperature 0.8 --top-p 0.95 --seed 7

Ctrl-C stops an answer; twice, it leaves. Only generated text goes to stdout.";

/// Generate text: an answer, a continuation, or a chat
///
/// With a chat template in the model, prompts are messages of a user; --raw continues them as they are. Without -p on a
/// terminal, an interactive chat begins.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The prompt; `-` reads it from stdin
    #[arg(short, long, allow_hyphen_values = true)]
    prompt: Option<String>,

    /// Tokens to generate at most; without it, until the model stops or the context is full
    #[arg(short, value_name = "N")]
    n: Option<usize>,

    /// Use the chat template (the default when the model has one)
    #[arg(long, conflicts_with = "raw")]
    chat: bool,

    /// Continue the prompt as it is, after the BOS token if the tokeniser asks for one
    #[arg(long)]
    raw: bool,

    /// System message of the chat
    #[arg(long, value_name = "S", conflicts_with = "raw")]
    system: Option<String>,

    /// Chat template to use in place of the model's own: a file with Jinja
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    chat_template: Option<PathBuf>,

    /// Names of special tokens in prompts and messages are these tokens, not text
    #[arg(long)]
    special: bool,

    /// Tools that the model may call: a file with a JSON list, as the chat template expects them
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    tools: Option<PathBuf>,

    /// Longest sequence, in tokens; the model's own by default
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,

    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t = Kv::DEFAULT)]
    kv: Kv,

    /// Refuse to start if more memory than this may be needed (KV and activations), such as 512M
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Size>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Threads; one for each core by default. Their number changes no result
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    #[command(flatten)]
    sampling: Sampling,

    /// End the answer before this text (may be repeated)
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    stop: Vec<String>,

    /// Print one JSON object at the end instead of text as it comes
    #[arg(long)]
    json: bool,
}

/// How tokens are chosen.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Sampling")]
struct Sampling {
    /// 0 takes the most probable token; 1 samples as the model was trained
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep the most probable tokens up to this total probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Drop tokens below this share of the best one's probability
    #[arg(long, value_name = "M", default_value_t = 0.0)]
    min_p: f32,
    /// Make recent tokens less likely; 1 does nothing
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Taken off the logit of every recent token
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Taken off the logit of a recent token as often as it occurred
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Seed of the random numbers
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// Element types of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// Half the memory of f32
    Bf16,
    /// As bf16, with three more bits of precision; numbers beyond 65504 become that
    F16,
    /// Exact
    F32,
    /// About half of bf16: a scale for each token and head
    Int8,
    /// As int8, in floats of 8 bits
    Fp8,
    /// About a quarter of bf16; text suffers
    Int4,
}

impl Kv {
    /// What the runtime takes unless it is told otherwise.
    pub const DEFAULT: Self = match KvElem::DEFAULT {
        KvElem::Bf16 => Self::Bf16,
        KvElem::F16 => Self::F16,
        KvElem::F32 => Self::F32,
        KvElem::Int8 => Self::Int8,
        KvElem::Fp8 => Self::Fp8,
        KvElem::Int4 => Self::Int4,
    };
}

impl From<Kv> for KvElem {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::Bf16 => Self::Bf16,
            Kv::F16 => Self::F16,
            Kv::F32 => Self::F32,
            Kv::Int8 => Self::Int8,
            Kv::Fp8 => Self::Fp8,
            Kv::Int4 => Self::Int4,
        }
    }
}

#[derive(Serialize)]
struct Output<'a> {
    text: &'a str,
    tokens: &'a [u32],
    finish: &'static str,
    timings: OutputTimings<'a>,
}

#[derive(Serialize)]
struct OutputTimings<'a> {
    open_ms: f64,
    #[serde(flatten)]
    answer: &'a Timings,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        interrupt::handle();
        // Says what is wrong with the settings before anything is compiled.
        let sampler = Sampler::new(self.sampling.config())?.config().clone();
        let model = self.model.open()?;
        let tokenizer = tokenizer(&model)?;
        let template = match (self.raw, &self.chat_template, tokenizer.chat_template()) {
            (false, Some(file), _) => Some(template(&tokenizer, read(file)?)),
            (false, None, Some(template)) => Some(template.clone()),
            (false, None, None) if self.chat || self.system.is_some() => {
                let why = "the model has no chat template; bring one with --chat-template, or continue text with --raw";
                return Err(Failure::usage(why));
            }
            _ => None,
        };
        let tools = self.tools.as_deref().map(tools).transpose()?;
        if tools.is_some() && !template.as_ref().is_some_and(|template| template.source().contains("tools")) {
            let why = "the chat template has no place for tools; bring one that has with --chat-template";
            return Err(Failure::usage(why));
        }
        let prompt = self.prompt(template.is_some())?;
        let context = self.context(&model)?;
        let mut generator = self.generator(&model, &tokenizer, sampler, context)?;
        let chat = template.map(|template| self.chat(&tokenizer, template, tools));
        match (prompt, chat) {
            (Some(prompt), chat) => self.once(&mut generator, &model, &tokenizer, chat, &prompt),
            (None, Some(chat)) => self.converse(&mut generator, chat),
            (None, None) => {
                Err(Failure::usage("a chat needs a chat template, and the model has none; give -p PROMPT"))
            }
        }
    }

    /// The prompt; `None` for an interactive chat.
    fn prompt(&self, has_template: bool) -> Result<Option<String>, Failure> {
        match self.prompt.as_deref() {
            Some("-") => {
                let mut text = String::new();
                io::stdin().read_to_string(&mut text).map_err(|e| Failure::usage(format!("stdin: {e}")))?;
                Ok(Some(text))
            }
            Some(text) => Ok(Some(text.to_owned())),
            None if io::stdin().is_terminal() && has_template && !self.json => Ok(None),
            None if self.json => {
                Err(Failure::usage("--json needs a prompt: give -p PROMPT, or -p - to read stdin"))
            }
            None => Err(Failure::usage("no prompt: give -p PROMPT, or -p - to read it from stdin")),
        }
    }

    fn context(&self, model: &Model) -> Result<usize, Failure> {
        let longest = model.engine.plan().model.context as usize;
        match self.ctx {
            None => Ok(longest),
            Some(ctx) if (1..=longest).contains(&ctx) => Ok(ctx),
            Some(ctx) => Err(Failure::usage(format!("--ctx is {ctx}; this model takes 1 to {longest}"))),
        }
    }

    fn generator(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        sampler: SamplerConfig,
        context: usize,
    ) -> Result<Generator, Failure> {
        let kv = KvElem::from(self.kv);
        let mut options = WorkerOptions::default().threads(self.threads).kv(kv).max_tokens(context);
        options = self.device.options(options);
        if let Some(limit) = self.max_memory {
            options = options.max_memory(limit.0);
        }
        let worker = Worker::new(&model.engine, options)?;
        self.device.say(&worker);
        let memory = model.engine.memory(context, kv, worker.max_rows());
        eprintln!("KV: at most {} for {context} tokens ({})", Size(memory.cache), kv.name());
        Generator::new(worker, tokenizer.clone(), sampler, self.stop.clone(), context)
    }

    /// One prompt, one answer.
    fn once(
        &self,
        generator: &mut Generator,
        model: &Model,
        tokenizer: &Tokenizer,
        chat: Option<Chat>,
        prompt: &str,
    ) -> Result<(), Failure> {
        let tokens = match chat {
            Some(mut chat) => {
                chat.say("user", prompt);
                chat.tokens()?
            }
            None => raw_tokens(tokenizer, prompt, self.special())?,
        };
        let json = self.json;
        let mut show = |text: &str| if json { Ok(()) } else { show(text) };
        let answer = generator.answer(&tokens, self.n, interrupt::handle(), &mut show)?;
        if json {
            json::print(&Output {
                text: &answer.text,
                tokens: &answer.tokens,
                finish: generate::name(answer.finish),
                timings: OutputTimings { open_ms: model.open_ms, answer: &answer.timings },
            })?;
        } else if io::stdout().is_terminal() {
            show("\n")?;
        }
        summarise(&answer);
        match answer.finish {
            Finish::Cancelled => Err(Failure::quiet(Code::Interrupted)),
            _ => Ok(()),
        }
    }

    /// A chat in the terminal. Its KV is kept: a turn processes only what is new.
    fn converse(&self, generator: &mut Generator, mut chat: Chat) -> Result<(), Failure> {
        eprintln!("Type a message; Ctrl-C stops an answer, Ctrl-C twice or Ctrl-D leaves.");
        loop {
            eprint!("> ");
            interrupt::rearm();
            let mut line = String::new();
            if io::stdin().read_line(&mut line)? == 0 {
                eprintln!();
                return Ok(());
            }
            if line.trim().is_empty() {
                continue;
            }
            interrupt::rearm();
            chat.say("user", line.trim());
            let answer = generator.answer(&chat.tokens()?, self.n, interrupt::handle(), &mut show)?;
            show("\n")?;
            if matches!(answer.finish, Finish::Context | Finish::Length) {
                summarise(&answer);
            }
            chat.say("assistant", &answer.text);
        }
    }

    /// What names of special tokens mean in what the user writes.
    fn special(&self) -> Special {
        if self.special { Special::Parse } else { Special::AsText }
    }

    /// A conversation that has its system message, and waits for the user.
    fn chat(&self, tokenizer: &Tokenizer, template: ChatTemplate, tools: Option<Vec<Json>>) -> Chat {
        let special = self.special();
        let mut chat = Chat { tokenizer: tokenizer.clone(), template, tools, special, messages: Vec::new() };
        if let Some(system) = &self.system {
            chat.say("system", system);
        }
        chat
    }
}

/// A conversation, and how it becomes a prompt.
struct Chat {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    tools: Option<Vec<Json>>,
    special: Special,
    messages: Vec<ChatMessage>,
}

impl Chat {
    /// Adds a message.
    fn say(&mut self, role: &str, content: &str) {
        let content = match self.special {
            Special::AsText => self.tokenizer.shield(content),
            Special::Parse => content.into(),
        };
        self.messages.push(ChatMessage::new(role, content));
    }

    /// The prompt that the assistant is to answer.
    fn tokens(&self) -> Result<Vec<u32>, Failure> {
        let mut input = ChatInput::new(&self.messages);
        if let Some(tools) = &self.tools {
            input = input.tools(tools.clone());
        }
        let prompt = self.template.render(&input)?;
        Ok(self.tokenizer.encode(&prompt, Special::Parse)?)
    }
}

/// A template from a file, with the names that this tokeniser's tokens have.
fn template(tokenizer: &Tokenizer, source: String) -> ChatTemplate {
    let name = |id: Option<u32>| {
        let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    ChatTemplate::new(source, name(tokenizer.bos()), name(tokenizer.eos()))
}

/// The tools that a file lists.
fn tools(path: &Path) -> Result<Vec<Json>, Failure> {
    let wrong = |e| Failure::usage(format!("{}: not a JSON list of tools: {e}", path.display()));
    serde_json::from_str(&read(path)?).map_err(wrong)
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

impl Sampling {
    fn config(&self) -> SamplerConfig {
        SamplerConfig::default()
            .temperature(self.temperature)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .min_p(self.min_p)
            .repeat_penalty(self.repeat_penalty)
            .presence_penalty(self.presence_penalty)
            .frequency_penalty(self.frequency_penalty)
            .seed(self.seed)
    }
}

/// The model's tokeniser, or why there is no text without it.
pub fn tokenizer(model: &Model) -> Result<Tokenizer, Failure> {
    if model.engine.section(bessemer_format::header::SectionKind::Tokenizer).is_empty() {
        let why = "has no tokeniser, as its checkpoint had none; it takes token ids through the library only";
        return Err(Failure::usage(format!("{}: {why}", model.path.display())));
    }
    Ok(model.engine.tokenizer()?)
}

/// A text as a prompt: after BOS where the tokeniser asks for it.
pub fn raw_tokens(tokenizer: &Tokenizer, text: &str, special: Special) -> Result<Vec<u32>, Failure> {
    let mut tokens: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
    tokens.extend(tokenizer.encode(text, special)?);
    Ok(tokens)
}

fn show(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn summarise(answer: &Answer) {
    let t = &answer.timings;
    let end = match answer.finish {
        Finish::Stop => "the model stopped",
        Finish::Length => "as many tokens as asked for",
        Finish::Context => "the context is full",
        Finish::Cancelled => "interrupted",
        _ => "unknown",
    };
    eprintln!(
        "prompt: {} tokens, {:.0} tok/s; answer: {} tokens, {:.1} tok/s; end: {end}",
        t.prompt_tokens,
        t.prefill_tok_s,
        answer.tokens.len(),
        t.decode_tok_s
    );
}
