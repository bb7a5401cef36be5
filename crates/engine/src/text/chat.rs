//! Renders messages into the prompt a checkpoint was trained on, by its Jinja template.
//!
//! A template comes with a checkpoint and messages come from strangers, so both are data: a render has a budget
//! of work and of output, and a template has no way to the machine. What a template may use is what
//! `transformers` gives it: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string methods,
//! `raise_exception`, `strftime_now`, its kind of `tojson`, and the special tokens by name.

mod environment;
mod prompt;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::value::Value as JinjaValue;
use minijinja::{Environment, ErrorKind};
use serde_json::Value;

use self::environment::Refusal;
use super::files::{self, Json};
use super::guard::{PANICKED, guarded};
use super::special::CONFIG;
use super::{SpecialTokens, TextError};

const FILE: &str = "chat_template.jinja";
const NAME: &str = "chat";

/// Roles that any template may be asked for. Others must be named in the template.
const COMMON_ROLES: [&str; 3] = ["system", "user", "assistant"];

/// What one render may cost: steps of the template engine, each also worth 64 bytes of text, …
const BASE_FUEL: u64 = 4_000_000;
/// … and bytes of prompt; both plus a share for the messages.
const BASE_OUTPUT_BYTES: usize = 1 << 20;

/// Put after a message that is to be continued, to find its end again. Unicode has these characters for
/// such internal use; the space tells whether the template trims.
const OPEN_END: &str = "\u{FDD0}\u{FDD1}\u{FDD0}";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Whose turn: `system`, `user`, `assistant`, or what else the template names.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message with this role and content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// How messages are rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenderOptions {
    /// Ends the prompt with the opening of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Leaves the last message, which must be the assistant's, open to be continued.
    pub continue_final_message: bool,
    /// The time that `strftime_now` tells, in UTC.
    pub now: SystemTime,
}

impl Default for RenderOptions {
    /// A question to be answered, now.
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            continue_final_message: false,
            now: SystemTime::now(),
        }
    }
}

