//! Prompts from the command line, a file or stdin.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::failure::Failure;

/// Where a text comes from.
#[derive(Args, Clone, Debug)]
pub(crate) struct TextSource {
    /// The text; without it and --file, stdin is read to its end.
    pub(crate) text: Option<String>,
    /// Read the text from a file; `-` is stdin.
    #[arg(long, short, value_name = "FILE", conflicts_with = "text")]
    pub(crate) file: Option<PathBuf>,
}

impl TextSource {
    /// The text. A line end at the very end of a file or of stdin does not belong to it.
    pub(crate) fn read(&self) -> Result<String, Failure> {
        if let Some(text) = &self.text {
            return Ok(text.clone());
        }
        let mut text = match &self.file {
            Some(path) => read_file(path)?,
            None if io::stdin().is_terminal() => {
                return Err(Failure::Usage(
                    "give a text, --file FILE, or text on stdin".into(),
                ));
            }
            None => read_stdin()?,
        };
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }

    /// Whether neither a text nor a file is named.
    pub(crate) fn is_absent(&self) -> bool {
        self.text.is_none() && self.file.is_none()
    }
}

/// The lines of a file; `-` is stdin.
pub(crate) fn lines(path: &Path) -> Result<Vec<String>, Failure> {
    Ok(read_file(path)?.lines().map(String::from).collect())
}

/// The lines of stdin.
pub(crate) fn stdin_lines() -> Result<Vec<String>, Failure> {
    Ok(read_stdin()?.lines().map(String::from).collect())
}

fn read_file(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return read_stdin();
    }
    std::fs::read_to_string(path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    read.map_err(|e| Failure::Usage(format!("stdin: {e}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn from_file(content: &[u8]) -> Result<String, Failure> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let source = TextSource {
            text: None,
            file: Some(file.path().into()),
        };
        source.read()
    }

    #[test]
    fn only_the_last_line_end_of_a_file_is_dropped() {
        assert_eq!(from_file(b"one\ntwo\n").unwrap(), "one\ntwo");
        assert_eq!(from_file(b"one\r\n").unwrap(), "one");
        assert_eq!(from_file(b"one\n\n").unwrap(), "one\n");
        assert_eq!(from_file("没有".as_bytes()).unwrap(), "没有");
    }

    #[test]
    fn a_file_that_is_not_text_is_wrong_usage_and_named() {
        let error = from_file(b"\xff\xfe").unwrap_err();
        assert!(
            matches!(&error, Failure::Usage(message) if message.contains("UTF-8")),
            "{error}"
        );
        let absent = lines(Path::new("/no/such/file")).unwrap_err();
        assert!(
            matches!(&absent, Failure::Usage(message) if message.contains("/no/such/file")),
            "{absent}"
        );
    }
}
