//! The example is served like any other family by naming it once, and the page about plugins quotes what is compiled.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use baichuan_client::{prompt, v1};
use e2e::checkpoint::repository;
use e2e::{Fake, Setup, TestServer};
use serde_json::json;
use tempfile::TempDir;

/// A checkpoint that has learnt one sentence; its tokenizer has a token per byte.
fn checkpoint() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    write(
        "config.json",
        json!({"architectures": ["BigramForCausalLM"]}).to_string(),
    );
    write("generation_config.json", json!({"eos_token_id": 256}).to_string());
    write("corpus.txt", "abcdefabcdefabcdef".to_owned());
    let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), json!(byte)));
    let vocab: serde_json::Map<_, _> = bytes.chain([("</s>".to_owned(), json!(256))]).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "ByteFallback"},
        "added_tokens": [{"id": 256, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    });
    write("tokenizer.json", tokenizer.to_string());
    dir
}

#[tokio::test]
async fn one_line_of_registration_serves_a_third_family_beside_others() {
    let dir = checkpoint();
    let setup = Setup::fake(Fake::default()).and_m1("bigram", dir.path());
    let server = TestServer::start(setup.with_plugin(bigram_plugin::plugin())).await;
    let request = v1::GenerateRequest {
        model: "bigram".into(),
        ..e2e::text("abc", 9)
    };
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(completion.choices[0].text, "defabcdef");
    let request = v1::EmbedRequest {
        model: "bigram".into(),
        inputs: vec![prompt::embed_text("abc")],
        ..Default::default()
    };
    assert_eq!(
        server.client.embed(request).await.unwrap().embeddings[0].dimensions,
        257
    );
    let model = server.client.model("bigram").await.unwrap();
    assert_eq!(
        (model.plugin.as_str(), model.state()),
        ("bigram", v1::ModelState::Ready)
    );
    server.stop().await;
}

#[test]
fn nothing_else_knows_the_example() {
    let root = repository();
    let mut knowing = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "toml")
                && fs::read_to_string(&path)
                    .unwrap()
                    .to_lowercase()
                    .contains("bigram")
            {
                knowing.push(path.strip_prefix(&root).unwrap().to_owned());
            }
        }
    }
    // Its place among the arrows of `xtask tidy`, which every crate has.
    assert_eq!(knowing, [Path::new("crates/xtask/src/tidy/arrows.rs")]);
}

/// `register.patch` puts the example into the server: a dependency in its manifest, and one line of code.
#[test]
fn one_line_of_code_registers_it_in_the_server() {
    let root = repository();
    let patch = fs::read_to_string(root.join("examples/bigram-plugin/register.patch")).unwrap();
    let mut added = Vec::new();
    for file in patch.split("--- a/").skip(1) {
        let (name, rest) = file.split_once('\n').unwrap();
        let hunks = rest
            .split("\n@@ ")
            .skip(1)
            .map(|hunk| hunk.split_once('\n').unwrap().1);
        let text = fs::read_to_string(root.join(name)).unwrap();
        for hunk in hunks {
            let before = hunk.lines().filter(|line| !line.starts_with('+'));
            let before: String = before
                .map(|line| format!("{}\n", line.get(1..).unwrap_or_default()))
                .collect();
            assert!(
                text.contains(&before),
                "{name} is not as the patch has it:\n{before}"
            );
            let lines = hunk.lines().filter_map(|line| line.strip_prefix('+'));
            added.extend(lines.map(|line| (name, line.trim())));
            assert!(hunk.lines().all(|line| !line.starts_with('-')), "nothing goes");
        }
    }
    assert_eq!(
        added,
        [
            (
                "crates/server/Cargo.toml",
                r#"bigram-plugin = { path = "../../examples/bigram-plugin" }"#
            ),
            (
                "crates/server/src/main.rs",
                "let registry = registry.with(bigram_plugin::plugin());"
            ),
        ]
    );
}

#[test]
fn the_page_about_plugins_quotes_what_is_compiled() {
    let root = repository();
    let page = fs::read_to_string(root.join("docs/PLUGINS.md")).unwrap();
    let source = fs::read_to_string(root.join("examples/bigram-plugin/src/lib.rs")).unwrap();
    let mut n_quotes = 0;
    for block in page.split("```rust\n").skip(1) {
        let quote = block.split("```").next().unwrap();
        assert!(
            source.contains(quote),
            "docs/PLUGINS.md quotes what is not in the example:\n{quote}"
        );
        n_quotes += 1;
    }
    assert!(n_quotes >= 4, "only {n_quotes} quotes found");
}
