//! The template language as chat templates expect it: Jinja2 the way `transformers` sets it up.

use std::error::Error as _;
use std::fmt;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::NAME;

/// An environment that holds `source`, compiled.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(format_like_python);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// Makes `strftime_now` tell this time.
pub(super) fn set_clock(environment: &mut Environment<'static>, now: SystemTime) {
    environment.add_function("strftime_now", move |format: &str| {
        let invalid =
            |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"));
        let now = Timestamp::try_from(now).map_err(invalid)?.to_zoned(TimeZone::UTC);
        strtime::format(format, &now).map_err(invalid)
    });
}

/// Whether the template's source has `word` as a string of its own.
pub(super) fn names(environment: &Environment<'_>, template: &str, word: &str) -> bool {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    let Ok(template) = environment.get_template(template) else {
        return false;
    };
    let source = template.source();
    plain && (source.contains(&format!("'{word}'")) || source.contains(&format!("\"{word}\"")))
}

/// What a template said when it refused its messages.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) message: String,
}

impl Refusal {
    /// The refusal behind an error of the template engine, if that is what it is.
    pub(super) fn of(error: &Error) -> Option<&Self> {
        let mut source = error.source();
        while let Some(error) = source {
            if let Some(refusal) = error.downcast_ref() {
                return Some(refusal);
            }
            source = error.source();
        }
        None
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Refusal { message }))
}

/// Prints `True`, `False` and `None` as Python does.
fn format_like_python(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => out
            .write_str(if value.is_true() { "True" } else { "False" })
            .map_err(Error::from),
        ValueKind::None => out.write_str("None").map_err(Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Turns `{% generation %}` … `{% endgeneration %}`, which only mark a stretch for training, into a block
/// that does nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        // Behind the opening: in `{%}` the two share their percent sign.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else {
            rest = tag;
            break;
        };
        let body = &tag[2..end];
        let word = body.trim_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                out.push_str("{%");
                out.push_str(&body.replace(word, replacement));
                out.push_str("%}");
                rest = &tag[end + 2..];
            }
            None => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// JSON as Python's `json.dumps` writes it, without escaping what is not ASCII.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let indent = kwargs.get::<Option<usize>>("indent")?;
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    kwargs.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: separators must be two strings",
            ));
        }
    };
    if indent.is_some_and(|indent| indent > 16) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: indent is more than 16",
        ));
    }
    let mut writer = JsonWriter {
        out: String::new(),
        ensure_ascii,
        sort_keys,
        indent,
        item,
        key,
    };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

struct JsonWriter<'a> {
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    item: &'a str,
    key: &'a str,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 100 {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: nested too deeply",
            ));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.block('[', ']', items.len(), depth, |this, index| {
                    this.value(&items[index], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.block('{', '}', keys.len(), depth, |this, index| {
                    this.string(&keys[index].to_string());
                    this.out.push_str(this.key);
                    this.value(&value.get_item(&keys[index])?, depth + 1)
                })?;
            }
            other => {
                let problem = format!("tojson: a value of kind {other} is not JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        Ok(())
    }

    /// Brackets around `n` items, on lines of their own if there is an indent.
    fn block(
        &mut self,
        open: char,
        close: char,
        n: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for index in 0..n {
            if index > 0 {
                self.out.push_str(self.item);
            }
            self.line(depth + 1);
            item(self, index)?;
        }
        if n > 0 {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A float as Python's `repr` writes it.
fn float(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => match text.as_str() {
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            _ => text,
        },
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}
