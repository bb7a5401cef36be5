//! Certificates and signed tokens, made while tests run.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use baichuan_client::TlsOptions;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, date_time_ymd,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Who signs certificates, and the folder where it puts them.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    /// A new one, with its own certificate in `ca.pem`.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of tests");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            dir,
        }
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `NAME.pem` and `NAME.key`, for these subject alternative names: `dns:…` or `uri:…`.
    pub fn issue(&self, name: &str, sans: &[&str]) {
        self.issue_until(name, sans, 2099);
    }

    /// The same, valid until the first day of a year.
    pub fn issue_until(&self, name: &str, sans: &[&str], year: i32) {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let san = |text: &&str| match text.split_once(':').unwrap() {
            ("dns", name) => SanType::DnsName(name.try_into().unwrap()),
            ("uri", uri) => SanType::URI(uri.try_into().unwrap()),
            other => panic!("{other:?}"),
        };
        params.subject_alt_names = sans.iter().map(san).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// How a client believes this authority, and shows the certificate called `name`, if any.
    pub fn trusted(&self, name: Option<&str>) -> TlsOptions {
        TlsOptions {
            ca: Some(self.path("ca.pem")),
            cert: name.map(|name| self.path(&format!("{name}.pem"))),
            key: name.map(|name| self.path(&format!("{name}.key"))),
            server_name: Some("localhost".into()),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// An RSA key (PKCS#1) that signs nothing but tests' tokens: drawing one takes an unoptimised build a minute.
const RSA_KEY: &[u8] = include_bytes!("../keys/rsa.der");

/// An identity provider: it signs tokens, and publishes the key that they are checked with.
pub struct Provider {
    key: EncodingKey,
    algorithm: Algorithm,
    id: String,
    jwk: Value,
}

impl Provider {
    /// One whose key, for EdDSA, has this name.
    pub fn new(id: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": base64_url(key.public_key_raw())});
        let key = EncodingKey::from_ed_der(key.serialized_der());
        Self::of(key, Algorithm::EdDSA, id, jwk)
    }

    /// One that signs by ES256.
    pub fn elliptic(id: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_der(key.serialized_der());
        let jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        Self::of(key, Algorithm::ES256, id, serde_json::to_value(jwk).unwrap())
    }

    /// One that signs by an algorithm of RSA.
    pub fn rsa(id: &str, algorithm: Algorithm) -> Self {
        let key = EncodingKey::from_rsa_der(RSA_KEY);
        let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        Self::of(key, algorithm, id, serde_json::to_value(jwk).unwrap())
    }

    fn of(key: EncodingKey, algorithm: Algorithm, id: &str, mut jwk: Value) -> Self {
        jwk["kid"] = id.into();
        jwk["use"] = "sig".into();
        Self {
            key,
            algorithm,
            id: id.into(),
            jwk,
        }
    }

    /// Its public key for EdDSA, as base 64 without padding.
    pub fn public(&self) -> &str {
        self.jwk["x"].as_str().unwrap()
    }

    /// Writes the keys of some providers where a server reads them.
    pub fn publish(providers: &[&Self], path: &Path) {
        let keys: Vec<&Value> = providers.iter().map(|p| &p.jwk).collect();
        std::fs::write(path, json!({ "keys": keys }).to_string()).unwrap();
    }

    /// A token that says this.
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

/// Seconds since 1970, this many from now.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + seconds
}

/// Base 64 for URLs, without padding (RFC 4648, 5).
pub fn base64_url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(DIGITS[(group >> (18 - 6 * digit) & 63) as usize] as char);
        }
    }
    text
}
