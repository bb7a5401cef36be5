//! JSON Web Tokens, verified by the issuer's public keys in a JWKS file.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use crate::config::{JwtAlgorithm, JwtConfig};
use crate::reload::Watched;

/// Longer ones are refused unread.
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// A token without a key's name is tried with every key that fits; more is not a JWKS file of an issuer.
const MAX_KEYS: usize = 64;

/// Verifies tokens.
pub(crate) struct Jwt {
    keys: Arc<Watched<Keys>>,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    tenant_claim: String,
}

/// Public keys of an issuer.
pub(crate) struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    /// The only one it is for, where the issuer says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// Whether a bearer token has the form of one: three parts, and the first says `alg`.
pub(super) fn looks_like_one(token: &str) -> bool {
    token.len() <= MAX_TOKEN_BYTES && token.matches('.').count() == 2 && decode_header(token).is_ok()
}

impl Jwt {
    pub(super) fn open(config: &JwtConfig) -> Result<Self, String> {
        let keys = Watched::open("jwks", vec![config.jwks.clone()], |contents| keys(&contents[0]))?;
        // The algorithm is set for each token, from the list.
        let mut validation = Validation::default();
        validation.set_audience(&config.audiences);
        validation.set_issuer(&config.issuers);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = config.leeway.as_secs();
        Ok(Self {
            keys: Arc::new(keys),
            algorithms: config.algorithms.iter().map(|a| algorithm(*a)).collect(),
            validation,
            tenant_claim: config.tenant_claim.clone(),
        })
    }

    pub(super) fn keys(&self) -> Arc<Watched<Keys>> {
        self.keys.clone()
    }

    /// The tenant that a token names, or why it is not accepted.
    pub(super) fn tenant_of(&self, token: &str) -> Result<String, String> {
        let header = decode_header(token).map_err(|e| e.to_string())?;
        if !self.algorithms.contains(&header.alg) {
            return Err(format!("algorithm {:?} is not allowed", header.alg));
        }
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let keys = self.keys.current();
        let fits = |key: &&Key| {
            let named = header.kid.is_none() || header.kid == key.id;
            named && key.key.family() == header.alg.family() && key.algorithm.is_none_or(|a| a == header.alg)
        };
        let mut reason = "no key of the JWKS file fits".to_owned();
        for key in keys.0.iter().filter(fits) {
            match decode::<Map<String, Value>>(token, &key.key, &validation) {
                Ok(token) => {
                    let tenant = token.claims.get(&self.tenant_claim).and_then(Value::as_str);
                    return tenant
                        .filter(|name| !name.is_empty())
                        .map(ToOwned::to_owned)
                        .ok_or_else(|| format!("claim {:?} names no tenant", self.tenant_claim));
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }
}

fn keys(json: &[u8]) -> Result<Keys, String> {
    let set: JwkSet = serde_json::from_slice(json).map_err(|e| {
        // Its own words may quote the file.
        format!("not a JWKS: line {}, column {}", e.line(), e.column())
    })?;
    if set.keys.len() > MAX_KEYS {
        return Err(format!("has {} keys, at most {MAX_KEYS} may be", set.keys.len()));
    }
    let keys: Vec<Key> = set
        .keys
        .iter()
        .filter_map(|jwk| key(jwk).transpose())
        .collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err("has no public key for signatures".into());
    }
    Ok(Keys(keys))
}

/// A key for signatures; none where it is for something else. A secret one is refused: it does not belong here.
fn key(jwk: &Jwk) -> Result<Option<Key>, String> {
    let common = &jwk.common;
    let signs = common
        .public_key_use
        .as_ref()
        .is_none_or(|u| *u == PublicKeyUse::Signature)
        && common
            .key_operations
            .as_ref()
            .is_none_or(|ops| ops.contains(&KeyOperations::Verify));
    let name = common.key_id.clone().unwrap_or_default();
    match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => {
            return Err(format!(
                "key {name:?} is a shared secret: whoever checks tokens could make them"
            ));
        }
        AlgorithmParameters::RSA(_)
        | AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKeyPair(_)
            if signs => {}
        _ => return Ok(None),
    }
    let algorithm = match common.key_algorithm.map(|a| a.to_string().parse()) {
        None => None,
        Some(Ok(algorithm)) => Some(algorithm),
        // One that signs nothing, such as RSA-OAEP, or that nobody here knows: no signature is that key's.
        Some(Err(_)) => return Ok(None),
    };
    let decoding = DecodingKey::from_jwk(jwk).map_err(|e| format!("key {name:?}: {e}"))?;
    Ok(Some(Key {
        id: common.key_id.clone(),
        algorithm,
        key: decoding,
    }))
}

fn algorithm(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::RS256 => Algorithm::RS256,
        JwtAlgorithm::RS384 => Algorithm::RS384,
        JwtAlgorithm::RS512 => Algorithm::RS512,
        JwtAlgorithm::PS256 => Algorithm::PS256,
        JwtAlgorithm::PS384 => Algorithm::PS384,
        JwtAlgorithm::PS512 => Algorithm::PS512,
        JwtAlgorithm::ES256 => Algorithm::ES256,
        JwtAlgorithm::ES384 => Algorithm::ES384,
        JwtAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_for_something_else_than_signatures_known_here_is_left_out() {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let of = |rest: &str| {
            let key = |name: &str, rest: &str| {
                format!(r#"{{"kty": "OKP", "crv": "Ed25519", "x": "{x}", "kid": "{name}"{rest}}}"#)
            };
            let set = format!(r#"{{"keys": [{}, {}]}}"#, key("good", ""), key("asked", rest));
            let keys = keys(set.as_bytes()).unwrap();
            keys.0
                .into_iter()
                .filter_map(|key| key.id)
                .any(|id| id == "asked")
        };
        assert!(of("") && of(r#", "alg": "EdDSA""#) && of(r#", "use": "sig""#));
        assert!(!of(r#", "alg": "RSA-OAEP""#) && !of(r#", "alg": "nobodys""#) && !of(r#", "use": "enc""#));
    }
}
