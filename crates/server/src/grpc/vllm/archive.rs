//! The tokenizer's files as one zip archive, in pieces that every client takes.

use std::fs;
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};

use baichuan_engine::text::{ChatTemplate, TextError, Tokenizer};
use baichuan_proto::smg::grpc::common::GetTokenizerChunk;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Far below the 4 MiB that clients decode.
const PIECE_BYTES: usize = 64 << 10;
/// What the template is called where the checkpoint has none by that name.
const TEMPLATE: &str = "chat_template.jinja";
/// The file that every router reads. One is made of the model where the checkpoint has SentencePiece's alone.
const TOKENIZER: &str = "tokenizer.json";
const NAMES: [&str; 9] = [
    "added_tokens.json",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    TOKENIZER,
    "tokenizer_config.json",
    "vocab.json",
];
const EXTENSIONS: [&str; 3] = ["jinja", "model", "tiktoken"];

/// Packs what of `dir` a tokenizer is made of. `template` is the one this server renders with, so that a router
/// renders the same where the checkpoint leaves it to the model's plugin.
///
/// Blocks while it reads. The same files make the same archive.
///
/// # Errors
/// A file that cannot be read, or is no tokenizer.
pub(super) fn pack(dir: &Path, template: Option<&ChatTemplate>) -> io::Result<Vec<GetTokenizerChunk>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    let files = files(dir)?;
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        zip.start_file(name, options)?;
        zip.write_all(&fs::read(file)?)?;
    }
    let is_missing = |name: &str| !files.iter().any(|file| file.ends_with(name));
    // Routers read nothing else.
    if is_missing(TOKENIZER) {
        match Tokenizer::as_tokenizer_json(dir) {
            Ok(Some(json)) => {
                zip.start_file(TOKENIZER, options)?;
                zip.write_all(json.as_bytes())?;
            }
            Ok(None) | Err(TextError::NoTokenizer { .. }) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    if let Some(template) = template
        && is_missing(TEMPLATE)
    {
        zip.start_file(TEMPLATE, options)?;
        zip.write_all(template.source().as_bytes())?;
    }
    Ok(pieces(zip.finish()?.into_inner().into()))
}

/// In the order of their names.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_named = path
            .file_name()
            .is_some_and(|name| NAMES.iter().any(|n| name == *n));
        let is_kind = path
            .extension()
            .is_some_and(|kind| EXTENSIONS.iter().any(|k| kind == *k));
        if (is_named || is_kind) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn pieces(archive: Bytes) -> Vec<GetTokenizerChunk> {
    let digest: String = Sha256::digest(&archive)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut pieces: Vec<_> = (0..archive.len())
        .step_by(PIECE_BYTES)
        .map(|at| GetTokenizerChunk {
            data: archive.slice(at..archive.len().min(at + PIECE_BYTES)),
            sha256: String::new(),
        })
        .collect();
    if let Some(last) = pieces.last_mut() {
        last.sha256 = digest;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use baichuan_engine::text::SpecialTokens;

    use super::*;

    fn unpack(pieces: &[GetTokenizerChunk]) -> BTreeMap<String, String> {
        let archive: Vec<u8> = pieces.iter().flat_map(|p| p.data.to_vec()).collect();
        let mut zip = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
        (0..zip.len())
            .map(|i| {
                let mut file = zip.by_index(i).unwrap();
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                (file.name().to_owned(), text)
            })
            .collect()
    }

    #[test]
    fn weights_and_strangers_stay_out_and_the_servers_template_goes_in() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "tokenizer.json",
            "tokenizer.model",
            "config.json",
            "model.safetensors",
            "notes.txt",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let special = SpecialTokens::from_dir(tempfile::tempdir().unwrap().path()).unwrap();
        let template = ChatTemplate::new("t", "{{ messages }}", special).unwrap();
        let packed = unpack(&pack(dir.path(), Some(&template)).unwrap());
        let names: Vec<_> = packed.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [TEMPLATE, "config.json", "tokenizer.json", "tokenizer.model"]
        );
        assert_eq!(packed[TEMPLATE], "{{ messages }}");
        assert_eq!(packed["tokenizer.json"], "tokenizer.json");

        fs::write(dir.path().join(TEMPLATE), "the checkpoint's own").unwrap();
        let packed = unpack(&pack(dir.path(), Some(&template)).unwrap());
        assert_eq!(packed[TEMPLATE], "the checkpoint's own");
    }

    #[test]
    fn the_last_piece_alone_carries_the_digest_of_the_whole() {
        let archive = Bytes::from(vec![7u8; 2 * PIECE_BYTES + 1]);
        let pieces = pieces(archive.clone());
        let sizes: Vec<_> = pieces.iter().map(|p| p.data.len()).collect();
        assert_eq!(sizes, [PIECE_BYTES, PIECE_BYTES, 1]);
        assert!(pieces[..2].iter().all(|p| p.sha256.is_empty()));
        let expected: String = Sha256::digest(&archive)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(pieces[2].sha256, expected);
    }
}
