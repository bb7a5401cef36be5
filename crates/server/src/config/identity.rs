//! Who may call, how they prove it, and what each may use: typed.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tenant of callers who need not say who they are.
pub const ANONYMOUS: &str = "anonymous";
/// Tenant that takes everybody whose own is not configured, where it is configured itself.
pub const OTHER: &str = "other";

/// TLS of the gRPC listeners. Files are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate and what it is signed by, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who signs clients' certificates, PEM; absent: clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must have one.
    pub client_auth: ClientAuth,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Without one there is no connection.
    #[default]
    Required,
    /// Who has none may identify otherwise.
    Optional,
}

/// How callers prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// File of bearer tokens' hashes.
    pub tokens: Option<PathBuf>,
    /// Signed tokens of an identity provider.
    pub jwt: Option<JwtConfig>,
    /// Take who proves nothing as the tenant [`ANONYMOUS`].
    pub allow_anonymous: bool,
    /// Answer health checks of whoever asks.
    pub open_health: bool,
}

/// Which JSON Web Tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// File of the issuer's public keys (JWKS).
    pub jwks: PathBuf,
    /// `iss` must be one of these.
    pub issuers: Vec<String>,
    /// `aud` must contain one of these.
    pub audiences: Vec<String>,
    /// `alg` must be one of these.
    pub algorithms: Vec<JwtAlgorithm>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Signatures of JSON Web Tokens: asymmetric ones only, so that no file of this server can make a token.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[allow(clippy::upper_case_acronyms, reason = "as RFC 7518 writes them")]
#[expect(missing_docs, reason = "as in RFC 7518, 3.1 and RFC 8037")]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// A group of methods that callers are allowed together.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the services of baichuan.v1")]
pub enum Service {
    InferenceService,
    ModelService,
    ControlService,
    AdminService,
}

/// One tenant: what it may use, and how much.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantConfig {
    /// Its name in token files, claims, logs and metrics.
    pub name: String,
    /// Subject alternative names of its client certificates: `dns:…`, `uri:…` or `email:…`.
    pub sans: Vec<String>,
    /// Services it may call.
    pub services: Vec<Service>,
    /// Models it may use; `*` is all.
    pub models: Vec<String>,
    /// Share of the engine beside other tenants', in proportion.
    pub weight: u32,
    /// Requests per second: generations, inputs of embeddings, texts tokenised and tokens made text.
    pub requests_per_second: Option<f64>,
    /// Prompt and generated tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Calls of `InferenceService` at once, each until all of its response has left.
    pub max_concurrent: Option<usize>,
    /// Share of a model's queue it may fill, of requests and of tokens, and of the texts that wait for tokenisation.
    pub queue_share: f64,
}

impl Default for TenantConfig {
    fn default() -> Self {
        Self {
            name: ANONYMOUS.into(),
            sans: Vec::new(),
            services: vec![
                Service::InferenceService,
                Service::ModelService,
                Service::ControlService,
            ],
            models: vec!["*".into()],
            weight: 1,
            requests_per_second: None,
            tokens_per_minute: None,
            max_concurrent: None,
            queue_share: 1.0,
        }
    }
}