/// A chat template, compiled. Clones share it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    name: String,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Compiles `source`; `name` stands for it in errors, `special` are the tokens it can use by name.
    ///
    /// # Errors
    /// [`TextError::Template`] with the line, if the source is not a template.
    pub fn new(name: impl Into<String>, source: &str, special: SpecialTokens) -> Result<Self, TextError> {
        let name = name.into();
        match guarded(|| environment::compile(source)) {
            Some(Ok(environment)) => Ok(Self {
                environment: Arc::new(environment),
                name,
                special,
            }),
            Some(Err(error)) => Err(template_error(&name, &error)),
            None => Err(TextError::Template {
                template: name,
                line: 0,
                problem: PANICKED.to_owned(),
            }),
        }
    }

    /// The template of the checkpoint in `dir`, or `None` if it has none.
    ///
    /// `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`: a template, or a list of named
    /// ones of which `default` is taken.
    ///
    /// # Errors
    /// A [`TextError`] that names the file, and the key or the line.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Option<Self>, TextError> {
        let dir = dir.as_ref();
        let source = match files::read_text(dir, FILE)? {
            Some((file, source)) => Some((file, source)),
            None => match Json::read(dir, CONFIG)? {
                Some(json) => config_template(&json)?.map(|source| (json.file, source)),
                None => None,
            },
        };
        let Some((file, source)) = source else {
            return Ok(None);
        };
        Self::new(file.display().to_string(), &source, SpecialTokens::from_dir(dir)?).map(Some)
    }

    /// What it was compiled from.
    pub fn source(&self) -> String {
        let template = self.environment.get_template(NAME);
        template.map_or_else(|_| String::new(), |template| template.source().to_owned())
    }

    /// The prompt for `messages`.
    ///
    /// Tokens that a message spells out are in it like those the template writes; to keep them apart, make the
    /// ids by [`Tokenizer::encode_chat`](super::Tokenizer::encode_chat).
    ///
    /// # Errors
    /// [`TextError::UnknownRole`], [`TextError::TemplateRefused`] or [`TextError::Messages`] if the messages do
    /// not suit the template, [`TextError::Template`] or [`TextError::TemplateLimit`] if the template fails.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
        self.check(messages, options)?;
        if !options.continue_final_message {
            return self.run(messages, options);
        }
        let Some((last, before)) = messages.split_last() else {
            return Err(no_messages());
        };
        let mut open = before.to_vec();
        open.push(Message::new(&*last.role, format!("{}{OPEN_END} ", last.content)));
        let mut prompt = self.run(&open, options)?;
        let unusable = |what: &str| TextError::Messages {
            problem: format!("the chat template {what} the last one, so it cannot be continued"),
        };
        let end = prompt
            .rfind(OPEN_END)
            .filter(|_| prompt.contains(last.content.trim()));
        let end = end.ok_or_else(|| unusable("drops or rewrites"))?;
        if prompt[..end].contains(OPEN_END) {
            return Err(unusable("repeats"));
        }
        let keeps_spaces = prompt[end + OPEN_END.len()..].starts_with(' ');
        prompt.truncate(end);
        if !keeps_spaces {
            prompt.truncate(prompt.trim_end().len());
        }
        Ok(prompt)
    }

    fn check(&self, messages: &[Message], options: &RenderOptions) -> Result<(), TextError> {
        if messages.is_empty() {
            return Err(no_messages());
        }
        if options.continue_final_message && options.add_generation_prompt {
            let problem = "cannot both continue the last one and open a new one".to_owned();
            return Err(TextError::Messages { problem });
        }
        let last_role = messages.last().map(|message| message.role.as_str());
        if options.continue_final_message && last_role != Some("assistant") {
            let problem = format!(
                "only an assistant's can be continued, the last one is of `{}`",
                last_role.unwrap_or_default()
            );
            return Err(TextError::Messages { problem });
        }
        for (index, message) in messages.iter().enumerate() {
            if !self.knows_role(&message.role) {
                let role = message.role.clone();
                return Err(TextError::UnknownRole {
                    index,
                    role,
                    known: self.known_roles(),
                });
            }
        }
        Ok(())
    }

    /// Whether messages may have this role: one of the common ones, or one that the template names.
    fn knows_role(&self, role: &str) -> bool {
        COMMON_ROLES.contains(&role) || environment::names(&self.environment, NAME, role)
    }

    fn known_roles(&self) -> Vec<String> {
        let usual = ["tool", "developer", "function"]
            .into_iter()
            .filter(|role| self.knows_role(role));
        COMMON_ROLES.into_iter().chain(usual).map(str::to_owned).collect()
    }

    /// Runs the template within its budget.
    fn run(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
        let n_bytes: usize = messages
            .iter()
            .map(|message| message.role.len() + message.content.len())
            .sum();
        let fuel = BASE_FUEL.saturating_add(n_bytes as u64);
        let mut environment = Environment::clone(&self.environment);
        environment.set_fuel(Some(fuel));
        environment::set_clock(&mut environment, options.now);

        let named = self
            .special
            .iter()
            .map(|(key, text)| (key, JinjaValue::from(text)));
        let context = JinjaValue::from_pairs(named.chain([
            ("messages", messages.iter().map(message_value).collect()),
            ("add_generation_prompt", options.add_generation_prompt.into()),
            ("tools", ().into()),
            ("documents", ().into()),
        ]));

        let mut output = Bounded {
            bytes: Vec::new(),
            limit: BASE_OUTPUT_BYTES + 16 * n_bytes,
            exceeded: false,
        };
        let template = environment
            .get_template(NAME)
            .map_err(|error| template_error(&self.name, &error))?;
        let rendered = guarded(|| template.render_captured_to(context, &mut output).map(drop));
        if output.exceeded {
            return Err(self.limit(format!("{} bytes of prompt", output.limit)));
        }
        let Some(result) = rendered else {
            return Err(TextError::Template {
                template: self.name.clone(),
                line: 0,
                problem: PANICKED.to_owned(),
            });
        };
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                return Err(self.limit(format!("{fuel} steps")));
            }
            Err(error) => {
                return Err(match Refusal::of(&error) {
                    Some(refusal) => TextError::TemplateRefused {
                        message: refusal.message.clone(),
                    },
                    None => template_error(&self.name, &error),
                });
            }
        }
        String::from_utf8(output.bytes).map_err(|error| TextError::Template {
            template: self.name.clone(),
            line: 0,
            problem: format!("wrote no text: {error}"),
        })
    }

    fn limit(&self, limit: String) -> TextError {
        TextError::TemplateLimit {
            template: self.name.clone(),
            limit,
        }
    }
}

fn no_messages() -> TextError {
    TextError::Messages {
        problem: "there are none".to_owned(),
    }
}

fn message_value(message: &Message) -> JinjaValue {
    JinjaValue::from_pairs([("role", &*message.role), ("content", &*message.content)])
}

fn template_error(name: &str, error: &minijinja::Error) -> TextError {
    let problem = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TextError::Template {
        template: name.to_owned(),
        line: error.line().unwrap_or(0),
        problem,
    }
}

/// The template in a `tokenizer_config.json`.
fn config_template(json: &Json) -> Result<Option<String>, TextError> {
    const KEY: &str = "chat_template";
    let named = match json.get(KEY) {
        None => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source.clone())),
        Some(Value::Array(named)) => named,
        Some(other) => return Err(json.mismatch(KEY, other, "a template or a list of named templates")),
    };
    let mut names = Vec::new();
    for (index, entry) in named.iter().enumerate() {
        let entry = json.child(&format!("{KEY}.{index}"), entry);
        let name = entry
            .str("name")?
            .ok_or_else(|| entry.error("name", "is missing"))?;
        let source = entry
            .str("template")?
            .ok_or_else(|| entry.error("template", "is missing"))?;
        if name == "default" {
            return Ok(Some(source.to_owned()));
        }
        names.push(name.to_owned());
    }
    Err(json.error(
        KEY,
        format!("has no template named `default`, only: {}", names.join(", ")),
    ))
}

/// A writer that takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    exceeded: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.exceeded = true;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
