//! What masks let through, and what hostile wishes come to.

use super::*;
use crate::testing::{EOS, byte_tokenizer};

fn grammars() -> Grammars {
    Grammars::new(&byte_tokenizer().unwrap(), &[EOS])
}

/// Whether `text` may be written under `grammar`, and may then end.
fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut grammar = grammar.clone();
    for byte in text.bytes() {
        if !grammar.mask().unwrap().allows(TokenId::from(byte)) {
            return false;
        }
        grammar.push(TokenId::from(byte)).unwrap();
    }
    grammar.mask().unwrap().allows(EOS)
}

fn refusal(wish: StructuredOutput) -> Violation {
    match grammars().compile(wish) {
        Err(SubmitError::Invalid(violations)) => violations.listed()[0].clone(),
        other => panic!("not a violation: {other:?}"),
    }
}

#[test]
fn masks_let_through_exactly_what_was_asked_for() {
    let person = r#"{"type": "object", "properties": {"age": {"type": "integer"}},
                     "required": ["age"], "additionalProperties": false}"#;
    let list = "start: \"[\" item (\",\" item)* \"]\"\nitem: /[0-9]+/";
    type Case<'a> = (StructuredOutput, &'a [&'a str], &'a [&'a str]);
    let table: &[Case<'_>] = &[
        (
            StructuredOutput::JsonSchema(person.into()),
            &[r#"{"age": 7}"#, r#"{"age":70}"#],
            &[r#"{"age": "7"}"#, r#"{"name": 7}"#, "{", "[]"],
        ),
        (
            StructuredOutput::Regex("[a-c]{2}|\u{00e9}+".into()),
            &["ab", "cc", "\u{00e9}\u{00e9}"],
            &["a", "abc", "d", ""],
        ),
        (
            StructuredOutput::Grammar(list.into()),
            &["[1]", "[1,22,3]"],
            &["[]", "[1,]", "1"],
        ),
        (
            StructuredOutput::Choice(vec!["yes".into(), "no \"never\"\n".into(), "y/e".into()]),
            &["yes", "no \"never\"\n", "y/e"],
            &["ye", "no", "never", "YES"],
        ),
    ];
    let grammars = grammars();
    for (wish, good, bad) in table {
        let grammar = grammars.compile(wish.clone()).unwrap();
        for text in *good {
            assert!(accepts(&grammar, text), "{wish:?} refuses {text:?}");
        }
        for text in *bad {
            assert!(!accepts(&grammar, text), "{wish:?} accepts {text:?}");
        }
    }
}

#[test]
fn behind_a_whole_text_nothing_but_the_end_may_follow() {
    let mut grammar = grammars()
        .compile(StructuredOutput::Choice(vec!["ab".into()]))
        .unwrap();
    for byte in *b"ab" {
        grammar.push(TokenId::from(byte)).unwrap();
    }
    let mask = grammar.mask().unwrap();
    let allowed: Vec<TokenId> = (0..300).filter(|id| mask.allows(*id)).collect();
    assert_eq!(allowed, [EOS]);
    grammar.push(EOS).unwrap();
}

#[test]
fn markup_cannot_be_written_by_its_name() {
    let grammar = grammars()
        .compile(StructuredOutput::Regex("<s>|<0x41>".into()))
        .unwrap();
    let mask = grammar.clone().mask().unwrap();
    let allowed: Vec<TokenId> = (0..300).filter(|id| mask.allows(*id)).collect();
    assert_eq!(allowed, [TokenId::from(b'<')]);
    assert!(accepts(&grammar, "<s>"));
}

#[test]
fn a_wish_that_cannot_be_compiled_names_its_field() {
    let field = |wish| refusal(wish).field;
    use StructuredOutput::{Choice, Grammar, JsonSchema, Regex};
    for bad in [
        "",
        "{",
        "[1]",
        r#"{"type": "colour"}"#,
        r#"{"$ref": "http://127.0.0.1:9/x.json"}"#,
    ] {
        assert_eq!(
            field(JsonSchema(bad.into())),
            "structured_output.json_schema",
            "{bad}"
        );
    }
    for bad in ["(", "a{2,1}", "(?<name>a)(?P=name)"] {
        assert_eq!(field(Regex(bad.into())), "structured_output.regex", "{bad}");
    }
    for bad in ["start: missing", "nothing", "start: \"a", "%import common.NOPE"] {
        assert_eq!(field(Grammar(bad.into())), "structured_output.grammar", "{bad}");
    }
    assert_eq!(field(Choice(vec![])), "structured_output.choice");
    assert_eq!(
        field(Choice(vec!["a".into(), String::new()])),
        "structured_output.choice.texts[1]"
    );
    assert_eq!(
        field(Choice(vec!["a".into(); MAX_CHOICES + 1])),
        "structured_output.choice"
    );
}

/// Each of these would overflow a stack, or take minutes or gigabytes, if nothing bounded it.
#[test]
fn hostile_wishes_are_refused_or_bounded() {
    let fill = |unit: &str, bytes: usize| unit.repeat(bytes / unit.len());
    let n_rules = 1000;
    let chain: String = (0..n_rules).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let terminals: String = (0..14)
        .map(|i| format!("T{i}: {}\n", format!("T{} ", i + 1).repeat(200)))
        .collect();
    let pattern = |n: usize| format!(r#"{{"type": "string", "pattern": "{}"}}"#, "a?".repeat(n));
    let wishes = [
        StructuredOutput::Regex(fill("(", MAX_BYTES)),
        StructuredOutput::Regex(fill("(", MAX_EXPRESSION_BYTES)),
        StructuredOutput::Regex(fill("a?", MAX_BYTES)),
        StructuredOutput::Regex(fill("a?", MAX_EXPRESSION_BYTES)),
        StructuredOutput::Regex(fill("(a|b)*", MAX_EXPRESSION_BYTES)),
        StructuredOutput::Regex("(((a{1,99}){1,99}){1,99}){1,99}".into()),
        StructuredOutput::Regex("(.*a){99}".into()),
        StructuredOutput::Grammar(format!("start: {}", fill("(", MAX_BYTES / 2))),
        StructuredOutput::Grammar(format!("start: r0\n{chain}r{n_rules}: \"x\"")),
        StructuredOutput::Grammar(format!("start: T0\n{terminals}T14: \"a\"?")),
        StructuredOutput::Grammar("start: start start start | \"a\" |".into()),
        StructuredOutput::JsonSchema(fill(r#"{"items":"#, MAX_BYTES)),
        StructuredOutput::JsonSchema(pattern(MAX_BYTES / 4)),
        StructuredOutput::JsonSchema(format!(
            r#"{{"anyOf": [{}{{"type": "integer"}}]}}"#,
            (pattern(1000) + ",").repeat(30)
        )),
        StructuredOutput::JsonSchema(r##"{"$ref": "#"}"##.into()),
        StructuredOutput::Choice((0..MAX_CHOICES).map(|i| format!("{i:060}")).collect()),
    ];
    let grammars = grammars();
    for wish in wishes {
        let field = wish.field();
        match grammars.compile(wish) {
            Ok(mut grammar) => {
                for byte in b"aaaaaaaabbbbbbbb{[\"aaaa" {
                    let step = grammar
                        .mask()
                        .and_then(|mask| match mask.allows(TokenId::from(*byte)) {
                            true => grammar.push(TokenId::from(*byte)),
                            false => Ok(()),
                        });
                    if let Err(error) = step {
                        assert!(matches!(error, RequestError::Grammar { field: at, .. } if at == field));
                        break;
                    }
                }
            }
            Err(SubmitError::Invalid(violations)) => assert_eq!(violations.listed()[0].field, field),
            Err(other) => panic!("{field}: {other}"),
        }
    }
}

#[test]
fn a_model_without_an_end_cannot_be_held_to_a_grammar() {
    let grammars = Grammars::new(&byte_tokenizer().unwrap(), &[]);
    let refused = grammars.compile(StructuredOutput::Regex("a".into()));
    assert!(matches!(
        refused,
        Err(SubmitError::Unsupported {
            field: "structured_output.regex",
            ..
        })
    ));
}
