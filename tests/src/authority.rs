//! Certificates and signed tokens, made while tests run.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use baichuan_client::TlsOptions;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    SanType, date_time_ymd,
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

/// An identity provider: it signs tokens, and publishes the key that they are checked with.
pub struct Provider {
    key: KeyPair,
    id: String,
}

impl Provider {
    /// One whose key has this name.
    pub fn new(id: &str) -> Self {
        Self {
            key: KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            id: id.into(),
        }
    }

    /// Its public key, as a JWK.
    pub fn jwk(&self) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": self.id, "x": self.public()})
    }

    /// Its public key, as base 64 without padding.
    pub fn public(&self) -> String {
        base64_url(self.key.public_key_raw())
    }

    /// Writes the keys of some providers where a server reads them.
    pub fn publish(providers: &[&Self], path: &Path) {
        let keys: Vec<Value> = providers.iter().map(|p| p.jwk()).collect();
        std::fs::write(path, json!({ "keys": keys }).to_string()).unwrap();
    }

    /// A token that says this.
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.clone());
        let key = EncodingKey::from_ed_der(self.key.serialized_der());
        jsonwebtoken::encode(&header, claims, &key).unwrap()
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
