//! Opaque bearer tokens, known by their SHA-256 in a file.
//!
//! ```toml
//! [[tokens]]
//! name = "billing-prod"              # as in the log
//! tenant = "billing"
//! sha256 = "9f86d0818...0f00a08"     # of the token; `baichuan-server hash-token` makes it
//! not_after = "2027-01-01T00:00:00Z" # optional
//! ```
//!
//! A plain hash is enough because tokens are random and long: there is nothing to guess that a slow hash would guard.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::tenant::Tenants;
use crate::reload::Watched;

/// Fewer characters cannot be random enough; 32 of base 64 are 192 bits.
const MIN_TOKEN_CHARACTERS: usize = 32;
const FRESH_TOKEN_BYTES: usize = 32;
const MAX_TOKENS: usize = 10_000;

/// All tokens of a file.
pub(crate) struct Tokens(Vec<Token>);

struct Token {
    sha256: [u8; 32],
    tenant: String,
    not_after: Option<SystemTime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTokens {
    #[serde(default)]
    tokens: Vec<RawToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    name: String,
    tenant: String,
    sha256: String,
    not_after: Option<String>,
}

/// Reads a file of tokens, each of a tenant that there is.
pub(super) fn open(path: PathBuf, tenants: Arc<Tenants>) -> Result<Watched<Tokens>, String> {
    Watched::open("tokens", vec![path], move |contents| {
        parse(&contents[0], &tenants)
    })
}

fn parse(text: &[u8], tenants: &Tenants) -> Result<Tokens, String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    // A syntax error's own words quote the line, which may hold a hash.
    let raw: RawTokens = toml::from_str(text).map_err(|e| {
        let line = e
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", e.message())
    })?;
    if raw.tokens.len() > MAX_TOKENS {
        return Err(format!(
            "has {} tokens, at most {MAX_TOKENS} may be",
            raw.tokens.len()
        ));
    }
    let mut names = HashSet::new();
    let tokens = raw.tokens.into_iter().map(|token| {
        let RawToken { name, tenant, .. } = &token;
        let wrong = |what: String| Err(format!("token {name:?}: {what}"));
        if !names.insert(name.clone()) {
            return wrong("another token has the name".into());
        }
        if tenants.account(tenant).is_none() {
            return wrong(format!("there is no tenant {tenant:?}, nor one called \"other\""));
        }
        let mut sha256 = [0; 32];
        if hex::decode_to_slice(&token.sha256, &mut sha256).is_err() {
            return wrong("sha256 must be 64 hexadecimal digits".into());
        }
        let not_after = token
            .not_after
            .as_deref()
            .map(humantime::parse_rfc3339)
            .transpose();
        let Ok(not_after) = not_after else {
            return wrong("not_after must be a time such as \"2027-01-01T00:00:00Z\"".into());
        };
        Ok(Token {
            sha256,
            tenant: token.tenant.clone(),
            not_after,
        })
    });
    Ok(Tokens(tokens.collect::<Result<_, _>>()?))
}

impl Tokens {
    /// The tenant that a token is of. Takes as long whichever it is, and if it is none.
    pub(super) fn tenant_of(&self, token: &str) -> Option<&str> {
        let sha256: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for known in &self.0 {
            if bool::from(known.sha256.ct_eq(&sha256)) {
                found = Some(known);
            }
        }
        let found = found?;
        let ended = found.not_after.is_some_and(|end| SystemTime::now() >= end);
        (!ended).then_some(&found.tenant)
    }
}

/// A new random token.
///
/// # Errors
/// The system has no randomness to give.
pub fn fresh_token() -> Result<String, String> {
    let mut bytes = [0; FRESH_TOKEN_BYTES];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|e| format!("the system gives no random bytes: {e}"))?;
    Ok(format!("bst_{}", hex::encode(bytes)))
}

/// The entry of a token in a file of tokens, with its hash in place of itself.
///
/// # Errors
/// The token is too short to be random, or not visible ASCII, which no header can carry.
pub fn token_entry(token: &str, name: &str, tenant: &str) -> Result<String, String> {
    if token.len() < MIN_TOKEN_CHARACTERS {
        return Err(format!(
            "a token must have at least {MIN_TOKEN_CHARACTERS} characters to be beyond guessing, this one has {}",
            token.len()
        ));
    }
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a token must be visible ASCII without spaces".into());
    }
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    Ok(format!(
        "[[tokens]]\nname = {}\ntenant = {}\nsha256 = \"{}\"\n",
        quoted(name),
        quoted(tenant),
        hex::encode(Sha256::digest(token.as_bytes()))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TenantConfig;

    fn tenants() -> Tenants {
        let acme = TenantConfig {
            name: "acme".into(),
            ..TenantConfig::default()
        };
        Tenants::new(&[acme])
    }

    fn read(text: &str) -> Result<Tokens, String> {
        parse(text.as_bytes(), &tenants())
    }

    #[test]
    fn a_token_is_known_by_its_hash_until_it_ends() {
        let [token, ended] = [fresh_token().unwrap(), fresh_token().unwrap()];
        let text = token_entry(&token, "one", "acme").unwrap()
            + &token_entry(&ended, "two", "acme").unwrap()
            + "not_after = \"2020-01-01T00:00:00Z\"\n";
        assert!(!text.contains(&token));
        let tokens = read(&text).unwrap();
        assert_eq!(tokens.tenant_of(&token), Some("acme"));
        assert_eq!(tokens.tenant_of(&ended), None);
        assert_eq!(tokens.tenant_of(&token[..token.len() - 1]), None);
        assert_eq!(tokens.tenant_of(""), None);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_quoting_it() {
        let hash = "0".repeat(64);
        let entry = |name: &str, tenant: &str, hash: &str| {
            format!("[[tokens]]\nname = '{name}'\ntenant = '{tenant}'\nsha256 = '{hash}'\n")
        };
        for (text, words) in [
            (
                entry("a", "nobody", &hash),
                "\"a\": there is no tenant \"nobody\"",
            ),
            (entry("a", "acme", "abcdef"), "\"a\": sha256 must be"),
            (
                entry("a", "acme", &hash) + &entry("a", "acme", &hash),
                "another token",
            ),
            (entry("a", "acme", &hash) + "not_after = 'soon'", "not_after"),
            (
                entry("a", "acme", &hash) + "password = 'x'",
                "line 5: unknown field",
            ),
            ("[[tokens]]\nname = 'a'\ntenant = 'acme'".into(), "missing field"),
        ] {
            let error = read(&text).err().unwrap_or_else(|| panic!("{text} passed"));
            assert!(error.contains(words) && !error.contains("abcdef"), "{error}");
        }
    }

    #[test]
    fn a_token_that_could_be_guessed_is_not_hashed() {
        assert!(
            token_entry("hunter2", "n", "t")
                .unwrap_err()
                .contains("at least 32")
        );
        assert!(token_entry(&"a b".repeat(20), "n", "t").is_err());
    }
}
