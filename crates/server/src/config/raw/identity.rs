//! TLS, authentication and tenants as they are written.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::identity::{ClientAuth, JwtAlgorithm, Service};
use crate::config::units::Human;

/// TLS of the gRPC listeners. Files are taken up when they change; connections keep the certificate they began with.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTls {
    /// File of the server's certificate and what it is signed by, PEM.
    #[schemars(extend("x-default" = "none: calls can be read on their way"))]
    pub(crate) cert: Option<PathBuf>,
    /// File of its private key, PEM.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) key: Option<PathBuf>,
    /// File of who signs clients' certificates, PEM.
    #[schemars(extend("x-default" = "none: clients are not asked for certificates"))]
    pub(crate) client_ca: Option<PathBuf>,
    /// Whether a client must have a certificate; one without may then identify otherwise.
    #[schemars(extend("x-default" = "`\"required\"`, beside `client_ca`"))]
    pub(crate) client_auth: Option<ClientAuth>,
}

/// How callers prove who they are.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAuth {
    /// File of bearer tokens' hashes, as `baichuan-server hash-token` writes them; taken up when it changes.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) tokens: Option<PathBuf>,
    /// Take who proves nothing as the tenant `anonymous`. Needed where the port can be reached from other machines and no
    /// other proof is configured.
    pub(crate) allow_anonymous: Option<bool>,
    /// Answer health checks of whoever asks.
    pub(crate) open_health: Option<bool>,
    /// Which JSON Web Tokens are accepted.
    #[serde(skip_serializing_if = "RawJwt::is_empty")]
    pub(crate) jwt: RawJwt,
}

/// Which JSON Web Tokens are accepted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawJwt {
    /// File of the issuer's public keys (JWKS); taken up when it changes.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) jwks: Option<PathBuf>,
    /// `iss` must be one of these.
    #[schemars(extend("x-default" = "needed beside `jwks`"))]
    pub(crate) issuers: Option<Vec<String>>,
    /// `aud` must contain one of these.
    #[schemars(extend("x-default" = "needed beside `jwks`"))]
    pub(crate) audiences: Option<Vec<String>>,
    /// `alg` must be one of these.
    #[schemars(extend("x-default" = "`[\"RS256\", \"ES256\", \"EdDSA\"]`"))]
    pub(crate) algorithms: Option<Vec<JwtAlgorithm>>,
    /// The claim that names the tenant.
    #[schemars(extend("x-default" = "`\"tenant\"`"))]
    pub(crate) tenant_claim: Option<String>,
    /// How far clocks may differ, up to 5 minutes.
    #[schemars(extend("x-default" = "`\"30s\"`"))]
    pub(crate) leeway: Option<Human<Duration>>,
}

impl RawJwt {
    /// Whether nothing at all was said.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One tenant: what it may use, and how much.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTenant {
    /// Subject alternative names of its client certificates: `dns:…`, `uri:…` or `email:…`.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) sans: Option<Vec<String>>,
    /// Services of `baichuan.v1` it may call.
    #[schemars(extend("x-default" = "all but `AdminService`"))]
    pub(crate) services: Option<Vec<Service>>,
    /// Models it may use, by their served names; `"*"` is all.
    #[schemars(extend("x-default" = "`[\"*\"]`"))]
    pub(crate) models: Option<Vec<String>>,
    /// Share of the engine beside other tenants', in proportion, 1 to 1000.
    #[schemars(extend("x-default" = "`1`"))]
    pub(crate) weight: Option<u32>,
    /// Requests per second: generations, inputs of embeddings, texts tokenised and tokens made text. A second's worth may
    /// come at once.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) requests_per_second: Option<f64>,
    /// Prompt and generated tokens per minute. A minute's worth may come at once.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) tokens_per_minute: Option<u64>,
    /// Calls of `InferenceService` at once, each until all of its response has left.
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) max_concurrent: Option<usize>,
    /// Share of a model's queue it may fill, of requests and of tokens, and of the texts that wait for tokenisation; above 0
    /// to 1.
    #[schemars(extend("x-default" = "`1`"))]
    pub(crate) queue_share: Option<f64>,
}

impl RawTenant {
    /// Whether nothing at all was said.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What this tenant says, and where it says nothing, `defaults`.
    pub(crate) fn or(self, defaults: &Self) -> Self {
        Self {
            sans: self.sans.or_else(|| defaults.sans.clone()),
            services: self.services.or_else(|| defaults.services.clone()),
            models: self.models.or_else(|| defaults.models.clone()),
            weight: self.weight.or(defaults.weight),
            requests_per_second: self.requests_per_second.or(defaults.requests_per_second),
            tokens_per_minute: self.tokens_per_minute.or(defaults.tokens_per_minute),
            max_concurrent: self.max_concurrent.or(defaults.max_concurrent),
            queue_share: self.queue_share.or(defaults.queue_share),
        }
    }
}

/// Files that are taken up when they change: certificates, tokens, keys. SIGHUP looks at them at once.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawReload {
    /// How often they are looked at.
    pub(crate) interval: Option<Human<Duration>>,
}
