//! The program's exit codes where no server is needed.

use std::process::{Command, Output, Stdio};

fn baichuan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_baichuan"))
        .args(arguments)
        .env_remove("BAICHUAN_SERVER")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command_and_exits_0() {
    let output = baichuan(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for command in [
        "generate", "chat", "embed", "tokenize", "models", "info", "health", "load", "abort", "bench",
    ] {
        assert!(
            help.contains(&format!("  {command} ")),
            "{command} is missing in {help}"
        );
    }
}

#[test]
fn wrong_usage_exits_2_and_says_what_is_wrong() {
    for (arguments, named) in [
        (&["generat", "x"][..], "generat"),
        (&["generate", "x", "--temperature", "warm"], "warm"),
        (&["generate", "--file", "/no/such/file"], "/no/such/file"),
        (&["generate", "x", "--server", "nowhere"], "nowhere"),
        (&["generate", "x", "--logit-bias", "7"], "TOKEN=BIAS"),
        (&["bench", "--concurrency", "0"], "--concurrency"),
        (&["abort"], "REQUEST_ID"),
    ] {
        let output = baichuan(arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(named),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_server_that_is_not_there_exits_1_and_is_named() {
    let output = baichuan(&["models", "--server", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot connect to 127.0.0.1:1"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn with_json_errors_are_json_too() {
    let output = baichuan(&["models", "--json", "--server", "127.0.0.1:1"]);
    let error: serde_json::Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("127.0.0.1:1"),
        "{error}"
    );
}
