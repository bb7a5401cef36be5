//! Writing to the terminal or to a pipe.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// Writes generated text at once; control characters that could steer a terminal are shown, not sent.
pub(crate) fn text(text: &str) -> io::Result<()> {
    let stdout = io::stdout();
    let shown = if stdout.is_terminal() {
        printable(text)
    } else {
        text.into()
    };
    let mut stdout = stdout.lock();
    stdout.write_all(shown.as_bytes())?;
    stdout.flush()
}

/// Writes a line.
pub(crate) fn line(line: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Writes a line to stderr, for people; one that nobody can read any more is no failure.
pub(crate) fn note(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes one JSON object as one line, at once.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{value}")?;
    stdout.flush()
}

/// Writes `rows` under `head`, columns aligned.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut stdout = io::stdout().lock();
    for row in std::iter::once(head.map(String::from)).chain(rows.iter().cloned()) {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        writeln!(stdout, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A bar on stderr for `total` of `what`; invisible unless stderr is a terminal.
pub(crate) fn progress(total: u64, what: &'static str) -> ProgressBar {
    let template =
        format!("{{elapsed_precise}} {{wide_bar}} {{pos}}/{{len}} {what}, {{per_sec}}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

/// `text` with control characters other than line ends and tabs made visible (ESC becomes `␛`).
fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(steers) {
        return text.into();
    }
    let show = |c: char| match c {
        c if !steers(c) => c,
        c if c.is_ascii() && c != '\x7f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        _ => '\u{fffd}',
    };
    text.chars().map(show).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2J\r\x7f\u{9b}b"), "a␛[2J␍␡\u{fffd}b");
        assert_eq!(printable("两行\n\tx"), "两行\n\tx");
    }
}
